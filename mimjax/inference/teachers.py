"""What a target or a transfer task takes over from the run that trained its frozen network.

A workdir as teacher brings its sizes, heads, position order, mean and std: they are written into
the target's section of the config before a task is made of it, wherever that section says None.
What the section says itself is compared with the workdir when its weights are read
(`inference.contradictions`). The config is then complete, so that a run is read back without its
teacher's workdir.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from mimjax import plugs, schema, values
from mimjax.errors import ConfigError
from mimjax.inference import contradictions, places, resolution, weights
from mimjax.networks import Student
from mimjax.schema import Config
from mimjax.targets.base import Target
from mimjax.task import EncoderNetwork, Pretraining
from mimjax.torch_io.read.files import is_weights

OLD = "teacher"  # the section that named the path before targets had it


class Owner(NamedTuple):
    """The section of a target, or of a task's frozen encoder, that may own frozen networks.

    Attributes:
      key: dotted name of the section, "method.code_target".
      cls: its class, which has a field `path`, and says what it takes over (`Target.brings`).
      section: its settings.
    """

    key: str
    cls: Any
    section: Config

    @property
    def path(self) -> str | None:
        """The file or workdir that it names; None = none."""
        return self.section.get("path") or None


def owners(c: Config) -> list[Owner]:
    """Return all sections of a config that own frozen networks, those in a `Joint` too."""
    method = c.get("method")
    if not (schema.is_section(method) and c.get("task")):
        return []
    return list(_owners(schema.find_class(c.task, "task"), method, "method"))


def _owners(cls: type, section: Config, where: str) -> Iterator[Owner]:
    for name, hint in values.fields(cls).items():
        inner, key = section.get(name), f"{where}.{name}"
        if not schema.is_section(inner):
            continue
        if hasattr(part := values.parts(hint)[0], "brings") and not schema.plug_base(hint):
            yield Owner(key, part, inner)
        if schema.plug_base(hint) is Target and inner.get("type") is not None:
            found: Any = plugs.find_plug(Target, inner["type"], f"{key}.type")
            if "path" in values.fields(found):
                yield Owner(key, found, inner)
            yield from _owners(found, inner, key)


def paths(c: Config) -> list[str]:
    """Return the settings that name files or workdirs of frozen networks, by dotted name."""
    return [f"{owner.key}.path" for owner in owners(c)]


def check_old(c: Config, key: str) -> None:
    """Refuse the setting that named a teacher before each target had a path of its own.

    Args:
      key: the setting that is given, as it was written: "config.teacher.path".

    Raises:
      ConfigError: it is that setting.
    """
    if OLD in key.removeprefix("config.").split(".")[:1]:
        words = ", ".join(paths(c)) or "nothing, no target here reads a frozen network"
        raise ConfigError(f"{key}: unknown; allowed: {words}")


# ------------------------------------------------------------------ what a workdir brings
def fill(c: Config, read: bool = True) -> Config:
    """Return the config with what its targets take over, where their sections say None.

    It comes from the workdir that a target's `path` names; else, for targets that follow it, from
    the student; else from what is standard for the target.

    Args:
      read: False = no workdir is read.

    Raises:
      ConfigError: no such workdir, or a run without the networks that the target needs.
    """
    locked = getattr(c, "is_locked", False)
    c = copy.deepcopy(c).unlock()
    for owner in owners(c):
        open_ = [k for k in owner.cls.brings if owner.section.get(k) is None]
        if not open_:
            continue
        found = brought(owner) if read and is_workdir(owner.path) else {}
        if read and is_file(owner.path) and not owner.cls.follows and "network" in open_:
            found = held(owner)
        for name in open_:
            hint, theirs = values.fields(owner.cls)[name], owner.cls.brings[name]
            value = found.get(theirs)
            if value is None and owner.cls.follows:
                value = own(c, theirs)
            if value is not None and issubclass(values.parts(hint)[0], nn.Module):
                check_kind(owner, name, hint, value)
            value = owner.cls.standard.get(name) if value is None else value
            if isinstance(value, EncoderNetwork) and read and is_file(owner.path):
                value = with_file_s_grid(value, str(owner.path))
            put(owner.section, name, hint, value)
    return c.lock() if locked else c


def is_workdir(path: str | None) -> bool:
    """Return whether a path names a workdir: neither a file nor noise."""
    return bool(path) and path != weights.RANDOM and not is_weights(str(path))


def is_file(path: str | None) -> bool:
    """Return whether a path names a published file."""
    return bool(path) and is_weights(str(path))


def with_file_s_grid(encoder: Student, path: str) -> Any:
    """Return an encoder whose fixed positions are made for the grid of a file's."""
    made_for = resolution.of_file(path) if encoder.positions else None
    network: Any = encoder
    return network.clone(pos_grid=made_for) if resolution.differs(encoder, made_for) else network


def brought(owner: Owner) -> dict[str, Any]:
    """Return the parts of another run's task, {name: part}; `owner.path` is the run's workdir.

    Raises:
      ConfigError: there is no such folder, or nothing of a run in it.
    """
    path, key = str(owner.path), f"{owner.key}.path"
    workdir = places.existing(path, key)
    run: Any = contradictions.task_of(workdir)[1]
    if run is None:  # a checkpoint without settings is read all the same
        places.check_source(path, key)
    return {f.name: getattr(run, f.name) for f in dataclasses.fields(run)} if run else {}


def held(owner: Owner) -> dict[str, Any]:
    """Return the encoder and the statistics of the file that an owner names, as `load` reads it.

    Raises:
      ConfigError: it cannot be read, or holds another network than those that runs here train.
    """
    from mimjax.inference.loading import load  # which reads what this module fills in

    said = {k: owner.section.get(k) for k in ("heads", "mean", "std")}
    if None in (said["mean"], said["std"]):  # the other one is the file's
        said |= {"mean": None, "std": None}
    model = named(f"{owner.key}.path", lambda: load(str(owner.path), **said))
    return {"encoder": model.module, **dict(zip(("mean", "std"), model.statistics))}


def named(key: str, read: Callable[[], Any]) -> Any:
    """Return what a call of `load` returns; its errors name a setting instead of the argument."""
    try:
        return read()
    except ConfigError as error:
        text = str(error)
        raise ConfigError(
            f"{key}{text[4:]}" if text.startswith("path:") else f"{key}: {text}"
        ) from None


def own(c: Config, name: str) -> Any:
    """Return a field of the config's own task: a network without what only training reads."""
    cls = schema.find_class(c.task, "task")
    value, known = c.method.get(name), schema.defaults(cls).get(name)
    if not (schema.is_section(value) and dataclasses.is_dataclass(known)):
        return value
    built = schema.build(known, value, f"method.{name}")
    return built.plain() if hasattr(built, "plain") else built


def check_kind(owner: Owner, name: str, hint: Any, value: Any) -> None:
    """Check that a network which a workdir brings is of the kind that the target computes.

    Raises:
      ConfigError: it is of another kind.
    """
    wanted = values.parts(hint)[0]
    if not isinstance(value, wanted):
        raise ConfigError(
            f"{owner.key}.path: {owner.path} trained the {owner.cls.brings[name]} "
            f"{type(value).__name__}; allowed: a run that trained one of class {wanted.__name__}"
        )


def put(section: Config, name: str, hint: Any, value: Any) -> None:
    """Write a value into a section; a network is a section of its own."""
    if value is None:
        return
    is_network = isinstance(value, nn.Module)
    del section[name]  # a ConfigDict would keep the type of None
    section[name] = network_section(value, hint) if is_network else schema.leaf(hint, value)


def network_section(network: nn.Module, hint: Any) -> Config:
    """Return the section of a frozen network; settings that only training reads are the defaults.

    Args:
      hint: the annotation of the setting that it fills.
    """
    cls, known = type(network), schema.defaults(type(network))
    kept: Mapping[str, Any] = contradictions.settings_of(network)
    kept = {k: v for k, v in kept.items() if k in known}
    if "image_size" in known:
        settings: Any = network
        kept |= {"image_size": settings.image_size}
    section = schema.section(cls, **kept)
    if schema.pluggable(values.parts(hint)[0]):
        section.update(schema.naming(cls))
    return section


# ------------------------------------------------------------------ paths given to `mimjax.load`
def name_paths(c: Config, teacher: str | Mapping[str, str]) -> None:
    """Write the files of frozen networks, an argument of `mimjax.load`, into a config.

    Raises:
      ConfigError: one file for several networks, or a name that is no target with one.
    """
    sections = {o.key.removeprefix("method."): o.section for o in owners(c)}
    names = ", ".join(sections) or "none, this method has no frozen network"
    if isinstance(teacher, str):
        if teacher and len(sections) != 1:
            raise ConfigError(f"teacher: {teacher!r} for all; allowed: {{name: file}} of {names}")
        teacher = dict.fromkeys(sections, teacher) if teacher else {}
    for name, path in teacher.items():
        if name not in sections:
            raise ConfigError(f"teacher: {name!r}; allowed: {names}")
        sections[name].path = path


def read_named(task: Pretraining) -> Any:
    """Return the frozen networks of a file's method, whose paths `mimjax.load` was given.

    Raises:
      ConfigError: a path is missing, or what it names does not fit.
    """
    like = jax.eval_shape(task.init_frozen, jax.random.key(0))
    out: Any = {}
    for name, owner in task.frozen.items():
        wanted = weights.at(like, name)
        if not owner.path:
            raise ConfigError(
                f"teacher: missing, but {type(task).__name__} reconstructs with a frozen network "
                f"({', '.join(wanted)}); allowed: mimjax.load(..., teacher=FILE)"
            )
        named, quiet = owner._replace(key="teacher"), lambda line: None
        tree = weights.read_network(owner.path, wanted, named, quiet, task.encoder.grid)
        out = weights.put(out, name, tree)
    return out
