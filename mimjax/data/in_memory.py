"""Views of images that a caller passes: arrays, Pillow images or paths of files.

It is the input of `mimjax.load(...)` and not a source: nothing is shuffled or batched, images are
cropped as for evaluation, and the first image that cannot be read is an error.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimjax.data import value_range
from mimjax.data.augment import Augment
from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding, to_bands, to_rgb
from mimjax.data.files import Files
from mimjax.errors import ConfigError
from mimjax.task import View

Images = np.ndarray | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reader of images that a caller passes.

    Attributes:
      augment: its `eval_crop` is used.
      how: settings of decoding; images must have `how.channels` channels.
    """

    augment: Augment = Augment()
    how: Decoding = Decoding()

    def __call__(self, images: Images, views: dict[str, View]) -> dict[str, np.ndarray]:
        """Return every view of b images, {name: uint8 [b h w c]}.

        Args:
          images: an array uint8 [b h w c], or a sequence of arrays [h w c], Pillow images or paths.
          views: {name: size and filter}. An array whose images have the size of every view is
            returned unchanged.

        Raises:
          ConfigError: there is no image, or one cannot be read.
        """
        channels = self.how.channels
        is_array = isinstance(images, np.ndarray) or hasattr(images, "__array__")
        batch: Any = np.asarray(images) if is_array else list(images)
        if is_array and (batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != channels):
            raise ConfigError(
                f"images: {batch.dtype} {list(batch.shape)}; allowed: uint8 [b h w {channels}], or "
                "a list of arrays, Pillow images or paths"
            )
        if not len(batch):
            raise ConfigError("images: none; allowed: one or more")
        if is_array and all(view.size == batch.shape[1:3] for view in views.values()):
            same: dict[str, Any] = dict.fromkeys(views, batch)
            return same
        self._warn(batch)
        unused = np.random.default_rng(0)  # a center crop draws no random numbers
        out: dict[str, list[np.ndarray]] = {name: [] for name in views}
        for number, image in enumerate(batch):
            crops = self.augment(self.open(image, number), views, unused, train=False)
            for name, x in crops.items():
                out[name].append(x)
        return {name: np.stack(x) for name, x in out.items()}

    def _warn(self, images: Any) -> None:
        """Warn of values beyond 8 bits that do not fill the range that is read."""
        sample = []
        for image in images[: value_range.SAMPLE]:
            if isinstance(image, str | os.PathLike):
                sample.append(value_range.values_of(os.path.expanduser(os.fspath(image)), self.how))
            else:
                pillow = isinstance(image, Image.Image)
                sample.append(value_range.values_in(image) if pillow else None)
        if text := value_range.advice(sample, self.how):
            warnings.warn(text, stacklevel=4)

    def open(self, image: Any, number: int) -> Image.Image | Bands:
        """Return one decoded image: RGB, or Bands for another number of channels.

        Args:
          image: an array uint8 [h w c], a Pillow image or the path of a file.
          number: its position among the images, for errors.

        Raises:
          ConfigError: the image cannot be read or has another number of channels.
        """
        channels = self.how.channels
        if isinstance(image, str | os.PathLike):
            path = os.path.expanduser(os.fspath(image))
            if os.path.isdir(path):  # `Files` would read the folder's first image
                raise ConfigError(f"images: number {number}, {path}, is a folder; allowed: files")
            return Files(path, key="images", how=self.how).image(0)
        if isinstance(image, Image.Image):
            try:
                if channels == 3:
                    return to_rgb(image, self.how.value_range)
                return to_bands(image, self.how)
            except ValueError as error:
                raise ConfigError(f"images: number {number}: {error}") from None
        x = np.asarray(image)
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != channels:
            raise ConfigError(
                f"images: number {number} is {x.dtype} {list(x.shape)}; "
                f"allowed: uint8 [h w {channels}]"
            )
        if channels == 3:
            return Image.fromarray(x)
        return Bands([Image.fromarray(x[..., i].copy()) for i in range(channels)])
