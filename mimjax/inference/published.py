"""A published checkpoint file fitted to a configuration: sizes from the file, the rest from it.

What `mimjax convert` and `mimjax.load` share. A file decides every size that its tensors show; the
number of heads comes from the caller, or from a config of the same width.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import jax

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.models.vit import SIZES
from mimjax.rules import paths
from mimjax.schema import Config
from mimjax.storage import settings
from mimjax.task import Clock, Task
from mimjax.torch_io.read import detect, load
from mimjax.torch_io.read import sizes as derive

PyTree = Any
SHARED = {"MAE", "MCMAE", "MRMAE"}  # whose encoders and decoders fit each other
BASE = ("b", "l", "h")  # sizes with one number of heads in every method


class Choice(NamedTuple):
    """What only the caller can know; None = not given.

    Attributes:
      heads, decoder_heads: of the encoder, and of all networks behind it.
      image_size: (height, width); learned positions are resized to it.
      published: whether the heads of a ViT of a published size may be taken for granted.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    published: bool = False


class Imported(NamedTuple):
    """A file as the weights of a task.

    Attributes:
      config: with the file's sizes.
      params: None for every parameter that the file lacks.
      average: the file's moving average of the encoder, {} if it has none.
      absent: names of what it lacks: "decoder", "encoder/norm".
      held: the file's tensors.
      report: lines that say what came from where.
    """

    config: Config
    task: Task
    params: PyTree
    average: PyTree
    absent: list[str]
    held: derive.FileTensors
    report: list[str]


def open_file(path: str, layout: str, key: str) -> tuple[derive.FileTensors, load.State | None]:
    """A file's tensors under our paths, and its moving average.

    Args:
      layout: a name of `names.TABLES` or "auto"; key: the flag or argument, for errors.
    """
    file = load.read(path)
    where = f"{key}: {path}"
    if layout == "auto":
        layout = detect.detect(file.state, f"{where}: ", ["encoder"])
    if layout == detect.OWN and "encoder" not in file.about:
        raise ConfigError(
            f"{where} has mimjax's own names and no sizes; allowed: the workdir of its run, or "
            "--config.init_from with that run's config"
        )
    if layout not in detect.TABLES:
        raise ConfigError(f"--layout: {layout!r}; allowed: auto, {', '.join(detect.TABLES)}")
    held = derive.FileTensors(file.state, layout, where, file.about)
    held.check_blocks()
    return held, file.average


def method_of(held: derive.FileTensors) -> str:
    """The class that makes such files, as `schema.find_class` reads it; "" = an encoder alone."""
    classes = {
        "mimic_head": "mrmae:MRMAE",
        "pixel_decoder": "bootmae:BootMAE",
        "feature_decoder": "bootmae:BootMAE",
        "regressor": "cae:CAE",
        "decoder": "mcmae:MCMAE" if held.layout == "mcmae" else "mae:MAE",
        "head/linear": "beit:BEiT",
    }
    found = next((name for root, name in classes.items() if held.has(root)), "")
    if (
        found == "cae:CAE"
        and "head/norm/scale" in held
        and "decoder/block_00/norm1/scale" not in held
    ):
        found = "caev2:CAEv2"
    return f"mimjax.methods.{found}" if found else ""


def check_method(held: derive.FileTensors, c: Config) -> None:
    """The file is of the config's method, or has an encoder that the method can begin with.

    Raises:
      ConfigError: it is of another method, or its encoder is of the other kind.
    """
    detect.check_roots(held.layout, ["encoder"], held.where)
    if held.layout == detect.OWN:
        raise ConfigError(
            f"{held.where} has mimjax's own names; allowed: the workdir of its run, or "
            "--config.init_from with that run's config"
        )
    if "heads" not in c.method.get("encoder", {}):
        raise ConfigError(f"--config: {c.task} has no transformer; allowed: pretraining methods")
    found, wanted = method_of(held).rpartition(":")[2], c.task.rpartition(":")[2]
    if found and found != wanted and not {found, wanted} <= SHARED:
        raise ConfigError(
            f"{held.where} is a file of {found} (layout {held.layout!r}), --config is of {wanted}; "
            f"allowed: files of {wanted}, and encoders alone"
        )
    conv, kind = "encoder/patch_embed4/kernel" in held, "a ConvViT (MCMAE's)"
    if conv != ("strides" in c.method.encoder):
        kinds = (kind, "a ViT") if conv else ("a ViT", kind)
        raise ConfigError(
            f"{held.where} (layout {held.layout!r}) holds {kinds[0]}, and the encoder of --config "
            f"is {kinds[1]}; allowed: a config of the same kind"
        )


def fit(
    c: Config,
    held: derive.FileTensors,
    average: load.State | None = None,
    choice: Choice = Choice(),
) -> Imported:
    """The file's weights in the config's task, which gets the file's sizes.

    Raises:
      ConfigError: another method's file, sizes that cannot be told, tensors that do not fit.
    """
    check_method(held, c)
    old = settings.flatten(c.to_dict())
    c = copy.deepcopy(c).unlock()
    before = copy.deepcopy(c.method)
    size_encoder(held, c.method.encoder, choice)
    size_decoders(held, c.method, before, choice)
    channels = held.shape(
        next(
            p
            for p in ("encoder/patch_embed/kernel", "encoder/patch_embed1/proj/kernel")
            if p in held
        )
    )[1]
    if channels != len(c.method.mean):
        raise ConfigError(
            f"method.mean: {len(c.method.mean)} values, but {held.where} reads images of "
            f"{channels} channels; allowed: as many in method.mean and method.std"
        )
    task = schema.make_task(c, Clock(1, 1))
    task = size_target(held, c, task)
    like = jax.eval_shape(task.init, jax.random.key(0))[0]
    encoder: Any = task.encoder  # pyright: ignore[reportAttributeAccessIssue]
    order = encoder.pos_embed.removeprefix("sincos_") if "sincos" in encoder.pos_embed else ""
    params, absent = load.take(held.state, like, held.layout, held.where, encoder.grid, order)
    ema, follows = {}, "encoder" in jax.eval_shape(task.init_ema, like)
    if average and follows:
        where = f"{held.where} (moving average)"
        args = {"encoder": like["encoder"]}, held.layout, where, encoder.grid, order
        ema = load.from_torch(average, *args)
    new = settings.flatten(c.to_dict())
    lines = report(held, params, absent, {k: (old.get(k), v) for k, v in new.items()})
    if follows:
        lines.append(f"EMA: {'the moving average of the file' if ema else 'a copy of the weights'}")
    return Imported(c.lock(), task, params, ema, absent, held, lines)


def size_encoder(
    held: derive.FileTensors, section: Config, choice: Choice, root: str = "encoder"
) -> None:
    """Writes the encoder's sizes into its config section."""
    conv, size = "strides" in section, choice.image_size
    found = derive.conv_vit(held, size) if conv else derive.vit(held, root, size)
    if choice.image_size:
        found["image_size"] = tuple(choice.image_size)
    heads = found.pop("heads", None) or choice.heads or int(held.about.get("heads", 0)) or None
    if heads is None:
        heads = section.heads if section.width == found["width"] else None
    if heads is None and choice.published:
        sizes = {SIZES[s][:2]: SIZES[s][2] for s in BASE}
        heads = sizes.get((found["width"], found["depth"] + (1 if conv else 0)))
    if heads is None:
        raise derive.ask(held, "heads", "the number of heads", "--heads=12")
    if found["width"] % heads:
        raise ConfigError(
            f"{held.where}: heads: {heads} does not divide its width {found['width']}; allowed: "
            f"divisors of {found['width']}"
        )
    if not conv:
        if not found["use_mask_token"]:
            del found["use_mask_token"]  # BEiT's config needs one, encoders alone have none
        if section.bias == "qv" and derive.no_key_bias(held, root):
            found["bias"] = "qv"
        if section.layer_scale and found["layer_scale"]:
            del found["layer_scale"]  # any value says that there is one
    section.update(found | {"heads": heads})


def size_decoders(held: derive.FileTensors, method: Config, before: Config, choice: Choice) -> None:
    """Writes sizes and heads of the networks behind the encoder into their sections.

    Args:
      before: the method's section as the config has it.
    """
    for name, found in derive.decoders(held).items():
        if name not in method or "depth" not in method[name]:
            continue  # the method has no such network
        section, old = method[name], before[name]
        if section.get("layer_scale") and found.get("layer_scale"):
            del found["layer_scale"]
        section.update({k: v for k, v in found.items() if k in section})
        if not found["depth"]:
            continue
        width = found.get("width") or method.regressor.width
        inner = derive.inner_width(held, name)
        given = before.regressor if "width" not in old else old  # CAE's decoder is as wide as that
        same = (given.width or before.encoder.width) == width
        follows = old.heads is None  # BootMAE's: the encoder's
        heads = choice.decoder_heads or (method.encoder.heads if follows else 0)
        if not heads and not same:
            raise derive.ask(held, "decoder_heads", f"the heads of {name}", "--decoder_heads=16")
        heads = heads or old.heads
        if not 0 < heads <= width or heads * (width // heads) != inner:
            raise ConfigError(
                f"{held.where}: {name} of width {width} has {inner} channels in its attention, "
                f"which {heads} heads do not give; allowed: --decoder_heads=N that do"
            )
        section.heads = None if follows and not choice.decoder_heads else heads


def size_target(held: derive.FileTensors, c: Config, task: Any) -> Task:
    """The task with the file's vocabulary, where its target is a tokenizer.

    Raises:
      ConfigError: the target predicts something of another size.
    """
    count = derive.vocabulary(held)
    if "target" not in c.method or not hasattr(task, "pred_dim") or not count:
        return task
    section = c.method.target
    for part in (section, section.get("network", {}), section.get("encoder", {})):
        if count != task.pred_dim and "vocab" in part:
            part.vocab = count
            task = schema.make_task(c, Clock(1, 1))
    if count != task.pred_dim:
        raise ConfigError(
            f"method.target: {type(task.target).__name__} gives {task.pred_dim} values per patch, "
            f"but the head of {held.where} predicts {count}; allowed: the target it was trained on"
        )
    return task


def report(
    held: derive.FileTensors,
    params: PyTree,
    absent: list[str],
    settings: dict[str, tuple[Any, Any]],
) -> list[str]:
    """What came from the file, what was derived, what is random, what was not read."""
    read = ", ".join(k for k in params if k not in absent)
    lines = [f"from {held.where} (layout {held.layout!r}): {read}"]
    changed = [
        f"{k}={new} (config: {old})"
        for k, (old, new) in settings.items()
        if _plain(old) != _plain(new)
    ]
    lines.append(f"derived from its tensors: {', '.join(changed) or 'the sizes of the config'}")
    if absent:
        lines.append(f"not in the file, as initialized: {', '.join(absent)}")
    if unread := held.unread(set(paths(params))):
        lines.append(f"{len(unread)} keys not read: {load.listed(unread)}")
    return lines


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def complete(params: PyTree, init: PyTree) -> PyTree:
    """`params` with those of `init` for None."""
    is_none = lambda x: x is None
    return jax.tree.map(lambda new, old: old if new is None else new, params, init, is_leaf=is_none)
