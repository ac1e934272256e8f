"""What a task takes over from the pretrained model that `init_from` names: network and weights.

Before a run begins the model's encoder is written into the config where it says None, so that the
run is read back without the model. Then its weights become the task's. What of them is loaded, left
fresh, dropped or resized is said; anything else that differs is an error that names it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mimjax import rules, schema, values
from mimjax.errors import ConfigError
from mimjax.inference import contradictions, loading, places, teachers
from mimjax.inference.model import Model
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import fixed_positions, table_grid
from mimjax.networks import Reader, Student
from mimjax.schema import Config
from mimjax.storage import config_version
from mimjax.storage.files import Workdir
from mimjax.task import Task, initial
from mimjax.torch_io.read import files, positions
from mimjax.transfer.tuning import Tuning

PyTree = Any
Say = Callable[[str], None]
KEY = "init_from"
BROUGHT = ("encoder", "mean", "std")  # settings of the method


def adopts(c: Config) -> bool:
    """Return whether the task of a config takes over a pretrained encoder."""
    return bool(c.get("task")) and issubclass(schema.find_class(c.task, "task"), Tuning)


def open_(c: Config) -> list[str]:
    """Return the settings that the model brings, because the config says None."""
    return [k for k in BROUGHT if c.method.get(k) is None] if adopts(c) else []


def with_settings(c: Config, brought: dict[str, Any]) -> Config:
    """Return a copy of a config with settings of the method where it says None."""
    hints = values.fields(schema.find_class(c.task, "task"))
    locked = getattr(c, "is_locked", False)
    names, c = open_(c), copy.deepcopy(c).unlock()
    for name in names:
        teachers.put(c.method, name, hints[name], brought.get(name))
    return c.lock() if locked else c


def fill(c: Config, needed: bool = True) -> Config:
    """Return the config with those settings that come from its model.

    Args:
      needed: whether a task without a network and without a model is an error.

    Raises:
      ConfigError: there is no model, or it cannot be read.
    """
    names = open_(c)
    if names and c.init_from:
        model = read(c)
        statistics = dict(zip(("mean", "std"), model.statistics))
        return with_settings(c, {"encoder": model.module, **statistics})
    if "encoder" in names and needed:
        raise ConfigError(
            f"{KEY}: none, and method.encoder says no network; allowed: --model=PATH of a workdir, "
            ".safetensors or .pth, or a network (an untrained one)"
        )
    return c


def continued(c: Config, workdir: str) -> Config:
    """Return the config with what a run took over when it began.

    A run that is continued needs its model no more, nor the setting that named it.
    """
    if not open_(c):
        return c
    for path in filter(None, (workdir, c.get("resume"))):
        place = Workdir(path, writer=False)
        if not places.has_checkpoints(place):
            continue
        try:
            saved = config_version.upgrade(place.read_json("config.json"), path)
        except ConfigError:
            return c  # damaged: whoever opens the workdir says so
        if saved.get("task") == c.task:
            method = {k: frozen(saved["method"].get(k)) for k in BROUGHT}
            return with_settings(c, method)
    return c


def check_random(c: Config) -> None:
    """Check that nothing is said of a model where a run begins with random weights.

    Raises:
      ConfigError: there is.
    """
    if adopts(c) and c.method.get("heads"):
        raise ConfigError(
            f"method.heads: {c.method.heads}, but {KEY} names no file; allowed: None (of a network "
            "without a model: method.encoder.heads)"
        )


def frozen(value: Any) -> Any:
    """Return a value of JSON as a config has it: tuples, and sections."""
    if isinstance(value, dict):
        return ConfigDict({k: frozen(v) for k, v in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def read(c: Config) -> Model:
    """Return the model that `init_from` names.

    Raises:
      ConfigError: it cannot be read, or has no encoder of images.
    """
    said: dict[str, Any] = {}
    if c.method.get("heads") and not files.is_weights(c.init_from):
        raise ConfigError(
            f"method.heads: {c.method.heads} with {KEY}={c.init_from}, a workdir whose run knows "
            "them; allowed: None"
        )
    if files.is_weights(c.init_from):
        told = c.method.get("encoder") or {}
        said["heads"] = c.method.get("heads") or told.get("heads")
        said["image_size"] = c.method.get("size") or told.get("image_size")
        if None not in (c.method.mean, c.method.std):
            said |= {"mean": c.method.mean, "std": c.method.std}
    return teachers.named(KEY, lambda: loading.load(c.init_from, **said))


def params(c: Config, task: Tuning, fresh: PyTree, say: Say, model: Model | None = None) -> PyTree:
    """Return the parameters that a run begins with: the model's encoder, all else fresh.

    Args:
      fresh: random parameters of the task.
      model: what `init_from` names; None = it is read.

    Raises:
      ConfigError: the model's network is not the one of the config.
    """
    model = model or read(c)
    check(c.init_from, task, model, say)
    found = {p: np.asarray(x) for p, x in flat(model.params["encoder"]).items()}
    if not model.network.normed:  # what stands for it does nothing
        found = {p: x for p, x in found.items() if p.split("/")[0] != "norm"}
    like, out, used, tables = flat(fresh["encoder"]), {}, set(), []
    for path, x in like.items():
        source, value = origin(path, x.shape, found, model.module, task.network)
        if value is None:
            continue
        out[path] = value
        used.add(source)
        tables += [] if source in found else [path]
    grids = table_grid(model.module) or tuple(model.module.grid), tuple(task.network.grid)
    placed = [p for p in like if p.startswith(("pos_embed", "rel_pos"))]
    moved = bool(placed or task.network.positions) and grids[0] != grids[1]
    for line in model.report:
        say(f"weights: {line}")
    rest = [f"encoder/{p}" for p in found if p not in used] + others(model)
    new = [f"encoder/{p}" for p in like if p not in out]
    new += [name for name in rules.paths(fresh) if not name.startswith("encoder/")]
    lines = {
        "loaded": [f"{len(out)} arrays of the encoder"],
        "left fresh": short(new),
        "dropped": short(rest),
        "trained from here on": [f"the fixed table of positions, as {p}" for p in tables],
        "resized": [positions.moved(*grids)] * moved,
    }
    for what, names in lines.items():
        if names:
            say(f"weights: {what}: {', '.join(names)}")
    tree = jax.tree.map(lambda x: x, fresh)
    leaves = [out.get(p, x) for p, x in like.items()]
    tree["encoder"] = jax.tree.unflatten(jax.tree.structure(fresh["encoder"]), leaves)
    return tree


def check(path: str, task: Tuning, model: Model, say: Say) -> None:
    """Check that the model's encoder, as the task trains it, is the one of the config.

    Raises:
      ConfigError: tensors differ, or settings that no tensor shows.
    """
    theirs = task.adopted(model.module)
    shapes = lambda network: {p: x.shape for p, x in flat(task.shapes_of(network)).items()}
    here, there = shapes(task.network), shapes(theirs)
    names = [p for p in {**here, **there} if here.get(p) != there.get(p)]
    if names:
        size = lambda found, p: list(found[p]) if p in found else "none"
        words = [f"{p} ({size(there, p)}, here {size(here, p)})" for p in names[:5]]
        raise ConfigError(
            f"{KEY}: {path} has another encoder than method.encoder says, {len(names)} tensors "
            f"differ: {', '.join(words)}{' ...' if len(names) > 5 else ''}; allowed: a model of "
            "the same sizes, or method.encoder=None, which takes the model's"
        )
    facts = contradictions.facts_of(theirs) | dict(zip(("mean", "std"), model.statistics))
    mine = Reader(task.network, *task.statistics)
    for setting, ours, found in contradictions.differences(mine, facts):
        text = f"{KEY}: {path} has {setting} {found}"
        if setting not in ("mean", "std"):
            raise ConfigError(f"{text}, and method.encoder {ours}; allowed: the same in both")
        say(f"WARNING: {text}; this run has {ours}")


def origin(
    path: str, shape: tuple[int, ...], found: dict[str, Any], old: Student, new: Student
) -> tuple[str, np.ndarray | None]:
    """Return which of the model's arrays a parameter begins as, and its value; None = fresh.

    Args:
      path, shape: of the parameter.
      found: the model's arrays by path.
      old, new: the model's encoder, and that of the task.
    """
    name = path.split("/")[0]
    if name == "pos_embed" and path not in found and old.positions:
        table = fixed_positions(tuple(new.grid), new.width, old.positions, table_grid(old))
        before = np.zeros((shape[1] - len(table), new.width), np.float32)
        return path, np.concatenate([before, table])[None]
    if name.startswith("rel_pos") and path not in found:
        path = f"rel_pos/{path.partition('/')[2]}"  # which the pretrained blocks share
    if path not in found:
        return path, None
    value = found[path]
    if name == "pos_embed":
        prefix = value.shape[1] - old.num_patches
        value = resize_absolute(value, tuple(old.grid), tuple(new.grid), num_prefix=prefix)
    if name.startswith("rel_pos"):
        value = positions.resize_relative(value, tuple(old.grid), tuple(new.grid))
    return path, value


def flat(tree: PyTree) -> dict[str, Any]:
    """Return a tree's leaves by path."""
    return dict(zip(rules.paths(tree), jax.tree.leaves(tree), strict=True))


def others(model: Model) -> list[str]:
    """Return the networks of a model beside its encoder."""
    task: Task | None = model.task
    known = jax.eval_shape(initial(task), jax.random.key(0))[0] if task else {}
    return sorted({*known, *model.params} - {"encoder"})


def short(names: Iterable[str]) -> list[str]:
    """Return paths cut to two parts, each once."""
    return list(dict.fromkeys("/".join(name.split("/")[:2]) for name in names))
