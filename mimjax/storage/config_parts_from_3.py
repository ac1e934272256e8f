"""The parts of a method in the settings of version 3, as sections of version 4.

`config_from_3` puts them together. Both files know the two versions by their words alone and import
no method, so that they stay true when the methods change.
"""

from __future__ import annotations

import math
from typing import Any

from mimjax.errors import ConfigError, UserCodeError
from mimjax.plugs import find_class

Settings = dict[str, Any]

VIT, CONV_VIT = "mimjax.models.vit:ViT", "mimjax.models.conv_vit:ConvViT"
PIXELS, JOINT = "mimjax.targets.pixels:Pixels", "mimjax.targets.joint:Joint"
ENCODER_FEATURES = "mimjax.targets.encoder:EncoderFeatures"
DINO, VQKD = "mimjax.targets.dino:DINO", "mimjax.targets.vqkd:VQKD"
OF_CODES = (
    *("mimjax.targets.dalle:DallE", "mimjax.targets.dvae:DVAE", "mimjax.targets.vqgan:VQGAN"),
    VQKD,
)
OF_VECTORS = (ENCODER_FEATURES, DINO, "mimjax.targets.clip:CLIP")
CONSTANT = {
    "type": "mimjax.schedules:Constant",
    "value": 1.0,
    "warmup_epochs": 0.0,
    "warmup_steps": None,
}
LOSSES: dict[str, Settings] = {
    "mse": {"type": "mimjax.losses:MSE"},
    "cosine": {"type": "mimjax.losses:Cosine"},
    "smooth_l1": {"type": "mimjax.losses:SmoothL1", "beta": 1.0},
    "codes": {"type": "mimjax.losses:CrossEntropy"},
}


def term(target: str, network: str, loss: Settings, **others: Any) -> Settings:
    """Return the section of a term."""
    usual = {"at": "masked", "normalize": "none", "weight": 1.0, "schedule": CONSTANT}
    return {"target": target, "network": network, "loss": loss} | usual | others


def shared(old: Settings, encoder_type: str = VIT) -> Settings:
    """Return the settings that every method has: encoder, statistics, and no further parts."""
    return {
        "encoder": encoder(old["encoder"], encoder_type),
        "regressor": None,
        "average": None,
        "mean": old["mean"],
        "std": old["std"],
    }


def encoder(old: Settings, default: str = VIT) -> Settings:
    """Return the section of an encoder, which names its class, with settings that came later."""
    new = {"type": default} | old
    came = {"project": None} if new["type"] == VIT else {}
    if new["type"].startswith("mimjax."):
        came["pos_grid"] = None
    return came | new


def network(old: Settings, place: str, **others: Any) -> Settings:
    """Return the section of another network, with settings that the shipped one did not have."""
    new = {"type": f"mimjax.models.{place}"} | old
    return others | new if new["type"].endswith(place) else new


def average(decay: Settings, takes: str) -> Settings:
    """Return the section of a moving average of the encoder."""
    own = {"networks": ["encoder"], "decay": decay, "takes": takes, "evaluate": False}
    return {"type": "mimjax.methods.parts:Average"} | own


def grid(encoder: Settings) -> tuple[int, int]:
    """Return rows and columns of an encoder's patches."""
    height, width = encoder["image_size"]
    patch = encoder["patch"] if "patch" in encoder else math.prod(encoder["strides"])
    return height // patch, width // patch


def counts(old: Settings, encoder: Settings) -> tuple[int, int]:
    """Return the numbers of patches and of masked patches, as version 3 rounded them."""
    rows, columns = grid(encoder)
    n, kind = rows * columns, old["kind"]
    if kind == "grid":
        return n, n - -(-rows // 2) * -(-columns // 2)
    if kind == "random" and old["rounding"] == "cae":
        return n, int(n * old["ratio"])
    return n, n - int(n * (1 - old["ratio"]))


MASKINGS = {  # class of each kind, and the settings that it reads
    "random": ("base:Random", ("ratio", "rounding")),
    "grid": ("base:Regular", ()),
    "block": ("block:Block", ("ratio", "min_block", "max_block", "min_aspect")),
    "block_at_most": ("block:BlockAtMost", ("ratio", "min_block", "max_block", "min_aspect")),
    "block_random": (
        "block:BlockRandom",
        ("ratio", "min_block", "max_block", "min_aspect", "num_block", "roll_max"),
    ),
}


def masking(old: Settings, weights: str = "none") -> Settings:
    """Return the section of a masking: the class of its kind with the settings that this reads."""
    place, reads = MASKINGS[old["kind"]]
    new: Settings = {"type": f"mimjax.masking.{place}"} | {name: old[name] for name in reads}
    if old["kind"] == "block_random":
        new["roll"] = "image"
    return new if old["kind"] == "block_at_most" else new | {"weights": weights}


def random_masking(old: Settings, place: str) -> Settings:
    """Return a masking with the number of masked patches of an old one, and other places."""
    rounding = old["rounding"] if old["kind"] == "random" else "mae"
    new = {"ratio": old["ratio"], "rounding": rounding, "weights": "none"}
    return {"type": f"mimjax.masking.{place}"} | new


def pixels(norm: str) -> Settings:
    """Return a target of pixels; "mae" is called by what it does."""
    return {"type": PIXELS, "norm": "patch" if norm == "mae" else norm}


def own_features(of: str, blocks: list[int], masked_share: float | None, noise: bool) -> Settings:
    """Return a target of the run's own features."""
    own = {"of": of, "blocks": blocks, "masked_share": masked_share, "noise": noise}
    return {"type": "mimjax.targets.own:OwnFeatures"} | own


# ------------------------------------------------------------------ targets with frozen networks
def target(old: Settings, path: str | None, method: Settings) -> Settings:
    """Return the section of a target, which now holds the path of its own frozen network.

    Args:
      path: one for all, or as many as there are frozen networks, separated by commas.
      method: the settings of the method, whose images a target of pixels reads.
    """
    owners = count_owners(old)
    paths: list[str | None] = [path] * owners
    if path and "," in path and owners > 1:
        paths = [*path.split(",")]
        if len(paths) != owners:
            raise ConfigError(
                f"teacher.path: {path!r} of an older version names {len(paths)} files for {owners} "
                "networks; allowed: one for each, in the order of the target's parts"
            )
    return with_paths(old, paths, method)


def count_owners(old: Settings) -> int:
    """Return how many parts of a target own frozen networks."""
    if old["type"] == JOINT:
        return count_owners(old["first"]) + count_owners(old["second"])
    return int(old["type"] != PIXELS)


def with_paths(old: Settings, paths: list[str | None], method: Settings) -> Settings:
    """Return the section of a target; each part with frozen networks takes the next of `paths`."""
    if old["type"] == JOINT:
        return old | {name: with_paths(old[name], paths, method) for name in ("first", "second")}
    if old["type"] == PIXELS:
        for name in ("mean", "std"):
            if list(old.get(name, method[name])) != list(method[name]):
                raise ConfigError(
                    f"method.target.{name}: {old[name]!r} of an older version, but method.{name} "
                    f"is {method[name]!r}; allowed: the same (a target reads the student's pixels)"
                )
        return pixels(old.get("norm", "none"))
    new, path = dict(old), paths.pop(0)
    if path or new["type"] in OF_CODES + OF_VECTORS:
        new["path"] = path
    if new["type"] in (DINO, VQKD, ENCODER_FEATURES):
        new["network"] = encoder(new["network"])
    return {"layer": None} | new if new["type"] == ENCODER_FEATURES else new


def of_codes(old: Settings) -> bool:
    """Return whether a target's values are codes; that of a user's own class is asked."""
    if old["type"] in OF_CODES:
        return True
    if old["type"] in (PIXELS, JOINT, *OF_VECTORS):
        return False
    try:
        cls = find_class(old["type"], "method.target.type")
    except (ConfigError, UserCodeError):
        return False  # whoever reads the section says what is wrong with the class
    return getattr(cls, "kind", "") == "codes" or getattr(cls, "discrete", False)


def loss_of(old: Settings) -> Settings:
    """Return the loss of a method whose target may be codes."""
    return LOSSES["codes" if of_codes(old["target"]) else old["distance"]]
