"""The classes that a run's labels mean, kept as `classes.json` in its workdir.

A label is a number, and which class it is depends on what else the data hold: a class folder that
is added, or has another name, gives other numbers to the folders behind it. Accuracy then falls
without an error. The names are therefore written beside the settings and compared at every start.
"""

from __future__ import annotations

import dataclasses
import itertools
import json

from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir

FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a labeled source.

    Attributes:
      count: the number of classes.
      names: by label, so many; None = the source has numbers alone.
      label: what a label means, "class folder".
    """

    count: int
    names: tuple[str, ...] | None = None
    label: str = "class"

    def write(self, workdir: Workdir) -> None:
        """Write the file."""
        content = {"label": self.label, "num_classes": self.count, "names": self.names}
        workdir.write_text(FILE, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, workdir: Workdir) -> Classes | None:
        """Return the classes in a workdir; None where there is no such file.

        Raises:
          ConfigError: the file holds something else, which a run must not replace.
        """
        content = workdir.read_json(FILE)
        if not content:
            return None
        count, names, label = (content.get(k) for k in ("num_classes", "names", "label"))
        texts = names is None or (isinstance(names, list) and all(type(n) is str for n in names))
        if not (type(count) is int and texts and isinstance(label, str)) or (
            names is not None and len(names) != count
        ):
            raise ConfigError(
                f"--workdir: {workdir.file(FILE)} does not hold the classes of a run; allowed: the "
                "file as a run wrote it, or none (then the classes are not compared)"
            )
        return cls(count, None if names is None else tuple(names), label)

    def difference(self, before: Classes) -> str:
        """Return the first difference from the classes of an earlier start; "" = there is none.

        Names are compared where both have some, else the numbers of classes alone.
        """
        counts = f"{self.count} classes, they were {before.count}"
        if self.names is None or before.names is None:
            return counts if self.count != before.count else ""
        if self.names == before.names:
            return ""
        pairs = itertools.zip_longest(self.names, before.names)
        number, now, old = next((i, a, b) for i, (a, b) in enumerate(pairs) if a != b)
        if self.count != before.count:
            kind = counts
        else:
            same = set(self.names) == set(before.names)
            kind = "classes in another order" if same else "a class of another name"
        is_now = "is gone" if now is None else f"is {now!r}"
        was = "is new" if old is None else f"was {old!r}"
        return f"{kind}: class {number} {is_now}, it {was}"
