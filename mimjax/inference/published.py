"""A published checkpoint file fitted to a configuration: sizes from the file, the rest from it.

`mimjax convert` and `mimjax.load` share this module. A file decides every size that its tensors
show; the number of heads comes from the caller, or from a config of the same width.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mimjax import schema, values
from mimjax.errors import ConfigError
from mimjax.inference.contradictions import plain
from mimjax.models.vit import SIZES
from mimjax.rules import paths
from mimjax.schema import Config
from mimjax.storage import settings
from mimjax.task import Clock, Predictor, Pretraining, initial, pretraining
from mimjax.torch_io.read import beside, detect, files, load, vision
from mimjax.torch_io.read import sizes as derive
from mimjax.torch_io.read.beside import Beside
from mimjax.torch_io.tables import methods

PyTree = Any
BASE = ("b", "l", "h")  # sizes with one number of heads in every method


class Choice(NamedTuple):
    """The sizes that no file shows, as the caller says them; None = the caller does not say.

    Attributes:
      heads, decoder_heads: numbers of heads of the encoder, and of all networks behind it.
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
      config: the config with the file's sizes.
      params: the parameters; None for each that the file lacks.
      average: the file's moving average of the encoder, {} if it has none.
      absent: names of what the file lacks: "decoder", "encoder/norm".
      file: the file's tensors.
      report: lines that say what came from where.
    """

    config: Config
    task: Pretraining
    params: PyTree
    average: PyTree
    absent: list[str]
    file: derive.FileTensors
    report: list[str]


def open_file(path: str, layout: str, key: str) -> tuple[derive.FileTensors, load.State | None]:
    """Read a file: its tensors under our paths, and its moving average.

    Args:
      layout: a name of `detect.TABLES` or "auto"; key: the flag or argument, for errors.
    """
    read = load.read(path)
    where = f"{key}: {path}"
    if layout == "auto":
        layout = files.layout_of(read, f"{where}: ", ["encoder"])
    if layout == detect.OWN and "method" not in read.about:
        raise ConfigError(
            f"{where} has mimjax's own names and no sizes; allowed: the workdir of its run, or "
            "--config.init_from with that run's config"
        )
    if layout not in detect.TABLES:
        flag = "--layout" if key.startswith("--") else "layout"
        raise ConfigError(f"{flag}: {layout!r}; allowed: auto, {', '.join(detect.TABLES)}")
    # the metadata of our own files say all that stands beside others
    facts = Beside() if read.about else beside.read(files.weights_file(path))
    file = derive.FileTensors(read.state, layout, where, read.about, facts)
    if not vision.root_of(file):
        facts.check(quick=layout.startswith("clip"))
    facts.check_tensors(file)
    file.check_blocks()
    return file, read.average


def method_of(file: derive.FileTensors) -> str:
    """Return the path of the method that makes such files; "" = the file is an encoder alone."""
    if "settings" in file.about:
        return json.loads(file.about["settings"])["task"]
    if vision.root_of(file):
        return ""  # no method trains such an encoder
    fits = lambda maker: maker.layout in ("", file.layout) and all(map(file.has, maker.networks))
    maker = next((maker for maker in methods.MAKERS if fits(maker)), None)
    if not maker:
        return ""
    codes = file.shape("head/linear/kernel") if maker.codes else (0, 1)
    # data2vec's head: no tokenizer has as many codes as a token has numbers
    return "" if codes[0] == codes[1] and not file.about else maker.method


def shares(made: str, file: derive.FileTensors, c: Config) -> bool:
    """Return whether a method's file has a network that the config's method has, too.

    It has the same name and the same class: MAE's decoder in MCMAE and MR-MAE.
    """
    theirs, mine = (schema.defaults(schema.find_class(m, "task")) for m in (made, c.task))
    kind = lambda name: c.method[name].get("type", schema.class_path(type(mine[name])))
    return any(
        isinstance(network, Predictor)
        and file.has(name)
        and schema.is_section(c.method.get(name))
        and kind(name) == schema.class_path(type(network))
        for name, network in theirs.items()
    )


def check_method(file: derive.FileTensors, c: Config) -> None:
    """Check that the file is of the config's method, or has an encoder that it can begin with.

    Raises:
      ConfigError: it is of another method, or its encoder is of the other kind.
    """
    vision.refuse(file)
    detect.check_roots(file.layout, ["encoder"], file.where)
    if file.layout == detect.OWN:
        raise ConfigError(
            f"{file.where} has mimjax's own names; allowed: the workdir of its run, or "
            "--config.init_from with that run's config"
        )
    if "heads" not in c.method.get("encoder", {}):
        raise ConfigError(f"--config: {c.task} has no transformer; allowed: pretraining methods")
    made = method_of(file)
    method, wanted = (name.rpartition(":")[2] for name in (made, c.task))
    if method and method != wanted and not shares(made, file, c):
        raise ConfigError(
            f"{file.where} is a file of {method} (layout {file.layout!r}), --config is of "
            f"{wanted}; allowed: files of {wanted}, and encoders alone"
        )
    conv, kind = "encoder/patch_embed4/kernel" in file, "a ConvViT (MCMAE's)"
    if conv != ("strides" in c.method.encoder):
        kinds = (kind, "a ViT") if conv else ("a ViT", kind)
        raise ConfigError(
            f"{file.where} (layout {file.layout!r}) holds {kinds[0]}, and the encoder of --config "
            f"is {kinds[1]}; allowed: a config of the same kind"
        )


def method_config(file: derive.FileTensors, path: str, mean: Any, std: Any) -> Config:
    """Return task and published settings of the method that makes such files.

    Args:
      path: the file, for errors.
      mean, std: of its images; None = those beside the file, or else the method's.

    Raises:
      ConfigError: the method's encoder has settings that no tensor shows.
    """
    task_path = method_of(file)
    cls = schema.find_class(task_path, "task")
    if schema.defaults(cls)["encoder"].fuse_layers != (-1,):
        raise ConfigError(
            f"path: {path} is of {cls.__name__}, whose fused blocks no tensor shows; make a "
            f"workdir: mimjax convert --config={cls.__module__.rpartition('.')[2]} --model=..."
        )
    given = ("mean", mean or file.beside.mean), ("std", std or file.beside.std)
    c = ConfigDict({"task": task_path, "dtype": "auto", "seed": 0})
    c.method = schema.section(cls, **{k: tuple(v) for k, v in given if v is not None})
    return c


def fit(
    c: Config,
    file: derive.FileTensors,
    average: load.State | None = None,
    choice: Choice = Choice(),
    given: Iterable[str] = (),
) -> Imported:
    """Return the file's weights in the config's task, which gets the file's sizes.

    Args:
      given: names of the statistics that the caller says ("mean", "std"), for the report.

    Raises:
      ConfigError: another method's file, sizes that cannot be told, tensors that do not fit.
    """
    check_method(file, c)
    old = settings.flatten(c.to_dict())
    c = copy.deepcopy(c).unlock()
    before = copy.deepcopy(c.method)
    size_encoder(file, c.method.encoder, choice)
    size_decoders(file, c.method, before, choice)
    stems = ("encoder/patch_embed/kernel", "encoder/patch_embed1/proj/kernel")
    channels = file.shape(next(p for p in stems if p in file))[1]
    if channels != len(c.method.mean):
        raise ConfigError(
            f"method.mean: {len(c.method.mean)} values, but {file.where} reads images of "
            f"{channels} channels; allowed: as many in method.mean and method.std"
        )
    task = size_target(file, c, pretraining(schema.make_task(c, Clock(1, 1))))
    like = jax.eval_shape(initial(task), jax.random.key(0))[0]
    place = load.place_of(task.encoder)
    params, absent = load.take(file.state, like, file.layout, file.where, *place)
    ema, follows = {}, "encoder" in jax.eval_shape(task.init_ema, like)
    if average and follows:
        where = f"{file.where} (moving average)"
        ema = load.from_torch(average, {"encoder": like["encoder"]}, file.layout, where, *place)
    new = settings.flatten(c.to_dict())
    lines = report(file, params, absent, {k: (old.get(k), v) for k, v in new.items()}, given)
    lines += derive.resizing(file, task.encoder.grid, task.encoder.num_prefix, "encoder")
    if follows:
        lines.append(f"EMA: {'the moving average of the file' if ema else 'a copy of the weights'}")
    return Imported(c.lock(), task, params, ema, absent, file, lines)


def size_encoder(
    file: derive.FileTensors, section: Config, choice: Choice, root: str = "encoder"
) -> None:
    """Write the encoder's sizes into its config section."""
    conv, size = "strides" in section, choice.image_size or file.beside.size_of(file)
    shown = derive.conv_vit(file, size) if conv else derive.vit(file, root, size)
    if size:
        shown["image_size"] = tuple(size)
        patch = math.prod(shown["strides"]) if conv else shown["patch"]
        for name, side in zip(("height", "width"), size, strict=True):
            if side < patch or side % patch:
                raise ConfigError(
                    f"{file.where}: image_size: {name} {side} is not divisible by patch {patch}; "
                    f"allowed: multiples of {patch}"
                )
    facts = file.beside
    if choice.heads and facts.heads and choice.heads != facts.heads:
        raise ConfigError(f"heads: {choice.heads}; allowed: {facts.heads}, as {facts.source} has")
    heads = shown.pop("heads", None) or choice.heads or int(file.about.get("heads", 0))
    heads = heads or facts.heads
    if heads is None:
        heads = section.heads if section.width == shown["width"] else None
    if heads is None and choice.published:
        sizes = {SIZES[s][:2]: SIZES[s][2] for s in BASE}
        heads = sizes.get((shown["width"], shown["depth"] + (1 if conv else 0)))
    if heads is None:
        raise derive.ask(file, "heads", "the number of heads", "--heads=12")
    if shown["width"] % heads:
        raise ConfigError(
            f"{file.where}: heads: {heads} does not divide its width {shown['width']}; allowed: "
            f"divisors of {shown['width']}"
        )
    if not conv:
        if not shown["use_mask_token"]:
            del shown["use_mask_token"]  # BEiT's config needs one, encoders alone have none
        if section.bias == "qv" and derive.no_key_bias(file, root):
            shown["bias"] = "qv"
        if section.layer_scale and shown["layer_scale"]:
            del shown["layer_scale"]  # any value says that there is one
    section.update(shown | {"heads": heads})


def size_decoders(file: derive.FileTensors, method: Config, before: Config, choice: Choice) -> None:
    """Write sizes and heads of the networks behind the encoder into their sections.

    Args:
      before: the method's section as the config has it.
    """
    sizes = derive.decoders(file)
    latents = sizes.get("regressor", {}).get("width")
    if latents and "project" in method.encoder:
        projects = any(path.endswith("projection/linear/kernel") for path in file.keys)
        method.encoder.project = latents if projects else None
    for name, shown in sizes.items():
        if not schema.is_section(method.get(name)) or "depth" not in method[name]:
            continue  # the method has no such network
        section, old = method[name], before[name]
        if section.get("layer_scale") and shown.get("layer_scale"):
            del shown["layer_scale"]
        if "inject" in section:
            size_injection(file, section, name, bool(shown.pop("inject", False)))
        section.update({k: v for k, v in shown.items() if k in section})
        if shown["depth"]:
            own = old.get("width") or before.encoder.get("project") or before.encoder.width
            widths = int(shown.get("width") or latents or 0), int(own)
            size_heads(file, method, name, widths, choice)


def size_injection(file: derive.FileTensors, section: Config, name: str, crosses: bool) -> None:
    """Write which block of the encoder a decoder reads; the file shows whether it reads one.

    Raises:
      ConfigError: it reads one, and the config does not say which.
    """
    if not crosses:
        section.inject = None
    elif section.inject is None:
        raise ConfigError(
            f"method.{name}.inject: None, but {name} of {file.where} reads a block of the encoder; "
            "allowed: the number of that block"
        )


def size_heads(
    file: derive.FileTensors, method: Config, name: str, widths: tuple[int, int], choice: Choice
) -> None:
    """Write the heads of a network behind the encoder into its section.

    Args:
      widths: of its tokens, in the file and in the config.

    Raises:
      ConfigError: they are not given and cannot be told, or do not fit the file.
    """
    section, (width, before), inner = method[name], widths, derive.inner_width(file, name)
    follows = section.heads is None  # BootMAE's: the encoder's
    said = json.loads(file.about.get("settings", "{}")).get("method", {}).get(name, {})
    heads = choice.decoder_heads or said.get("heads") or file.beside.decoder_heads
    heads = heads or (method.encoder.heads if follows else 0)
    if not heads and width != before:
        raise derive.ask(file, "decoder_heads", f"the heads of {name}", "--decoder_heads=16")
    heads = heads or section.heads
    if not 0 < heads <= width or heads * (width // heads) != inner:
        raise ConfigError(
            f"{file.where}: {name} of width {width} has {inner} channels in its attention, "
            f"which {heads} heads do not give; allowed: --decoder_heads=N that do"
        )
    section.heads = None if follows and not choice.decoder_heads else heads


def size_target(file: derive.FileTensors, c: Config, task: Pretraining) -> Pretraining:
    """Return the task with the file's vocabulary, where its target is a tokenizer.

    Raises:
      ConfigError: the target predicts something of another size.
    """
    count, terms = derive.vocabulary(file), getattr(task, "terms", {}).values()
    network = "head" if "head/linear/kernel" in file else "decoder"
    name = next((t.target for t in terms if t.network == network), None)
    if not count or name is None:
        return task
    made: Any = task
    section, target = c.method[name], type(getattr(made, name))
    for holder, cls in [(section, target), *inner_sections(section, target)]:
        if count != made.width(network) and "vocab" in values.fields(cls):
            holder.vocab = count
            made = pretraining(schema.make_task(c, Clock(1, 1)))
    if count != made.width(network):
        raise ConfigError(
            f"method.{name}: {target.__name__} gives {made.width(network)} values per patch, "
            f"but the head of {file.where} predicts {count}; allowed: the target it was trained on"
        )
    return made


def inner_sections(section: Config, cls: type) -> list[tuple[Config, type]]:
    """Return the sections of a target's networks, and the class of each."""
    found = []
    for name, hint in values.fields(cls).items():
        if schema.is_section(inner := section.get(name)):
            found.append((inner, values.parts(hint)[0]))
    return found


def report(
    file: derive.FileTensors,
    params: PyTree,
    absent: list[str],
    changes: dict[str, tuple[Any, Any]],
    given: Iterable[str] = (),
) -> list[str]:
    """Return lines that say what was read, what was derived, what is random, what was not read."""
    names = ", ".join(k for k in params if k not in absent)
    lines = [f"from {file.where} (layout {file.layout!r}): {names}"]
    derived = [
        f"{k}={new} (config: {old})"
        for k, (old, new) in changes.items()
        if plain(old) != plain(new)
    ]
    lines.append(f"derived from its tensors: {', '.join(derived) or 'the sizes of the config'}")
    if absent:
        lines.append(f"not in the file, as initialized: {', '.join(absent)}")
    lines += file.beside.lines(given=given)
    if unread := file.unread(set(paths(params))):
        file.check_unread(unread)
        lines.append(f"{len(unread)} keys not read: {load.listed(unread)}")
    return lines


def complete(params: PyTree, init: PyTree) -> PyTree:
    """Return `params` with the arrays of `init` where they are None."""
    is_none = lambda x: x is None
    return jax.tree.map(lambda new, old: old if new is None else new, params, init, is_leaf=is_none)
