"""Views of images that a caller passes: arrays, Pillow images, paths of files and folders.

It is the input of `mimjax.load(...)` and not a source: nothing is shuffled, images are cropped as
for evaluation, and the first image that cannot be read is an error.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimjax.data import value_range
from mimjax.data.augment import Augment
from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding, to_bands, to_rgb
from mimjax.data.files import Files
from mimjax.errors import ConfigError
from mimjax.storage.files import checked_path
from mimjax.task import View

One = str | os.PathLike | np.ndarray | Image.Image  # a path may be that of a folder
Images = One | Iterable[One]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reader of images that a caller passes.

    Attributes:
      augment: its `eval_crop` is used.
      how: settings of decoding; images must have `how.channels` channels.
      threads: the number of threads that decode.
    """

    augment: Augment = Augment()
    how: Decoding = Decoding()
    threads: int = 8

    def __call__(self, images: Images, views: dict[str, View]) -> dict[str, np.ndarray]:
        """Return every view of all images at once, {name: uint8 [b h w c]}; see `batches`."""
        parts = list(self.batches(images, views, 256))
        return {name: np.concatenate([part[name] for part in parts]) for name in views}

    def batches(
        self, images: Images, views: dict[str, View], size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the views of at most `size` images at a time, {name: uint8 [b h w c]}, in order.

        Threads decode the next batch while the caller has one, and no other images are in memory.

        Args:
          images: one image, or images in any iterable. A folder stands for all its images, sorted
            by path.
          views: {name: size and filter}. An array that has the size of every view is returned
            unchanged.

        Raises:
          ConfigError: there is no image, or one cannot be read.
        """
        single = self._singles(images)
        first = list(itertools.islice(single, value_range.SAMPLE))
        if not first:
            raise ConfigError("images: none; allowed: one or more")
        self._warn(first)
        numbered = enumerate(itertools.chain(first, single))
        del first
        pool, waiting = ThreadPoolExecutor(self.threads), collections.deque()
        try:
            while part := list(itertools.islice(numbered, size)):
                waiting.append([pool.submit(self._views, x, i, views) for i, x in part])
                del part
                if len(waiting) > 1:
                    yield _stacked(waiting.popleft())
            yield _stacked(waiting.popleft())
        finally:  # also where an image is bad, or the caller takes no more
            pool.shutdown(wait=True, cancel_futures=True)

    def _singles(self, images: Images) -> Iterator[Any]:
        """Yield single images: paths of files, Pillow images, arrays uint8 [h w c].

        Raises:
          ConfigError: something is none of these.
        """
        if _is_one(images):
            yield from self._parts(images, "images: ")
        elif isinstance(images, Iterable) and not isinstance(images, bytes | Mapping | Set):
            for number, image in enumerate(images):
                yield from self._parts(image, f"images: number {number} is ")
        else:  # the order of a set is nobody's
            raise self._refused("images: ", type(images).__name__)

    def _parts(self, image: Any, where: str) -> Iterator[Any]:
        """Yield the images of a path, a Pillow image or an array; `where` begins an error."""
        if isinstance(image, str | os.PathLike):
            path = os.path.expanduser(os.fspath(image))
            if epath.Path(checked_path(path, "images")).is_dir():
                files = Files(path, key="images", how=self.how)
                yield from (files.file(i) for i in range(len(files)))
            else:
                yield path
        elif isinstance(image, Image.Image):
            yield image
        elif not _is_one(image):
            raise self._refused(where, type(image).__name__)
        else:
            x = np.asarray(image)
            if x.dtype != np.uint8 or x.ndim not in (3, 4) or self._wrong(x.shape[-3:]):
                raise self._refused(where, f"{x.dtype} {list(x.shape)}")
            yield from x if x.ndim == 4 else [x]

    def _wrong(self, shape: tuple[int, ...]) -> bool:
        """Return whether [h w c] is no shape of an image."""
        return 0 in shape or shape[2] != self.how.channels

    def _refused(self, where: str, found: str) -> ConfigError:
        c = self.how.channels
        return ConfigError(
            f"{where}{found}; allowed: uint8 [h w {c}] or [b h w {c}], Pillow images, paths of "
            "files and folders, or a list of these"
        )

    def _views(self, image: Any, number: int, views: dict[str, View]) -> dict[str, np.ndarray]:
        """Return the views of a single image, {name: uint8 [h w c]}; a thread calls it."""
        shape = image.shape[:2] if isinstance(image, np.ndarray) else None
        if all(view.size == shape for view in views.values()):
            return dict.fromkeys(views, image)
        unused = np.random.default_rng(0)  # a center crop draws no random numbers
        return self.augment(self._open(image, number), views, unused, train=False)

    def _open(self, image: Any, number: int) -> Image.Image | Bands:
        """Return a single image decoded: RGB, or Bands for another number of channels.

        Args:
          number: its position among all images, for errors.

        Raises:
          ConfigError: the image cannot be read or has another number of channels.
        """
        channels = self.how.channels
        if isinstance(image, str):
            return Files(image, key="images", how=self.how).image(0)
        if isinstance(image, Image.Image):
            try:
                if channels == 3:
                    return to_rgb(image, self.how.value_range)
                return to_bands(image, self.how)
            except (ValueError, OSError) as error:
                raise ConfigError(f"images: number {number}: {error}") from None
        if channels == 3:
            return Image.fromarray(image)
        return Bands([Image.fromarray(image[..., i].copy()) for i in range(channels)])

    def _warn(self, images: list[Any]) -> None:
        """Warn of values beyond 8 bits that do not fill the range that is read."""
        sample = []
        for image in images:
            if isinstance(image, str):
                sample.append(value_range.values_of(image, self.how))
            else:
                pillow = isinstance(image, Image.Image)
                sample.append(value_range.values_in(image) if pillow else None)
        if text := value_range.advice(sample, self.how):
            warnings.warn(text, stacklevel=5)


def _is_one(images: Any) -> bool:
    """Return whether something is a path, a Pillow image or an array, and no list of them."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return True
    # arrays of other libraries too; an array of paths is a list
    return hasattr(images, "__array__") and np.asarray(images).dtype.kind not in "OSU"


def _stacked(waiting: list[Future[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return the views of some images as batches; the error of the first bad one is raised."""
    made = [future.result() for future in waiting]
    return {name: np.stack([views[name] for views in made]) for name in made[0]}
