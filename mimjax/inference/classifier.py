"""The classifier of a published file: what its head reads, and whether it can be computed here."""

from __future__ import annotations

import dataclasses

from mimjax.errors import ConfigError
from mimjax.models.heads import Classifier
from mimjax.torch_io.read import detect, sizes, vision
from mimjax.torch_io.read.beside import Beside

CLASSIFIER = "classifier/params/linear/kernel"
TIMM = "mae"  # the layout of MAE's names, which are timm's
BATCH_NORM = "classifier/batch_stats/batch_norm/mean"


def head_of(
    file: sizes.FileTensors,
) -> tuple[Classifier | None, dict[str, tuple[int, ...]], str]:
    """Return the classifier, the shapes of its arrays in the file, and why it cannot be computed.

    How a head pools is no tensor's. A norm of its own stands behind the mean, and a linear probe's
    reads the first token, unless the file's config.json says otherwise; of timm's other heads it
    must be said.
    """
    norm = {k: file.shape(k) for k in file.keys if k.startswith("classifier/params/norm")}
    unlike = vision.root_of(file) or any("attentive_blocks" in k for k in file.state)
    if CLASSIFIER not in file or unlike:
        return None, norm, ""  # an attentive probe's head reads what no network here makes
    if why := unread_pool(file, bool(norm)):
        return None, norm, why
    if why := unfit_head(file):
        return None, norm, why
    pool = file.beside.pool or file.about.get("head_pool")
    told = norm or pool or BATCH_NORM in file
    if file.layout == TIMM and not told:
        return (
            None,
            norm,
            (
                "neither the file nor a config.json beside it says how its head pools; allowed: "
                "load(..., head_pool='token'), timm's default, or 'avg'"
            ),
        )
    shape = file.shape(CLASSIFIER)
    width, classes = shape if file.layout == detect.OWN else shape[::-1]
    probe = BATCH_NORM in file
    shapes = {k: file.shape(k) for k in file.keys if k.startswith("classifier/")}
    mean = not norm and pool == "avg"
    head = Classifier(classes, pooled=bool(norm), probe=probe, mean=mean)
    return head, shapes | {CLASSIFIER: (width, classes)}, ""


def unfit_head(file: sizes.FileTensors) -> str:
    """Return why the file's linear layer is none on what pooling gives; "" = it is one."""
    if file.layout == detect.OWN:
        return ""  # the export compared the logits
    (key,), shape = file.keys[CLASSIFIER], file.shape(CLASSIFIER)
    stems = [f"{root}/patch_embed/kernel" for root in detect.ROOTS]
    stem = next((p for p in stems if p in file), detect.CONV)
    width = file.shape(stem)[0] if stem in file else shape[-1]
    if len(shape) != 2 or shape[1] != width:
        return f"{key}: shape {list(shape)}, and the encoder has width {width}"
    if CLASSIFIER.replace("kernel", "bias") not in file:
        return f"{key}: no bias beside it"
    return ""


def unread_pool(file: sizes.FileTensors, norm: bool) -> str:
    """Return why no classifier here pools as the file's head does; "" = one does.

    Args:
      norm: whether the head has a norm of its own.
    """
    pool, after = file.beside.pool, file.keys.get("classifier/params/norm/scale")
    if keys := [k for k in file.state if k.startswith("attn_pool.")]:
        return f"{keys[0]}: it pools by attention"
    if norm and file.keys.get("encoder/norm/scale", after) != after:
        return f"{after[0] if after else ''}: a norm of its own behind the final norm"
    if pool not in (None, "avg", *(() if norm else ("token",))):
        return f"{file.beside.source}: it pools by {pool!r}"
    return ""


def pooling(path: str, file: sizes.FileTensors, pool: str) -> Beside:
    """Return what stands beside a file, with what the caller says of its classifier.

    Raises:
      ConfigError: another word, a file without a classifier, or one that knows better.
    """
    if pool not in ("token", "avg"):
        raise ConfigError(f"head_pool: {pool!r}; allowed: token, avg, or None")
    known = file.beside.pool or file.about.get("head_pool")
    if file.layout != TIMM or CLASSIFIER not in file:
        raise ConfigError(
            f"head_pool: {pool!r}, but {path} is no timm file with a classifier; allowed: None"
        )
    if known not in (None, pool):
        raise ConfigError(
            f"head_pool: {pool!r}, but {file.beside.source or path} says {known!r}; allowed: that, "
            "or None"
        )
    return dataclasses.replace(file.beside, pool=pool, pool_said=True)
