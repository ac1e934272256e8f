"""Some image files as a source: all at or below a path, without splits.

For programs that look at images; `folder.py` is the source that training reads.
"""

from __future__ import annotations

import bisect
import dataclasses
import os

from etils import epath
from PIL import Image

from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding
from mimjax.data.folder import TEST_FOLDERS, extensions, list_images, read_image
from mimjax.data.images import Lazy, fingerprint
from mimjax.task import ConfigError

SPLITS = {"train", *TEST_FOLDERS}  # folders that are no classes


@dataclasses.dataclass
class Files(Lazy):
    """The images below a folder, by path, or a single file of any extension.

    The label is the number of the first folder below the path (below "train" and the like, where
    all lie in such) if every image lies in one, else -1.

    Attributes:
      path: local or gs://.
      key: what named the path, for errors.
      how: files become images.
    """

    path: str
    key: str = "--images"
    how: Decoding = Decoding()
    names: list[str] = dataclasses.field(init=False, default_factory=list)
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")

    name = "files"
    label_name = "class folder"

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
        found_in = [self._class_of(name) for name in self.names]
        self.class_names = sorted(set(found_in)) if all(found_in) else []
        self.num_classes = len(self.class_names)
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
        if not self.class_names:
            return -1
        return bisect.bisect_left(self.class_names, self._class_of(self.names[index]))

    def _class_of(self, name: str) -> str:
        """The folder that names the class, "" if there is none."""
        folders = name.split("/")[:-1]
        return next((folder for folder in folders if folder not in SPLITS), "")
