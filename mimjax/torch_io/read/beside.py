"""What stands beside a file of weights: `config.json` and `preprocessor_config.json`.

transformers and timm write there what no tensor shows: heads, activation, the epsilon of norms,
how images are resized, cropped and normalized, how a head pools, whether a decoder predicts
normalized pixels. A value is taken as it stands or contradicted aloud; a function that no network
here computes is refused, and so is a config of another network than the tensors'.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mimjax.errors import ConfigError
from mimjax.losses import LN_EPS
from mimjax.torch_io.read import classes

if TYPE_CHECKING:
    from mimjax.torch_io.read.sizes import FileTensors

# spellings of the one activation that the encoders here have
GELU = ("gelu", "gelu_python", "GELU", "nn.GELU")
QUICK = ("quick_gelu", "quickgelu")  # CLIP's
SILU = ("silu", "swish", "SiLU", "nn.SiLU")  # of gates
EPS = 1e-5  # below it, another epsilon moves features by less than about 1e-4
# Pillow's filters by their numbers, and those that images are resized with here
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
OURS = FILTERS[1:4]
SIZES = ("width", "depth", "patch", "channels")  # what the tensors show, too


@dataclasses.dataclass(frozen=True)
class Beside:
    """The facts; None = nothing says it.

    Attributes:
      source: the file that says it, "" = there is none.
      processor: the file that says how images are prepared, "" = there is none.
      heads, decoder_heads: numbers of attention heads.
      width, depth, patch, channels: sizes of the encoder and its images.
      image_size: (height, width) of the images in pixels.
      biases: whether queries, keys and values have biases.
      timm: whether timm wrote it, which resizes positions that are of another image size.
      mean, std: statistics of the images.
      resample: name of the filter with which they are resized, one of FILTERS.
      crop: side of the center crop relative to the resized image.
      squeezed: whether they are resized to the encoder's size whatever their shape.
      norm_pix: whether a decoder predicts pixels that are normalized in each patch.
      activation, eps: of the blocks' MLPs, and of the norms.
      rope_theta: base of the periods by which positions turn queries and keys.
      pool: what a head reads, timm's words: "token", "avg", "map", ...
      pool_said: whether the caller said it, and not the file.
      head_norm: whether the final norm stands after pooling.
      classes: numbers and names of the classes of a head, by number, see `classes.told`.
    """

    source: str = ""
    processor: str = ""
    heads: int | None = None
    decoder_heads: int | None = None
    width: int | None = None
    depth: int | None = None
    patch: int | None = None
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    biases: bool | None = None
    timm: bool = False
    resample: str | None = None
    crop: float | None = None
    squeezed: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_pix: bool | None = None
    activation: str | None = None
    eps: float | None = None
    rope_theta: float | None = None
    pool: str | None = None
    pool_said: bool = False
    head_norm: bool | None = None
    classes: tuple[tuple[int, str], ...] = ()

    def check(self, quick: bool = False) -> None:
        """Check that the networks here compute what the file's network does.

        Args:
          quick: whether the network is CLIP's, whose activation is another one.

        Raises:
          ConfigError: another activation or epsilon.
        """
        self.check_activation(QUICK if quick else GELU)
        if self.eps is not None and self.eps > EPS:
            raise ConfigError(
                f"{self.source}: epsilon of norms {self.eps:g}; allowed: at most {EPS:g} (norms "
                f"are computed with {LN_EPS:g})"
            )

    def check_activation(self, allowed: tuple[str, ...]) -> None:
        """Check that the activation has one of these names, all of one function.

        Raises:
          ConfigError: it is another one.
        """
        if self.activation is not None and self.activation not in allowed:
            raise ConfigError(
                f"{self.source}: activation {self.activation!r}; allowed: {allowed[0]}, which is "
                "the one that this network computes"
            )

    def check_numbers(self) -> None:
        """Check that the numbers can be computed with.

        Raises:
          ConfigError: one is not above 0, or not finite.
        """
        for name in ("heads", "decoder_heads", *SIZES, "image_size", "eps", "rope_theta"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not 0 < number < math.inf:
                    raise ConfigError(f"{self.source}: {name}: {number}; allowed: numbers above 0")

    def check_tensors(self, file: FileTensors) -> None:
        """Check that the config is of the network whose tensors a file holds.

        The heads of another network's config would fit without an error.

        Raises:
          ConfigError: a size that the tensors show is another one.
        """
        shown = shown_by(file)
        patches = shown.pop("patches", ())
        for name, theirs in shown.items():
            mine = getattr(self, name)
            if mine is not None and mine != theirs:
                raise self._other(f"{name} {mine}", file, theirs)
        if patches and self.image_size and not self.timm and self._patches(file) not in patches:
            raise self._other(f"image_size {self.image_size}", file, f"{patches[0]} patches")

    def size_of(self, file: FileTensors) -> tuple[int, int] | None:
        """Return the size of a file's images; None = nothing says it, or positions say another."""
        patches = shown_by(file).get("patches", ())
        return self.image_size if not patches or self._patches(file) in patches else None

    def _patches(self, file: FileTensors) -> int | None:
        """Return the number of patches in an image; None = nothing says its size."""
        patch = shown_by(file).get("patch")
        if not (patch and self.image_size):
            return None
        return (self.image_size[0] // patch) * (self.image_size[1] // patch)

    def _other(self, mine: str, file: FileTensors, theirs: Any) -> ConfigError:
        """Return the error of a config that is of another network than the tensors."""
        return ConfigError(
            f"{self.source}: {mine}, but the tensors of {file.where} have {theirs}; allowed: the "
            "config.json of this file, or none beside it"
        )

    def lines(self, eps: float = LN_EPS, given: Iterable[str] = ()) -> list[str]:
        """Return what was taken, in words; [] = nothing.

        Args:
          eps: with which the network computes its norms.
          given: names of what the caller says instead.
        """
        told = {k: getattr(self, k) for k in ("heads", "decoder_heads", "norm_pix", "activation")}
        told["pool"] = None if self.pool_said else self.pool
        taken = [f"{k}={v}" for k, v in told.items() if v is not None]
        if self.eps is not None:
            computed = f" (computed with {eps:g})" if abs(self.eps - eps) > 1e-9 else ""
            taken.append(f"epsilon of norms {self.eps:g}{computed}")
        lines = [f"from {self.source}: {', '.join(taken)}"] if taken else []
        return lines + self._image_lines(set(given))

    def _image_lines(self, given: set[str]) -> list[str]:
        """Return what was taken of how images are prepared, in words."""
        told = {k: getattr(self, k) for k in ("mean", "std", "resample", "crop")}
        told = {k: v for k, v in told.items() if v is not None}
        given = given | ({"resample"} if self.resample not in OURS else set())
        words = lambda names: ", ".join(f"{k}={told[k]}" for k in names)
        taken, other = [k for k in told if k not in given], [k for k in told if k in given]
        lines = [f"from {self.processor}: {words(taken)}"] if taken else []
        if other:
            lines.append(
                f"{', '.join(other)} as elsewhere here; {self.processor} has {words(other)}"
            )
        if self.squeezed:
            lines.append(
                f"{self.processor} squeezes images that are no squares; here they are cropped"
            )
        return lines


def shown_by(file: FileTensors) -> dict[str, Any]:
    """Return what the tensors of a file show: fields of `Beside`, and "patches".

    These are the numbers of patches in an image that its positions may be for: where the row of the
    class token is one of zeros, it may have been put there by `imports.official_names`.
    """
    roots = ("encoder", "clip", "dino", "vision")
    root = next((r for r in roots if f"{r}/patch_embed/kernel" in file), None)
    kernel = file.shape(f"{root}/patch_embed/kernel") if root else ()
    if root is None or len(kernel) != 4:
        return {}  # another kind of network, or our own names, whose metadata say it all
    width, channels, patch, _ = kernel
    out: dict[str, Any] = {
        "width": width,
        "channels": channels,
        "patch": patch,
        "depth": file.blocks(root),
    }
    if any(f"{root}/block_00/attn/{bias}" in file for bias in ("qkv/bias", "q_bias")):
        out["biases"] = True
    if table := next((p for p in file.keys if p.startswith(f"{root}/rel_pos")), None):
        out["heads"] = file.shape(table)[1]
    if f"{root}/pos_embed" in file:
        tokens = f"{root}/cls_token"
        classes = file.shape(tokens) if tokens in file else (0, 0)
        (key, *_), rows = file.keys[f"{root}/pos_embed"], file.shape(f"{root}/pos_embed")[-2]
        count = rows - (classes[-2] if len(classes) > 1 else 1)
        added = rows > count and not file.state[key].reshape(rows, -1)[0].any()
        out["patches"] = (count, count - 1) if added else (count,)
    return out


def settings(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; {} = there is no file, or another value.

    Raises:
      ConfigError: it cannot be read, or holds no JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); allowed: the file as a "
            "library wrote it, or none"
        ) from None
    return found if isinstance(found, dict) else {}


def read(path: str) -> Beside:
    """Return what stands beside the file of weights at `path`.

    Raises:
      ConfigError: a file cannot be read, is of a network that is none of ours, or has a number that
        means nothing.
    """
    folder = os.path.dirname(os.path.expanduser(path))
    place = os.path.join(folder, "config.json")
    processor = os.path.join(folder, "preprocessor_config.json")
    whole, images = settings(place), settings(processor)
    part = lambda name: x if isinstance(x := whole.get(name), dict) else {}
    args, pretrained = part("model_args"), part("pretrained_cfg")
    outer = part("vision_config") or whole
    turns = outer.get("rope_parameters")  # transformers 5's models of other kinds
    sections = (outer, args, pretrained, turns if isinstance(turns, dict) else {})

    def first(kind: type | tuple[type, ...], *names: str) -> Any:
        found = (s[n] for s in sections for n in names if n in s)
        return next((x for x in found if isinstance(x, kind) and type(x) is not bool), None)

    def flag(*names: str) -> bool | None:
        found = (s[n] for s in sections for n in names if n in s)
        return next((x for x in found if isinstance(x, bool)), None)

    pool, pooled = first(str, "global_pool"), flag("use_mean_pooling")
    pool = args.get("global_pool", whole.get("global_pool", pool))
    if pooled is not None:
        pool = "avg" if pooled else "token"
    side = args.get("img_size", outer.get("image_size"))
    channels = first(int, "num_channels", "in_chans")
    facts = Beside(
        heads=first(int, "num_attention_heads", "num_heads"),
        decoder_heads=first(int, "decoder_num_attention_heads"),
        width=first(int, "hidden_size", "embed_dim"),
        depth=first(int, "num_hidden_layers", "depth"),
        patch=first(int, "patch_size"),
        channels=channels,
        image_size=sides(side) or sides((pretrained.get("input_size") or ())[1:]),
        biases=flag("qkv_bias"),
        timm="architecture" in whole,
        norm_pix=flag("norm_pix_loss"),
        activation=first(str, "hidden_act", "act_layer"),
        eps=first((int, float), "layer_norm_eps"),
        rope_theta=first((int, float), "rope_theta", "rope_temperature"),
        pool=pool if isinstance(pool, str) else None,
        head_norm=flag("fc_norm"),
        classes=classes.told(whole) or classes.told(pretrained),
    )
    facts = facts if facts == Beside() else dataclasses.replace(facts, source=place)
    facts.check_numbers()
    prepared = prepared_by(images, channels or 3, processor) if images else {}
    if not prepared:
        prepared, processor = prepared_by_timm(pretrained), place
    return dataclasses.replace(facts, **prepared, processor=processor) if prepared else facts


def sides(value: Any) -> tuple[int, int] | None:
    """Return height and width of an image, given as one number or two; None = it is neither."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, list | tuple) or [type(x) for x in pair] != [int, int]:
        return None
    return pair[0], pair[1]


def prepared_by_timm(pretrained: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Beside` that a `pretrained_cfg` of timm says of images."""
    mean, std = (numbers(pretrained.get(k)) for k in ("mean", "std"))
    crop, how = pretrained.get("crop_pct"), pretrained.get("interpolation")
    out: dict[str, Any] = {"mean": mean, "std": std} if mean and std else {}
    if isinstance(how, str) and how in FILTERS:
        out["resample"] = how
    if isinstance(crop, int | float) and 0 < crop <= 1:
        out["crop"] = float(crop)
    return out | ({"squeezed": True} if pretrained.get("crop_mode") == "squash" else {})


def prepared_by(images: dict[str, Any], channels: int, where: str) -> dict[str, Any]:
    """Return the fields of `Beside` that an image processor of transformers says.

    Args:
      images: its settings.
      channels: of the images, where one number stands for all of them.
      where: the file, for errors.

    Raises:
      ConfigError: its statistics are not complete.
    """
    out = statistics(images, channels, where)
    if images.get("do_resize") is False:
        return out
    how, size = images.get("resample"), images.get("size")
    if isinstance(how, int) and 0 <= how < len(FILTERS):
        out["resample"] = FILTERS[how]
    short, crop = (s if isinstance(s, dict) else {} for s in (size, images.get("crop_size")))
    short, crop = short.get("shortest_edge"), crop.get("height")
    if images.get("do_center_crop") and isinstance(short, int) and isinstance(crop, int):
        if 0 < crop <= short:
            out["crop"] = crop / short
    elif not images.get("do_center_crop") and short is None and size is not None:
        out["squeezed"] = True
    return out


def statistics(images: dict[str, Any], channels: int, where: str) -> dict[str, Any]:
    """Return mean and std for pixels that are scaled to 0 to 1; {} = nothing says them.

    Another factor than 1 / 255 is part of them.

    Args:
      images, channels, where: see `prepared_by`.

    Raises:
      ConfigError: only one of them is said, or none where the factor is another.
    """
    factor = images.get("rescale_factor", 1 / 255)
    scale = 255 * factor if images.get("do_rescale") is not False else 255.0
    if images.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = (numbers(images.get(k), channels) for k in ("image_mean", "image_std"))
    same = abs(scale - 1) < 1e-6
    if mean is None and std is None and same:
        return {}
    if not (mean and std and scale > 0):
        found = {k: images.get(k) for k in ("image_mean", "image_std", "rescale_factor")}
        raise ConfigError(f"{where}: {found}; allowed: numbers for image_mean and image_std")
    scaled = lambda values: values if same else tuple(x / scale for x in values)
    return {"mean": scaled(mean), "std": scaled(std)}


def numbers(value: Any, channels: int = 1) -> tuple[float, ...] | None:
    """Return a list of numbers, or one number for all channels, as a tuple; None = it is none."""
    if isinstance(value, int | float):
        value = [value] * channels
    if not isinstance(value, list) or not all(isinstance(x, int | float) for x in value):
        return None
    return tuple(map(float, value)) or None
