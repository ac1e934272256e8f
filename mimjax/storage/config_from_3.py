"""Translation of the settings of version 3, whose methods had options in place of parts.

In version 4 a method is a composition: its targets, maskings, losses and schedules are sections
that name a class, a term has a section with its weight, and the path of a frozen network is a
setting of the target that owns it. The parts are translated in `config_parts_from_3`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from mimjax.errors import ConfigError
from mimjax.storage import config_parts_from_3 as parts
from mimjax.storage.config_parts_from_3 import Settings

PROJECTION = ("linear/kernel", "linear/bias", "norm/scale", "norm/bias")


def from_3(settings: Settings) -> Settings:
    """Return the settings of version 3 as version 4 writes them.

    Raises:
      ConfigError: they describe what no composition of this version does.
    """
    task = settings.get("task", "")
    came = {"profile": {"steps": None}} if task.startswith("mimjax.") else {}  # with version 4
    settings = came | settings
    path = (settings.pop("teacher", None) or {}).get("path")
    translate = METHODS.get(task)
    if translate is None or "method" not in settings:
        # a user's own task: what is left of the old form is named when it is read
        return settings | ({"teacher": {"path": path}} if path else {})
    try:
        settings["method"] = fresh(translate(settings["method"], path))
    except KeyError as error:
        raise ConfigError(
            f"method: {error.args[0]!r} in the settings of an older version is missing or unknown; "
            "allowed: config.json as a run wrote it"
        ) from None
    if settings["method"]["encoder"].get("project"):
        settings |= with_moved_rules(settings)
    return settings


def fresh(settings: Any) -> Any:
    """Return nested settings in which no section stands twice: one may change without another."""
    if isinstance(settings, dict):
        return {name: fresh(value) for name, value in settings.items()}
    return settings


# ------------------------------------------------------------------ the methods
def mae(old: Settings, path: str | None, encoder_type: str = parts.VIT) -> Settings:
    """Translate MAE: one of three targets, and a decoder."""
    target: Settings = parts.pixels(old["pixel_norm"])
    if old["target"] == "pca":
        target = {"type": "mimjax.targets.pixels:PCA", "components": old["pca_components"]}
    elif old["target"] == "features":
        own = {"network": None, "layer": -1, "size": None, "path": path}
        target = {"type": parts.ENCODER_FEATURES} | own | {k: old[k] for k in ("mean", "std")}
    normalize = "target" if old["target"] == "features" else "none"
    return parts.shared(old, encoder_type) | {
        "masking": parts.masking(old["masking"]),
        "pixel_target": target,
        "decoder": parts.network(old["decoder"], "decoders:MAEDecoder", mlp_ratio=None),
        "pixel": parts.term("pixel_target", "decoder", parts.LOSSES["mse"], normalize=normalize),
    }


def mcmae(old: Settings, path: str | None) -> Settings:
    """Translate MCMAE: `fast` is a masking."""
    new = mae(old, path, parts.CONV_VIT)
    if old["fast"]:
        new["masking"] = parts.random_masking(old["masking"], "views:Complementary")
    return new


def beit(old: Settings, path: str | None) -> Settings:
    """Translate BEiT."""
    return parts.shared(old) | {
        "masking": parts.masking(old["masking"]),
        "code_target": parts.target(old["target"], path, old),
        "head": parts.network(old["head"], "heads:LinearHead"),
        "code": parts.term("code_target", "head", parts.loss_of(old)),
    }


def bootmae(old: Settings, path: str | None) -> Settings:
    """Translate BootMAE: weights of patches, the blocks that are injected, and two schedules."""
    divided = "neighbors_mean" if old["divide_by_weight"] else "neighbors"
    new = parts.shared(old) | {
        "masking": parts.masking(old["masking"], divided if old["weighted_mask"] else "none"),
        "pixel_target": parts.pixels(old["pixel_norm"]),
        "feature_target": parts.own_features("average", [-1], teacher_share(old), noise=False),
    }
    for name, head in (("pixel", "pixel"), ("feature", "linear")):
        part = parts.network(old[f"{name}_decoder"], "decoders:InjectedDecoder", head=head)
        if "head" in part:  # else it is a network of the user
            part["inject"] = old[f"{name}_layer"] if part["inject"] else None
            part["width"] = part["width"] or (512 if name == "pixel" else None)
        new[f"{name}_decoder"] = part
    rise = {"type": "mimjax.methods.bootmae:Lambda", "share": old["lambda_ramp"]}
    momentum = {
        "type": "mimjax.methods.bootmae:Momentum",
        "start": old["ema_start"],
        "middle": old["ema_mid"],
        "end": old["ema_end"],
        "per_step": old["ema_per_step"],
    }
    mse, normalize = parts.LOSSES["mse"], old["feature_norm"]
    feature = {"normalize": normalize, "weight": old["feature_weight"], "schedule": rise}
    return new | {
        "pixel": parts.term("pixel_target", "pixel_decoder", mse, weight=old["pixel_weight"]),
        "feature": parts.term("feature_target", "feature_decoder", mse, **feature),
        "average": parts.average(momentum, "new"),
    }


def teacher_share(old: Settings) -> float | None:
    """Return BootMAE's share of the image that its teacher sees as one of the masked patches."""
    if old["teacher_fraction"] == 1.0:
        return None
    n, masked = parts.counts(old["masking"], old["encoder"])
    return min(round(old["teacher_fraction"] * n) / masked, 1.0)


def latent(old: Settings, final_norm: bool) -> Settings:
    """Translate what CAE and CAE v2 share: the width of the regressor is one of the encoder now."""
    new, regressor = parts.shared(old), dict(old["regressor"])
    width = regressor.pop("width", None)
    if width not in (None, old["encoder"].get("width")):
        new["encoder"]["project"] = width
    more = {"mlp_ratio": 4.0, "final_norm": final_norm}
    return new | {
        "masking": parts.masking(old["masking"]),
        "regressor": parts.network(regressor, "regressor:Regressor", **more),
    }


def cae(old: Settings, path: str | None) -> Settings:
    """Translate CAE: what predicted latents are aligned with is a target."""
    of = "current" if old["align_target"] == "current" else "average"
    decay = old["ema_decay"] if old["align_target"] == "ema" else 0.0
    lagging = parts.average(parts.CONSTANT | {"value": decay}, "old") if of == "average" else None
    mse = parts.LOSSES["mse"]
    return latent(old, final_norm=True) | {
        "average": lagging,
        "code_target": parts.target(old["target"], path, old),
        "align_target": parts.own_features(of, [], 1.0, noise=True),
        "decoder": parts.network(old["decoder"], "regressor:LatentDecoder", mlp_ratio=4.0),
        "code": parts.term("code_target", "decoder", parts.loss_of(old)),
        "align": parts.term("align_target", "regressor", mse, weight=old["align_weight"]),
    }


def caev2(old: Settings, path: str | None) -> Settings:
    """Translate CAE v2: two weights and two forms of the loss are the weights of two terms.

    The code's form is one mean over the class token, visible and masked patches. Where the two
    weights differ, each term has its weight times its share of these tokens.
    """
    new, loss = latent(old, final_norm=False), parts.LOSSES[old["distance"]]
    visible, masked = old["visible_weight"], old["masked_weight"]
    if not (old["regressor"]["depth"] and masked):
        new["regressor"], masked = None, 0.0
    code, (n, m) = old["loss_form"] == "code", parts.counts(old["masking"], old["encoder"])
    seen = "cls+visible" if code else "visible"
    if not visible:
        at, weights = "masked", (masked, 0.0)
    elif not masked:
        at, weights = seen, (visible, 0.0)
    elif not code:
        at, weights = seen, (visible, masked)
    elif visible == masked:
        at, weights = "cls+visible+masked", (visible, 0.0)
    else:
        at, weights = seen, (visible * (1 + n - m) / (1 + n), masked * m / (1 + n))
    return new | {
        "teacher_target": parts.target(old["target"], path, old),
        "head": parts.network(old["head"], "regressor:SharedHead", order=old["head_order"]),
        "token": parts.term("teacher_target", "head", loss, at=at, weight=weights[0]),
        "masked": parts.term("teacher_target", "head", loss, weight=weights[1]),
    }


def mrmae(old: Settings, path: str | None) -> Settings:
    """Translate MR-MAE: which patches are visible is the masking's."""
    mimicked, mse = parts.target(old["target"], path, old), parts.LOSSES["mse"]
    loss = {"type": "mimjax.methods.mrmae:DirectionMSE"} if old["target_norm"] == "l2" else mse
    normalize = "target" if old["target_norm"] == "layernorm" else "none"
    new = parts.shared(old, parts.CONV_VIT) | {
        "masking": parts.random_masking(old["masking"], "base:Random"),
        "pixel_target": parts.pixels(old["pixel_norm"]),
        "mimic_target": mimicked,
        "decoder": parts.network(old["decoder"], "decoders:MAEDecoder", mlp_ratio=None),
        "mimic_head": parts.network(old["mimic_head"], "heads:LinearHead"),
    }
    if old["select"] != "random":
        salient = parts.random_masking(old["masking"], "salient:Salient")
        new["masking"] = salient | {"reads": "mimic_target", "select": old["select"]}
    weights = old["pixel_weight"], old["mimic_weight"]
    if old["mimic_at"] == "decoder":
        check_joint(old)
        joined = {"first": new["pixel_target"], "second": mimicked}
        new["pixel_target"] = {"type": parts.JOINT} | joined
        weights = sum(weights), 0.0
    more = {"at": "visible", "weight": weights[1], "normalize": normalize}
    return new | {
        "pixel": parts.term("pixel_target", "decoder", mse, weight=weights[0]),
        "mimic": parts.term("mimic_target", "mimic_head", loss, **more),
    }


def check_joint(old: Settings) -> None:
    """Raise a ConfigError where pixels and features at the decoder are not one vector's error.

    The error of the joint vector is the mean over its numbers: each part weighs as much as it has
    numbers.
    """
    encoder, width = old["encoder"], feature_width(old["target"])
    patch = encoder["patch"] if "patch" in encoder else math.prod(encoder["strides"])
    numbers, weights = patch**2 * len(old["mean"]), (old["pixel_weight"], old["mimic_weight"])
    equal = math.isclose(weights[0] * (width or 0), weights[1] * numbers)
    if width is None or not all(weights) or not equal or old["target_norm"] != "none":
        raise ConfigError(
            f"method.mimic_at: 'decoder' of an older version, with pixel_weight {weights[0]:g} of "
            f"{numbers} numbers, mimic_weight {weights[1]:g} of {width or '?'} and target_norm "
            f"{old['target_norm']}; allowed: weights in the ratio of the numbers and target_norm "
            "none, which is pixel_target=Joint now"
        )


def feature_width(old: Settings) -> int | None:
    """Return the length of a target's vectors; None = this file does not know it."""
    if old["type"] == parts.JOINT:
        widths = [feature_width(old[part]) for part in ("first", "second")]
        return None if None in widths else sum(w for w in widths if w)
    if old["type"] not in parts.OF_VECTORS:
        return None
    projected = old.get("project") if old.get("feature") is None else old["feature"] == "proj"
    return old["network"]["proj_dim" if projected else "width"]


METHODS: dict[str, Callable[[Settings, str | None], Settings]] = {
    f"mimjax.methods.{name}": translate
    for name, translate in {
        "mae:MAE": mae,
        "mcmae:MCMAE": mcmae,
        "beit:BEiT": beit,
        "bootmae:BootMAE": bootmae,
        "cae:CAE": cae,
        "caev2:CAEv2": caev2,
        "mrmae:MRMAE": mrmae,
    }.items()
}


# ------------------------------------------------------------------ rules over parameter paths
def with_moved_rules(settings: Settings) -> Settings:
    """Return the sections with rules over parameters, where CAE's projection stands elsewhere.

    "projection/..." is "encoder/projection/..." now, so a rule for the encoder would take it, too:
    where the first rule that matches has another value, rules for these paths come first.
    """
    out: Settings = {}
    if "sharding" in settings:
        out["sharding"] = moved_rules(settings["sharding"])
    if "optimizer" in settings:
        names = [name for name in ("decay", "lr_scale") if name in settings["optimizer"]]
        rules = {name: moved_rules(settings["optimizer"][name]) for name in names}
        out["optimizer"] = settings["optimizer"] | rules
    return out


def moved_rules(old: list[Any]) -> list[Any]:
    """Return rules (pattern, value) with the meaning that they had for CAE's projection."""
    rename = lambda pattern: re.sub("^projection/", "encoder/projection/", pattern)
    new = [[rename(pattern), value] for pattern, value in old]
    first = []
    for name in PROJECTION:
        before = value_of(old, f"projection/{name}")
        now = value_of(new, f"encoder/projection/{name}")
        if before != now and before is not None:
            first.append([f"encoder/projection/{name}", before])
    return first + new if first or new != [list(rule) for rule in old] else old


def value_of(rules: list[Any], path: str) -> Any:
    """Return the value of the first rule that matches a path, None where none does."""
    return next((value for pattern, value in rules if re.fullmatch(pattern, path)), None)
