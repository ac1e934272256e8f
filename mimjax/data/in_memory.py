"""Images that a caller hands over, arrays, Pillow images or paths, as the views of a model.

Crops are the evaluators'. Unlike a source, a reader refuses the first image that it cannot read.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimjax.data import values
from mimjax.data.augment import Augment
from mimjax.data.bands import Bands
from mimjax.data.decoding import Decoding, to_bands, to_rgb
from mimjax.data.files import Files
from mimjax.errors import ConfigError
from mimjax.task import View

Images = np.ndarray | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads images; `augment.eval_crop` is used, and `how.channels` are expected."""

    augment: Augment = Augment()
    how: Decoding = Decoding()

    def __call__(self, images: Images, views: dict[str, View]) -> dict[str, np.ndarray]:
        """Every view of the images, uint8 [b h w c]; arrays of a view's size pass as they are.

        Raises:
          ConfigError: no image, or one that cannot be read.
        """
        channels = self.how.channels
        whole = isinstance(images, np.ndarray) or hasattr(images, "__array__")
        found: Any = np.asarray(images) if whole else list(images)
        if whole and (found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != channels):
            raise ConfigError(
                f"images: {found.dtype} {list(found.shape)}; allowed: uint8 [b h w {channels}], or "
                "a list of arrays, Pillow images or paths"
            )
        if not len(found):
            raise ConfigError("images: none; allowed: one or more")
        if whole and all(view.size == found.shape[1:3] for view in views.values()):
            same: dict[str, Any] = dict.fromkeys(views, found)
            return same
        self._warn(found)
        rng = np.random.default_rng(0)  # nothing is drawn
        out: dict[str, list[np.ndarray]] = {name: [] for name in views}
        for number, image in enumerate(found):
            crops = self.augment(self.open(image, number), views, rng, train=False)
            for name, x in crops.items():
                out[name].append(x)
        return {name: np.stack(x) for name, x in out.items()}

    def _warn(self, images: Any) -> None:
        """Warns of values beyond 8 bits that do not fill the range that is read."""
        sample = []
        for image in images[: values.SAMPLE]:
            if isinstance(image, str | os.PathLike):
                sample.append(values.values_of(os.path.expanduser(os.fspath(image)), self.how))
            else:
                pillow = isinstance(image, Image.Image)
                sample.append(values.values_in(image) if pillow else None)
        if text := values.advice(sample, self.how):
            warnings.warn(text, stacklevel=4)

    def open(self, image: Any, number: int) -> Image.Image | Bands:
        """One image of an array [h w c], a Pillow image or a path."""
        channels = self.how.channels
        if isinstance(image, str | os.PathLike):
            path = os.path.expanduser(os.fspath(image))
            if os.path.isdir(path):  # whose first image would be one of many
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
            found = f"{x.dtype} {list(x.shape)}"
            raise ConfigError(
                f"images: number {number} is {found}; allowed: uint8 [h w {channels}]"
            )
        if channels == 3:
            return Image.fromarray(x)
        return Bands([Image.fromarray(x[..., i].copy()) for i in range(channels)])
