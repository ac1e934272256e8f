"""Some image files as a source: all at or below a path, without split, labels or classes.

For programs that look at images; `folder.py` is the source that training reads.
"""

from __future__ import annotations

import dataclasses
import os

from etils import epath
from PIL import Image

from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding
from mimjax.data.folder import extensions, list_images, read_image
from mimjax.data.images import Lazy, fingerprint
from mimjax.task import ConfigError


@dataclasses.dataclass
class Files(Lazy):
    """The images below a folder, by path, or a single file of any extension.

    Attributes:
      path: local or gs://.
      key: what named the path, for errors.
      how: files become images.
    """

    path: str
    key: str = "--images"
    how: Decoding = Decoding()
    names: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")

    name = "files"
    num_classes = 0
    label_name = ""

    def __post_init__(self):
        self.path = os.path.expanduser(self.path)
        place = epath.Path(self.path)
        if place.is_dir():
            found = list_images(self.path, self.how.channels)
        elif place.exists():
            self.path, name = os.path.split(self.path)
            found = [(name, place.stat().length)]
        else:
            raise ConfigError(f"{self.key}: {self.path!r} is no folder and no file")
        if not found:
            raise ConfigError(
                f"{self.key}: no image below {self.path!r}; allowed: files that end in "
                f"{', '.join(extensions(self.how.channels))}"
            )
        self.names = [name for name, _ in found]
        flat = (part for name, size in found for part in (os.fsencode(name), size))
        self.fingerprint = fingerprint([self.name, *flat])

    def __len__(self) -> int:
        return len(self.names)

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image | Bands:
        path = os.path.join(self.path, self.names[index])
        return read_image(path, self.key, self.how)

    def label(self, index: int) -> int:
        return -1
