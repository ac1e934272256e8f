"""Some image files as a source: all at or below a path, without split, labels or classes.

For programs that look at images; `folder.py` is the source that training reads.
"""

from __future__ import annotations

import dataclasses
import os

from etils import epath
from PIL import Image

from mimjax.data.folder import EXTENSIONS, list_images, read_bytes
from mimjax.data.images import Lazy, decode, fingerprint
from mimjax.task import ConfigError


@dataclasses.dataclass
class Files(Lazy):
    """The images below a folder, by path, or a single file of any extension.

    Attributes:
      path: local or gs://.
      key: what named the path, for errors.
    """

    path: str
    key: str = "--images"
    names: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")

    name = "files"
    num_classes = 0
    label_name = ""

    def __post_init__(self):
        self.path = os.path.expanduser(self.path)
        place = epath.Path(self.path)
        if place.is_dir():
            found = list_images(self.path)
        elif place.exists():
            self.path, name = os.path.split(self.path)
            found = [(name, place.stat().length)]
        else:
            raise ConfigError(f"{self.key}: {self.path!r} is no folder and no file")
        if not found:
            raise ConfigError(
                f"{self.key}: no image below {self.path!r}; allowed: files that end in "
                f"{', '.join(EXTENSIONS)}"
            )
        self.names = [name for name, _ in found]
        self.fingerprint = fingerprint([self.name, *(part for file in found for part in file)])

    def __len__(self) -> int:
        return len(self.names)

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image:
        path = os.path.join(self.path, self.names[index])
        return decode(read_bytes(path, self.key), f"{self.key}: {path}")

    def label(self, index: int) -> int:
        return -1
