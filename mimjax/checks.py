"""Checks of settings that several methods share; each raises one clear line (ConfigError)."""

from __future__ import annotations

from mimjax.errors import ConfigError


def statistics(key: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """A mean and a standard deviation for every channel."""
    if not mean or len(mean) != len(std):
        raise ConfigError(
            f"{key}.mean, {key}.std: {mean}, {std}; allowed: one number per channel in each "
            "(python -m mimjax.data.stats computes them)"
        )


def sine_cosine(key: str, net) -> None:
    """The width of a network with sine-cosine positions: they come in quarters."""
    if net.width % 4 and getattr(net, "pos_embed", "sincos").startswith("sincos"):
        raise ConfigError(
            f"{key}.width: {net.width}; allowed: multiples of 4 (sine-cosine positions)"
        )


def encoder(key: str, vit) -> None:
    """An encoder whose image divides into patches and whose width divides into heads."""
    if hasattr(vit, "strides"):
        conv_stages(key, vit)
    for name, side in zip(("height", "width"), vit.image_size, strict=True):
        if side % vit.patch:
            raise ConfigError(
                f"{key}.image_size: {name} {side} is not divisible by {key}.patch {vit.patch}; "
                f"allowed: multiples of {vit.patch}"
            )
    sine_cosine(key, vit)
    if not vit.fuse_layers:
        raise ConfigError(f"{key}.fuse_layers: empty; allowed: one block or more, (-1,) = the last")
    for index in vit.fuse_layers:
        block_index(f"{key}.fuse_layers", index, vit.depth)
    heads(key, vit)


def conv_stages(key: str, net) -> None:
    """A ConvViT's strides divide the image."""
    for name, side in zip(("height", "width"), net.image_size, strict=True):
        if side % net.patch:
            raise ConfigError(
                f"{key}.image_size: {name} {side} is not divisible by {net.patch}, the product of "
                f"{key}.strides {net.strides}; allowed: multiples of {net.patch}"
            )


def heads(key: str, net, floor: bool = False) -> None:
    """The heads divide the width; with `floor`, at least one channel per head suffices."""
    if net.width < net.heads or (net.width % net.heads and not floor):
        raise ConfigError(
            f"{key}.heads: {net.heads} does not divide {key}.width {net.width}; "
            f"allowed: divisors of {net.width}"
        )


def block_index(key: str, index: int, depth: int) -> None:
    """An encoder block, counted from 0 or, negative, from the end."""
    if not -depth <= index < depth:
        raise ConfigError(f"{key}: {index}; allowed: {-depth} to {depth - 1}")
