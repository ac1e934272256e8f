"""Checks of settings that several methods share; each raises one clear line (ConfigError)."""

from __future__ import annotations

from mimjax.errors import ConfigError


def choice(key: str, value, allowed) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r}; allowed: {', '.join(map(str, allowed))}")


def encoder(key: str, vit) -> None:
    """An encoder whose image divides into patches and whose width divides into heads."""
    if hasattr(vit, "strides"):
        conv_stages(key, vit)
    for name, side in zip(("height", "width"), vit.image_size, strict=True):
        if side <= 0 or side % vit.patch:
            raise ConfigError(
                f"{key}.image_size: {name} {side} is not divisible by {key}.patch {vit.patch}; "
                f"allowed: multiples of {vit.patch}"
            )
    if vit.width % 4:
        raise ConfigError(
            f"{key}.width: {vit.width}; allowed: multiples of 4 (sine-cosine positions)"
        )
    if not 0.0 <= vit.drop_path < 1.0:
        raise ConfigError(f"{key}.drop_path: {vit.drop_path}; allowed: 0 up to below 1")
    if not vit.fuse_layers:
        raise ConfigError(f"{key}.fuse_layers: empty; allowed: one block or more, (-1,) = the last")
    for index in vit.fuse_layers:
        block_index(f"{key}.fuse_layers", index, vit.depth)
    heads(key, vit)


def conv_stages(key: str, net) -> None:
    """A ConvViT's stages: strides that divide the image, one setting per stage, its positions."""
    choice(f"{key}.pos_embed", net.pos_embed, ("sincos_xy", "learned"))
    stages = net.stage_widths, net.stage_depths, net.stage_mlp_ratios
    if len(net.strides) != 3 or min(net.strides) < 1 or any(len(s) != 2 for s in stages):
        raise ConfigError(
            f"{key}: strides {net.strides}, stage_widths, _depths and _mlp_ratios {stages}; "
            "allowed: three strides of 1 or more, and two values of each of the others"
        )
    if min(min(s) for s in stages) <= 0:
        raise ConfigError(
            f"{key}: stage_widths, stage_depths, stage_mlp_ratios {stages}; allowed: above 0"
        )
    for name, side in zip(("height", "width"), net.image_size, strict=True):
        if side <= 0 or side % net.patch:
            raise ConfigError(
                f"{key}.image_size: {name} {side} is not divisible by {net.patch}, the product of "
                f"{key}.strides {net.strides}; allowed: multiples of {net.patch}"
            )


def heads(key: str, net, floor: bool = False) -> None:
    """The heads divide the width; with `floor`, at least one channel per head suffices."""
    if net.heads < 1 or net.width < net.heads or (net.width % net.heads and not floor):
        raise ConfigError(
            f"{key}.heads: {net.heads} does not divide {key}.width {net.width}; "
            f"allowed: divisors of {net.width}"
        )
    if net.depth < 1:
        raise ConfigError(f"{key}.depth: {net.depth}; allowed: 1 or more")


def block_index(key: str, index: int, depth: int) -> None:
    """An encoder block, counted from 0 or, negative, from the end."""
    if not -depth <= index < depth:
        raise ConfigError(f"{key}: {index}; allowed: {-depth} to {depth - 1}")
