"""Comparison of what a workdir or file says of its networks with how they are about to be read.

Shapes tell neither the number of heads nor the order of positions nor the statistics of images: a
network read with others loads without an error and computes something else.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from mimjax.errors import ConfigError
from mimjax.models.vit import table_grid
from mimjax.schema import build, find_class
from mimjax.storage import config_version
from mimjax.storage.files import Workdir
from mimjax.task import EncoderNetwork, Reader, Task
from mimjax.torch_io.read import beside, files

Say = Callable[[str], None]
# settings that change no output for full images in evaluation, or that shapes decide
TRAINING = {"drop_path", "remat", "init_scheme", "use_mask_token", "skip_masked", "image_size"}
TRAINING |= {"project"}  # what other networks read; exports and teachers are without it
TRAINING |= {"parent", "name", "dtype", "stream", "attention_form", "channels"}
PRESENCE = {"layer_scale"}  # compared as present or absent: the value is where training starts


def own_readers(task: Task, names: Iterable[str]) -> dict[str, Reader]:
    """Return the networks that a task trains, by name, as `check` takes them.

    The statistics of the images belong to the encoder, a tokenizer's too.
    """
    readers = {name: Reader(getattr(task, name, None)) for name in names}
    if "encoder" in readers:
        statistics = getattr(task, "mean", None), getattr(task, "std", None)
        readers["encoder"] = Reader(readers["encoder"].network, *statistics)
    return readers


def check(path: str, key: str, readers: Mapping[str, Reader], say: Say) -> None:
    """Compare what a source says of itself with how its networks will be read.

    Args:
      path: workdir or file.
      key: the setting that names it, for errors. For "init_from" other statistics of images are a
        warning; for a frozen network they are an error.
      readers: the networks by name.

    Raises:
      ConfigError: they contradict each other; both are named.
    """
    if files.is_weights(path):
        source, theirs = file_facts(path, readers)
    else:
        source, theirs = workdir_facts(path)
    for name, reader in readers.items():
        facts = theirs.get(name, {})
        for setting, here, there in differences(reader, facts):
            text = f"{key}: {source} has {setting} {there}"
            if setting in ("mean", "std") and key == "init_from":
                say(f"WARNING: {text}; this run has {here}")
                continue
            raise ConfigError(
                f"{text} in {name}, but it would be read with {setting} {here}; allowed: the same "
                "in both"
            )


def differences(reader: Reader, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting that differs, its value here and the source's."""
    if reader.network is not None:
        mine = facts_of(reader.network)
        for name, there in facts.items():
            if name in mine and name not in TRAINING:
                here = mine[name]
                if name in PRESENCE:
                    here, there = here is not None, there is not None
                if plain(here) != plain(there):
                    yield name, here, there
    for name in ("mean", "std"):
        here, there = getattr(reader, name), facts.get(name)
        if here is not None and there is not None and not near(here, there):
            yield name, tuple(here), tuple(there)


def settings_of(network: nn.Module) -> dict[str, Any]:
    """Return the settings of a network, without those that only training reads."""
    fields = [f.name for f in dataclasses.fields(network) if f.init and f.name not in TRAINING]
    return {name: getattr(network, name) for name in fields}


def facts_of(network: nn.Module) -> dict[str, Any]:
    """Return the settings of a network as they are compared.

    The grid that fixed positions are made for may be said or follow from the images.
    """
    facts = settings_of(network)
    if isinstance(network, EncoderNetwork):
        facts["pos_grid"] = table_grid(network)
    return facts


def plain(value: Any) -> Any:
    """Return a value as it compares: tuples become lists."""
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def near(here: Any, there: Any) -> bool:
    """Return whether two tuples of statistics agree to the digits that files are written with."""
    return len(here) == len(there) and all(abs(a - b) < 1e-3 for a, b in zip(here, there))


def task_of(workdir: Workdir) -> tuple[str, Task | None]:
    """Return the name of a workdir's `config.json` and its task; None where no run wrote one."""
    file = str(workdir.file("config.json"))
    settings = workdir.read_json("config.json")
    if "task" not in settings:  # missing, or another library's
        return file, None
    settings = config_version.upgrade(settings, file)
    cls = find_class(settings["task"], f"{file}: task")
    return file, build(cls, settings["method"], f"{file}: method")


def workdir_facts(path: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the settings of networks in a workdir's `config.json`; {} where there is none."""
    file, task = task_of(Workdir(path, writer=False))
    if task is None:
        return file, {}
    out = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if isinstance(value, nn.Module):
            out[field.name] = facts_of(value)
    statistics = {k: getattr(task, k) for k in ("mean", "std") if hasattr(task, k)}
    return file, {name: facts | statistics for name, facts in out.items()}


def file_facts(path: str, readers: Mapping[str, Reader]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return what a published file says of its encoder: in metadata, or in a config beside it."""
    path = files.weights_file(path)
    about = files.read(path).about if os.path.isfile(path) else {}
    if "heads" in about:
        numbers = lambda name: tuple(map(float, about[name].split(",")))
        statistics = {k: numbers(k) for k in ("mean", "std") if k in about}
        facts = {"heads": int(about["heads"])} | statistics
        return f"{path} (its metadata)", {"encoder": facts}
    told = beside.read(path)
    first = next(iter(readers), "encoder")
    name = "encoder" if "encoder" in readers else first
    told.check(quick=name == "clip")
    facts = {k: v for k in ("heads", "mean", "std") if (v := getattr(told, k)) is not None}
    return told.source or told.processor or path, {name: facts} if facts else {}
