"""Augmentation of one image: a random crop box, a flip and changes of color for each crop.

The operations are those of torchvision's `RandomResizedCrop`, `RandomHorizontalFlip` and
`ColorJitter` with Pillow's antialiased resize, as in the published pretraining code of MAE, BEiT,
CAE and BootMAE. A tokenizer that needs a second image size gets a second view of the same crop
(BEiT's "two pic" transform); a method that compares two crops of an image
gives the second one another name (`View.crop`). Fine-tuning replaces the jitter by RandAugment
(`rand_augment.py`), after crop and flip. Normalization, random erasing and mixup are not done here;
they run on the device.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from mimjax import values
from mimjax.data import rand_augment as rand
from mimjax.data.bands import Bands
from mimjax.data.images import check_option
from mimjax.task import ConfigError, View
from mimjax.values import NonNegative, Positive, Share, Some, Text

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Params(NamedTuple):
    """Random parameters of one crop of an example.

    Attributes:
      box: (left, top, right, bottom) in pixels of the source image; None = center crop.
      flip: whether the image is mirrored left-right.
      jitter: (number of the operation, factor) in the order of application: 0 = brightness,
        1 = contrast, 2 = saturation.
      steps: what RandAugment does, in order.
    """

    box: tuple[int, int, int, int] | None
    flip: bool
    jitter: tuple[tuple[int, float], ...]
    steps: tuple[rand.Step, ...] = ()


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images, and the center crop of evaluation.

    Attributes:
      crop: "random_resized"; "fixed" = the largest box of the view's shape at a random place
        (short side resized to fit, then a random crop: MAE's ablation "fixed size"); "none" =
        the center crop of evaluation.
      scale: range of the box area relative to the image; MAE and BootMAE use (0.2, 1).
      ratio: range of the box's width / height.
      flip: probability of a left-right flip.
      color_jitter: strength of brightness, contrast and saturation; BEiT and CAE use 0.4. The
        jitter is applied to the whole image before the crop, as in the official transform.
      eval_crop: side of the center crop relative to the resized image: 1 = the crop has the full
        short side, 0.875 = the usual 224 of 256 pixels.
      rand_augment: timm's text for RandAugment, "rand-m9-mstd0.5-inc1" in the published fine-tuning
        recipes, which have no color jitter beside it; None = none. It is applied to each view after
        crop and flip, with the filter of the view.
      fill: color of pixels that RandAugment moves in from outside, 0 to 255; the mean of the
        images, which the task has. timm's default.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("fill",)

    crop: Literal["random_resized", "fixed", "none"] = "random_resized"
    scale: tuple[Some, Some] = (0.2, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Share = 0.5
    color_jitter: NonNegative = 0.0
    eval_crop: Some = 1.0
    # Fields without repr are no part of the fingerprints of runs that do not set them.
    rand_augment: Annotated[str, Text(rand.ALLOWED)] | None = dataclasses.field(
        default=None, repr=False
    )
    fill: tuple[int, ...] = dataclasses.field(default=(128, 128, 128), repr=False)

    def __post_init__(self):
        # Configs hold lists; tuples keep the dataclass hashable and its repr stable.
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        values.check(self, "data.augment")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            check_option(f"augment.{name}", (low, high), low <= high, "the smaller number first")
        if self.rand_augment is not None:
            rand.parse(self.rand_augment)
            allowed = "0 beside rand_augment (timm leaves the jitter out there)"
            check_option("augment.color_jitter", self.color_jitter, not self.color_jitter, allowed)

    @property
    def traits(self) -> tuple[Any, ...]:
        """What decides pixels beside the fields that `repr` shows."""
        return () if self.rand_augment is None else (self.rand_augment, self.fill)

    def check(self, views: dict[str, View], channels: int) -> None:
        """Check that changes of color suit the images, and RandAugment the views.

        Args:
          views: those of the task.
          channels: of the images.

        Raises:
          ConfigError: they do not.
        """
        jitter = f"{self.color_jitter:g}" if self.color_jitter else None
        for name, value, none in (
            ("color_jitter", jitter, 0),
            ("rand_augment", self.rand_augment, None),
        ):
            if value is not None and channels != 3:
                raise ConfigError(
                    f"data.augment.{name}: {value}, but data.channels is {channels}; allowed: "
                    f"{none} (it knows red, green and blue)"
                )
        for view in views.values():
            self.filter(view)

    def filter(self, view: View) -> Image.Resampling:
        """Return the filter of a view.

        Raises:
          ConfigError: there is none of its name, or RandAugment cannot use it.
        """
        allowed = [name for name in FILTERS if name != "lanczos" or self.rand_augment is None]
        if view.resample not in allowed:
            words = "" if self.rand_augment is None else " (Pillow turns images by no other)"
            raise ConfigError(
                f"view.resample: found {view.resample!r}; allowed: {', '.join(allowed)}{words}"
            )
        return FILTERS[view.resample]

    def params(
        self, size: tuple[int, int], views: dict[str, View], rng: np.random.Generator
    ) -> Params:
        """Draw the parameters of one crop.

        Args:
          size: (height, width) of the source image in pixels.
          views: those of the crop; with "fixed" the box has the proportions of the first one.
          rng: generator of this crop. The draws are always made in the same order: box, flip,
            jitter, RandAugment.
        """
        box = None
        if self.crop == "random_resized":
            box = random_resized_box(size, self.scale, self.ratio, rng)
        elif self.crop == "fixed":
            box = fixed_box(size, next(iter(views.values())).size, rng)
        flip = bool(rng.random() < self.flip)
        jitter = ()
        if self.color_jitter:
            low, high = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
            jitter = tuple((int(n), float(rng.uniform(low, high))) for n in rng.permutation(3))
        steps = ()
        if self.rand_augment is not None:
            steps = rand.parse(self.rand_augment).draw(rng)
        return Params(box, flip, jitter, steps)

    def __call__(
        self,
        image: Image.Image | Bands,
        views: dict[str, View],
        rng: np.random.Generator,
        train: bool = True,
    ) -> dict[str, np.ndarray]:
        """Return all views of one image.

        Args:
          image: RGB image, or Bands without a color jitter and RandAugment.
          views: {name: size, filter and crop}.
          rng: generator of this example; unused if `train` is False.
          train: False = center crop without any augmentation, for views of all crops.

        Returns:
          {name: uint8 [h w c]}.

        Raises:
          ConfigError: colors are to be changed in Bands, or a view has an unknown filter.
        """
        if not train:
            center = Params(None, False, ())
            return {name: self._view(image, view, center) for name, view in views.items()}
        crops: dict[str, dict[str, View]] = {}
        for name, view in views.items():
            crops.setdefault(view.crop, {})[name] = view
        generators = {crop: crop_generator(crop, rng) for crop in crops}  # before `rng` is read
        out: dict[str, np.ndarray] = {}
        if isinstance(image, Bands):
            for name, none in (("color_jitter", 0), ("rand_augment", None)):
                value, allowed = getattr(self, name), f"{none} for channels other than three"
                check_option(f"augment.{name}", value, value == none, allowed)
        for crop, members in crops.items():
            params = self.params((image.height, image.width), members, generators[crop])
            cut = _jittered(image, params)
            if params.box is not None:
                cut = cut.crop(params.box)
            out |= {name: self._view(cut, view, params) for name, view in members.items()}
        return {name: out[name] for name in views}

    def _view(self, image: Image.Image | Bands, view: View, params: Params) -> np.ndarray:
        """Return one view, uint8 [h w c]; the image is already cropped to the box, if any."""
        resample = self.filter(view)
        height, width = view.size
        if params.box is None:
            image = center_crop(image, view, self.eval_crop)
        else:
            image = image.resize((width, height), resample)
        if params.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if params.steps:
            assert isinstance(image, Image.Image)
            paint = rand.Paint(self.fill, resample)
            image = rand.apply(image, params.steps, paint)
        return np.array(image)  # a copy: Pillow's own buffer is read-only


def _jittered(image: Image.Image | Bands, params: Params) -> Image.Image | Bands:
    """Return the whole image with another brightness, contrast and saturation."""
    for number, factor in params.jitter:
        assert isinstance(image, Image.Image)
        image = _JITTERS[number](image).enhance(factor)
    return image


def crop_generator(crop: str, rng: np.random.Generator) -> np.random.Generator:
    """Return the generator of one crop of an example.

    That of "image" is `rng` itself, whose numbers thus depend on no other crop. Another crop's is
    seeded by its name and by the state of `rng`, which does not change.
    """
    if crop == "image":
        return rng
    state = int(copy.deepcopy(rng).integers(1 << 63))
    return np.random.default_rng([state, zlib.crc32(crop.encode())])


def random_resized_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Return the box of torchvision's `RandomResizedCrop`.

    After ten draws that do not fit into the image it is the center box with the nearest allowed
    ratio.

    Args:
      size: (height, width) of the image in pixels.
      scale: range of the box area relative to the image, drawn uniformly.
      ratio: range of width / height, drawn log-uniformly.
      rng: generator.

    Returns:
      (left, top, right, bottom) in pixels, never empty.
    """
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def fixed_box(
    size: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return the largest box with the proportions of `shape`, at a random place.

    Args:
      size: (height, width) of the image in pixels.
      shape: (height, width) of the view.
      rng: generator.

    Returns:
      (left, top, right, bottom) in pixels.
    """
    height, width = size
    zoom = min(height / shape[0], width / shape[1])
    h = min(height, max(1, round(shape[0] * zoom)))
    w = min(width, max(1, round(shape[1] * zoom)))
    top = int(rng.integers(height - h + 1))
    left = int(rng.integers(width - w + 1))
    return left, top, left + w, top + h


def center_crop(image: Image.Image | Bands, view: View, eval_crop: float) -> Image.Image | Bands:
    """Return the center crop of an image resized to side / eval_crop, for any shape of the view.

    The resized image keeps its proportions and covers the view. As in torchvision, the side that
    follows from the proportions is truncated to an integer, and the offset of the crop is rounded
    half to even.
    """
    height, width = view.size
    if height * image.width >= width * image.height:
        h = int(height / eval_crop)
        w = max(width, int(h * image.width / image.height))
    else:
        w = int(width / eval_crop)
        h = max(height, int(w * image.height / image.width))
    top, left = round((h - height) / 2), round((w - width) / 2)
    if (w, h) != image.size:
        image = image.resize((w, h), FILTERS[view.resample])
    return image.crop((left, top, left + width, top + height))
