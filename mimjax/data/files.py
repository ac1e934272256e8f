"""Source of the image files at or below a path, without splits.

It serves programs that read images with a trained encoder. The source for training, which knows
splits and keeps a million paths in little memory, is in `folder.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter

from etils import epath

from mimjax.data import layout
from mimjax.data.decoding import Decoding
from mimjax.data.folder import ImageFiles, extensions, list_images
from mimjax.data.images import fingerprint
from mimjax.storage.files import checked_path
from mimjax.task import ConfigError


@dataclasses.dataclass
class Files(ImageFiles):
    """Images below a folder, sorted by path, or a single file of any extension.

    The label of an image is the number of the first folder below `path`; where these folders are
    splits ("train"), the number of the first folder below its split (see `layout.find_classes`).

    Attributes:
      path: local or remote folder or file.
      key: flag or setting that named the path, for errors.
      how: settings of decoding.
      names: paths relative to `path`, with "/" separators.

    Raises:
      ConfigError: there is no such path, or no image below it.
    """

    path: str
    key: str = "--images"
    how: Decoding = Decoding()
    names: list[str] = dataclasses.field(init=False, default_factory=list)
    _in_splits: bool = dataclasses.field(init=False, default=False)

    name = "files"

    def __post_init__(self):
        self.path = checked_path(self.path, self.key)
        place, others = epath.Path(self.path), Counter()
        if place.is_dir():
            images = list_images(self.path, self.how.channels, others)
        elif place.exists():
            self.path, name = os.path.split(self.path)
            images = [(name, place.stat().length)]
        else:
            raise ConfigError(f"{self.key}: {self.path!r} is no folder and no file")
        self._root, unread = self.path, layout.left_out(others)
        if not images:
            more = f"; {unread}" if unread else ""
            raise ConfigError(
                f"{self.key}: no image below {self.path!r}; allowed: files that end in "
                f"{', '.join(extensions(self.how.channels))}{more}"
            )
        self.names = [name for name, _ in images]
        self._in_splits = layout.split_layout({n.split("/")[0] for n in self.names if "/" in n})
        classes = layout.find_classes(self.names, self.class_of)
        self.class_names, self.num_classes = classes.names, len(classes.names)
        self.notes = [note for note in (classes.note, unread) if note]
        flat = (part for name, size in images for part in (os.fsencode(name), size))
        self.fingerprint = fingerprint([self.name, *flat])

    def __len__(self) -> int:
        return len(self.names)

    def relative_path(self, index: int) -> str:
        """Return an image's path relative to `path`."""
        return self.names[index]

    def class_of(self, name: str) -> str:
        if not self._in_splits:
            return super().class_of(name)
        split, _, rest = name.partition("/")
        return super().class_of(rest) if rest and layout.role(split) is not None else ""
