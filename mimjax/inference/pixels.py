"""Whether a published decoder predicts pixels as they are or normalized in each patch.

No tensor shows it. Drawn as if they were normalized, plain predictions would get the true mean and
deviation of every hidden patch, and the picture would look right whatever the decoder says.
"""

from __future__ import annotations

import copy
import functools

from mimjax import patches, schema, values
from mimjax.errors import ConfigError
from mimjax.schema import Config
from mimjax.torch_io.read.sizes import FileTensors
from mimjax.torch_io.tables import methods

PIXELS = "mimjax.targets.pixels:Pixels"
WORDS = {
    "none": "plain pixels",
    "patch": "pixels normalized per patch",
    "channel": "pixels normalized per patch and channel",
}


def say(c: Config, file: FileTensors, norm: str | None) -> bool:
    """Write how a file's decoder normalizes the pixels that it predicts into a method's section.

    Args:
      c: a config with the settings that the method publishes.
      norm: what the caller says; None = what stands beside the file.

    Returns:
      Whether anybody says it. The official MAE and ConvMAE codes have a flag for it, whose two
      values give files that no tensor tells apart; others' codes fix it.

    Raises:
      ConfigError: the caller contradicts what stands beside the file, or nothing here predicts
        pixels.
    """
    names = targets(c)
    if norm is not None and not names:
        raise ConfigError(f"pixel_norm: {norm!r}; allowed: for files of decoders of pixels alone")
    told = {True: "patch", False: "none"}.get(file.beside.norm_pix)  # type: ignore[arg-type]
    if norm and told and norm != told:
        raise ConfigError(f"pixel_norm: {norm!r}; allowed: {told!r}, as {file.beside.source} has")
    for name in names:
        if norm or told:
            c.method[name].norm = values.fit(patches.PatchNorm, norm or told, "pixel_norm")
    flag = file.layout in methods.NORM_PIX_BY_FLAG and "settings" not in file.about
    return not names or not flag or bool(norm or told)


def targets(c: Config) -> list[str]:
    """Return the names of a method's targets that are pixels."""
    return [k for k, v in c.method.items() if schema.is_section(v) and v.get("type") == PIXELS]


def taken_over(c: Config, file: FileTensors) -> tuple[Config, list[str]]:
    """Return a config with how a file's networks see and predict pixels, and lines about it.

    The config is to be that of the file: as sizes are, the statistics of images and, where there
    is a decoder, the normalization that it predicts are those that stand beside the file.
    """
    c, lines, told = copy.deepcopy(c).unlock(), [], file.beside
    new = {"method.mean": told.mean, "method.std": told.std} if told.mean else {}
    if file.has("decoder") and told.norm_pix is not None:
        norm = "patch" if told.norm_pix else "none"
        new |= {f"method.{name}.norm": norm for name in targets(c)}
    for key, value in new.items():
        *sections, last = key.split(".")
        node = functools.reduce(lambda node, name: node[name], sections, c)
        if node[last] != value:
            source = told.source if last == "norm" else told.processor
            lines.append(f"from {source}: {key}={value} (config: {node[last]})")
            node[last] = value
    return c.lock(), lines


def kept(c: Config, file: FileTensors) -> list[str]:
    """Return lines that say how pixels stay normalized for a decoder that a config gets of a file.

    Args:
      c: the config, whose targets keep their settings.
      file: with what stands beside it.
    """
    if "settings" in file.about or not file.has("decoder"):
        return []
    told, lines = file.beside.norm_pix, []
    for name in targets(c):
        norm = c.method[name].norm
        says = f"{WORDS[norm]} as the config says (method.{name}.norm={norm!r})"
        if told is None and file.layout in methods.NORM_PIX_BY_FLAG:
            lines.append(f"{says}; the file does not tell")
        elif told is not None and told != (norm != "none"):
            lines.append(
                f"WARNING: {says}, but {file.beside.source} has norm_pix_loss={told}: its decoder "
                "predicts the others"
            )
    return lines


def refuse(norm: str | None, why: str) -> None:
    """Refuse a normalization where nobody asks for it.

    Raises:
      ConfigError: one is given.
    """
    if norm is not None:
        raise ConfigError(f"pixel_norm: {norm!r}, but {why}; allowed: without")


def question(path: str) -> str:
    """Return why a file's decoder is not drawn."""
    return (
        f"{path}: its decoder predicts pixels as they are or normalized in each patch, which no "
        "tensor shows; allowed: pixel_norm='none' (mae_visualize files) or 'patch' (the official "
        "pretraining command), or transformers' config.json beside it"
    )
