"""Version of the settings in `config.json`, and translations of older versions.

A run whose settings have another version than VERSION is continued through the translations in
this file and in `storage/config_from_3.py`; settings of a newer version are refused. A translation
is a function from the nested settings of one version to those of the next. Reading and writing the
file is in `storage/settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimjax.errors import ConfigError
from mimjax.plugs import MOVED
from mimjax.storage.config_from_3 import from_3

KEY = "config_version"
FILE_KEY = "config_file"  # the words of --config, which `mimjax report` compares with; no setting
VERSION = 5  # raise it and add a translation when a setting changes its name or its values

# Settings that came after a version without changing the others, with values that do nothing: so
# nothing seems to have changed in a run that began before them.
LATER: dict[str, Any] = {
    "compile_cache_dir": "auto",
    "data.augment.rand_augment": None,
    "data.repeats": 1,
}

Settings = dict[str, Any]


# Values that stood for None in version 1. Settings of `method` are found by the last part of their
# name, which means the same in every method; all others by their whole name.
UNSET_IN_METHOD: dict[str, Any] = {
    "feature": "",
    "heads": 0,
    "layer_scale": 0,
    "max_block": 0,
    "proj_dim": 0,
    "size": [0, 0],
    "width": 0,
}
UNSET: dict[str, Any] = {
    "data.options.length": 0,
    "data.path": "",
    "data.value_range": [0, 0],
    "eval.batch_size": 0,
    "init_from": "",
    "keep_every": 0,
    "mesh.data": -1,
    "optimizer.clip_norm": 0,
    "optimizer.lr": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay_end": -1,
    "resume": "",
    "steps": 0,
    "teacher.path": "",
}


def from_1(settings: Settings) -> Settings:
    """Translate version 1 (a file without a version): sentinels (0, -1, "") become None."""
    settings = {"restart": False} | masking_from_1(settings)
    if "data" in settings:
        settings["data"] = {"splits": "auto"} | settings["data"]
    return without_sentinels(settings)


def without_sentinels(settings: Settings, prefix: str = "") -> Settings:
    """Return the settings with None in place of version 1's sentinels.

    Args:
      settings: nested settings, or one section of them.
      prefix: name of the section with a dot ("method."); "" = all settings.
    """
    out: Settings = {}
    for name, value in settings.items():
        key = prefix + name
        if isinstance(value, dict):
            out[name] = without_sentinels(value, f"{key}.")
            continue
        table, entry = (UNSET_IN_METHOD, name) if prefix.startswith("method.") else (UNSET, key)
        plain = list(value) if isinstance(value, tuple) else value
        out[name] = None if entry in table and plain == table[entry] else value
    return out


def masking_from_1(settings: Settings) -> Settings:
    """Set the rounding that version 1 used; unset `max_block` for masks without blocks."""
    method = dict(settings.get("method", {}))
    if "masking" not in method:
        return settings
    kind = method["masking"].get("kind")
    # all methods rounded like MAE; for block masks CAE's rounding gives the same counts
    cae = settings.get("task") in ("mimjax.methods.cae:CAE", "mimjax.methods.caev2:CAEv2")
    method["masking"] = {"rounding": "cae" if cae and kind != "random" else "mae"} | method[
        "masking"
    ]
    if kind in ("random", "grid"):
        method["masking"]["max_block"] = 0  # the default was BootMAE's 60, which these never read
    return settings | {"method": method}


def from_2(settings: Settings) -> Settings:
    """Translate version 2: classes stood in other modules, and parts were named without a class."""
    return with_new_places(eval_from_2(with_plugs(settings)))


# What an evaluator did that version 2 had switched on.
EVALUATORS_OF_2: dict[str, Settings] = {
    "error": {"type": "mimjax.evaluators.error:MaskedError", "every": None},
    "health": {"type": "mimjax.evaluators.health:Health", "every": None, "warn_below": 0.003},
    "pictures": {"type": "mimjax.evaluators.pictures:Pictures", "every": None},
    "probes": {
        "type": "mimjax.evaluators.probes:Probes",
        "every": None,
        "classifiers": ["knn", "linear"],
        "ks": [1, 3, 5, 10, 20],
        "alphas": [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0],
    },
}


def eval_from_2(settings: Settings) -> Settings:
    """Translate the switches of the evaluators (`pictures`: a number of images) into sections."""
    if not isinstance(settings.get("eval"), dict):
        return settings
    out = dict(settings["eval"])
    for name, section in EVALUATORS_OF_2.items():
        value = out.get(name)
        if isinstance(value, bool | int):
            count = {"count": value} if name == "pictures" else {}
            out[name] = section | count if value else None
    return settings | {"eval": out}


def with_new_places(settings: Settings) -> Settings:
    """Return the settings with each class named by the module where it stands today."""
    return {
        name: with_new_places(value)
        if isinstance(value, dict)
        else MOVED.get(value, value)
        if name == "type" and isinstance(value, str)
        else value
        for name, value in settings.items()
    }


# What version 2 called the schedules of the learning rate, and which settings each of them read.
SCHEDULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mae": ("mimjax.schedules:MAECosine", ("warmup_epochs", "warmup_steps", "min_lr")),
    "beit": ("mimjax.schedules:BEiTCosine", ("warmup_epochs", "warmup_steps", "min_lr")),
    "constant": ("mimjax.schedules:Constant", ("warmup_epochs", "warmup_steps")),
}
# What version 2 called the data sources, and the settings of each with their defaults.
SOURCES: dict[str, tuple[str, Settings]] = {
    "digits": ("mimjax.data.sources:Digits", {}),
    "folder": ("mimjax.data.sources:Folder", {"test_fraction": 0.1}),
    "photos": ("mimjax.data.sources:Photos", {"length": None}),
    "synthetic": (
        "mimjax.data.sources:Synthetic",
        {"length": 1024, "num_classes": 10, "side": 64},
    ),
    "tfds": ("mimjax.data.sources:Tfds", {"dataset": None, "data_dir": None}),
}


def with_plugs(settings: Settings) -> Settings:
    """Write the optimizer, the data source and the boards as sections that name a class."""
    settings = dict(settings)
    if "optimizer" in settings:
        settings["optimizer"] = optimizer_from_2(settings["optimizer"])
    if "data" in settings:
        settings["data"] = data_from_2(settings["data"])
    wandb = {
        "mode": settings.pop("wandb", "off"),
        "project": settings.pop("wandb_project", "mimjax"),
    }
    settings["boards"] = {
        "tensorboard": {"type": "mimjax.train.boards:TensorBoard"},
        "wandb": {"type": "mimjax.train.boards:WandB"} | wandb,
    }
    return settings


def optimizer_from_2(old: Settings) -> Settings:
    """Give rule and schedule sections of their own; a setting that neither reads is dropped."""
    old = dict(old)
    old.pop("name", None)  # "adamw", the only one there was
    rule = {name: old.pop(name) for name in ("b1", "b2", "eps") if name in old}
    place, reads = SCHEDULES[old.pop("schedule", "mae")]
    read = {
        name: old.pop(name) for name in ("warmup_epochs", "warmup_steps", "min_lr") if name in old
    }
    schedule = {name: value for name, value in read.items() if name in reads}
    if place.endswith(":Constant"):
        schedule["value"] = 1.0
    return old | {
        "rule": {"type": "mimjax.train.optimizers:AdamW"} | rule,
        "schedule": {"type": place} | schedule,
    }


def data_from_2(old: Settings) -> Settings:
    """Make a section of the source's name and its options."""
    old = dict(old)
    place, defaults = SOURCES[old.pop("source", "folder")]
    options = defaults | old.pop("options", {})
    # a folder's options could also be given where all sources have them
    shared = {name: value for name, value in options.items() if name not in defaults}
    own = {name: value for name, value in options.items() if name in defaults}
    return old | shared | {"source": {"type": place} | own}


def from_4(settings: Settings) -> Settings:
    """Translate version 4: what a step computes twice was yes or no; two settings came."""
    settings = {"stream": "compute", "attention": "auto"} | settings
    if of_user(settings.get("task", "")):
        return settings
    return settings | {k: with_named_remat(v) for k, v in settings.items() if k == "method"}


def with_named_remat(section: Any) -> Any:
    """Return a section with `remat`, where it is True or False, by its name.

    Sections in it are translated too, but for those of a user's class.
    """
    if not isinstance(section, dict) or of_user(section.get("type", "")):
        return section
    out: Settings = {name: with_named_remat(value) for name, value in section.items()}
    if isinstance(out.get("remat"), bool):
        out["remat"] = "full" if out["remat"] else "none"
    return out


def of_user(name: str) -> bool:
    """Return whether a class is a user's own; short names are those of shipped classes."""
    return ":" in name and not name.startswith("mimjax.")


TRANSLATIONS: dict[int, Callable[[Settings], Settings]] = {
    1: from_1,
    2: from_2,
    3: from_3,
    4: from_4,
}


def completed(settings: Settings, path: list[str], value: Any) -> Settings:
    """Return settings with a value for one that they lack, if its section is there."""
    name, *rest = path
    if not rest:
        return {name: value} | settings
    inner = settings.get(name)
    if not isinstance(inner, dict):
        return settings
    return settings | {name: completed(inner, rest, value)}


def upgrade(settings: Settings, where: str) -> Settings:
    """Return settings of any known version as this version writes them, and nothing else.

    Args:
      settings: nested settings as read; not changed.
      where: name of the file, for errors.

    Raises:
      ConfigError: the version is newer than VERSION, or is none.
    """
    settings = {name: value for name, value in settings.items() if name != FILE_KEY}
    stored = settings.pop(KEY, 1)
    if stored in TRANSLATIONS or stored == VERSION:
        for version in range(stored, VERSION):
            settings = TRANSLATIONS[version](settings)
        for key, value in LATER.items():
            settings = completed(settings, key.split("."), value)
        return settings
    raise ConfigError(
        f"{where}: {KEY} {stored!r}; allowed: 1 to {VERSION} (a newer mimjax wrote this file; use "
        "that version, or another --workdir)"
    )
