"""Some image files as a source: all at or below a path, without splits.

For programs that look at images; `folder.py` is the source that training reads.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter

from etils import epath
from PIL import Image

from mimjax.data import layout
from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding
from mimjax.data.folder import extensions, list_images, read_image
from mimjax.data.images import Lazy, fingerprint
from mimjax.storage.files import checked_path
from mimjax.task import ConfigError


@dataclasses.dataclass
class Files(Lazy):
    """The images below a folder, by path, or a single file of any extension.

    The label is the number of the first folder below the path (below "train" and the like, where
    the folders are splits), see `layout.find_classes`.

    Attributes:
      path: local or gs://.
      key: what named the path, for errors.
      how: files become images.
      notes: what is to be said of the folder: images without a class, files left out.
    """

    path: str
    key: str = "--images"
    how: Decoding = Decoding()
    names: list[str] = dataclasses.field(init=False, default_factory=list)
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    notes: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")
    _in_splits: bool = dataclasses.field(init=False, default=False)

    name = "files"
    label_name = "class folder"

    def __post_init__(self):
        self.path = checked_path(self.path, self.key)
        place, others = epath.Path(self.path), Counter()
        if place.is_dir():
            found = list_images(self.path, self.how.channels, others)
        elif place.exists():
            self.path, name = os.path.split(self.path)
            found = [(name, place.stat().length)]
        else:
            raise ConfigError(f"{self.key}: {self.path!r} is no folder and no file")
        rest = layout.left_out(others)
        if not found:
            held = f"; {rest}" if rest else ""
            raise ConfigError(
                f"{self.key}: no image below {self.path!r}; allowed: files that end in "
                f"{', '.join(extensions(self.how.channels))}{held}"
            )
        self.names = [name for name, _ in found]
        self._in_splits = layout.split_layout({n.split("/")[0] for n in self.names if "/" in n})
        classes = layout.find_classes(self.names, self._class_of)
        self.class_names, self.num_classes = classes.names, len(classes.names)
        self.notes = [note for note in (classes.note, rest) if note]
        flat = (part for name, size in found for part in (os.fsencode(name), size))
        self.fingerprint = fingerprint([self.name, *flat])

    def __len__(self) -> int:
        return len(self.names)

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def file(self, index: int) -> str:
        """The whole path."""
        return os.path.join(self.path, self.names[index])

    def image(self, index: int) -> Image.Image | Bands:
        return read_image(self.file(index), self.key, self.how)

    def label(self, index: int) -> int:
        return layout.Classes(self.class_names).number(self._class_of(self.names[index]))

    def _class_of(self, name: str) -> str:
        """The folder that names the class, "" if there is none."""
        folders = name.split("/")[:-1]
        if self._in_splits:
            folders = folders[1:] if folders and layout.role(folders[0]) is not None else []
        return folders[0] if folders else ""
