"""Files that `mimjax export` wrote, read back without help: they say what no tensor shows.

Every such file holds its encoder's settings, and one with all networks (`--decoder`) those of the
method too. A file never makes mimjax import a user's own class: one is found if it was imported
already, and otherwise named in the error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mimjax import plugs, schema
from mimjax.errors import ConfigError
from mimjax.inference import published, teachers
from mimjax.models.published_vit import PublishedViT
from mimjax.models.vit import ViT
from mimjax.schema import Config
from mimjax.storage import config_version
from mimjax.task import Clock, EncoderNetwork, Pretraining, initial, pretraining
from mimjax.torch_io.read import detect, load
from mimjax.torch_io.read.sizes import FileTensors


def describe(c: Config) -> str:
    """Return what a file with all networks of a run says of its method, as JSON.

    Places of frozen networks are left out, and of a user's file the folders above it.
    """
    settings = {"task": c.task, "method": json.loads(json.dumps(c.method.to_dict()))}
    for key in teachers.paths(c):
        *sections, last = key.split(".")
        node = settings
        for name in sections:
            node = node[name]
        node[last] = None
    for node, key in named_classes(settings):
        node[key] = short(node[key])
    return json.dumps({config_version.KEY: config_version.VERSION, **settings})


def short(name: str) -> str:
    """Return the name of a class in which a user's file stands without its folder."""
    file, _, cls = name.rpartition(":")
    return f"{os.path.basename(file)}:{cls}" if file.endswith(".py") else name


def named_classes(settings: dict[str, Any], key: str = "task") -> Iterator[tuple[dict, str]]:
    """Yield each place of nested settings that names a class: the dictionary and its key."""
    if isinstance(settings.get(key), str):
        yield settings, key
    for value in settings.values():
        if isinstance(value, dict):
            yield from named_classes(value, "type")


def class_name(name: str, where: str) -> str:
    """Return the name by which `plugs.find_class` finds a class that a file names.

    Raises:
      ConfigError: it is neither mimjax's nor imported.
    """
    module, _, cls = name.rpartition(":")
    if module.split(".")[0] == "mimjax" or module in sys.modules:
        return name
    for path in plugs.user_files():
        same = os.path.basename(path) == os.path.basename(module)
        if same and hasattr(plugs.import_file(path), cls):
            return f"{path}:{cls}"
    raise ConfigError(
        f"{where} names {name}, a class of a user's own, which no file makes mimjax import; "
        f"allowed: mimjax.plugs.import_file({os.path.basename(module)!r}) before, or the run's "
        "workdir"
    )


def method_config(file: FileTensors) -> tuple[Config | None, str]:
    """Return task and method of a file with all its networks, or None and why it lacks them.

    Without a user's class that is not imported the encoder can still be read.

    Raises:
      ConfigError: another version made the file.
    """
    if "settings" not in file.about:
        return None, (
            f"{file.where} holds an encoder and no decoder; allowed: the workdir of a pretraining "
            "run, or an export of it with --decoder"
        )
    where = f"{file.where}: its metadata"
    settings = config_version.upgrade(json.loads(file.about["settings"]), where)
    try:
        for node, key in named_classes(settings):
            node[key] = class_name(node[key], file.where)
    except ConfigError as error:
        return None, str(error)
    return ConfigDict({"dtype": "auto", "seed": 0, **settings}), ""


def read(c: Config, file: FileTensors, choice: published.Choice) -> published.Imported:
    """Return a file with all networks as the weights of its method, see `method_config`.

    Raises:
      ConfigError: the class is no method of ours, tensors do not fit, or `choice` says what the
        file says.
    """
    for name in ("heads", "decoder_heads", "image_size"):
        if getattr(choice, name) is not None:
            raise ConfigError(f"{name}: the file says it itself ({file.where}); allowed: without")
    cls = plugs.find_class(c.task, f"{file.where}: task")
    if not (isinstance(cls, type) and issubclass(cls, Pretraining)):
        raise ConfigError(
            f"{file.where}: {c.task} pretrains no encoder; allowed: files of encoders"
        )
    task = pretraining(schema.make_task(c, Clock(1, 1)))
    like = jax.eval_shape(initial(task), jax.random.key(0))[0]
    place = load.place_of(task.encoder)
    params, absent = load.take(file.state, like, file.layout, file.where, *place)
    lines = published.report(file, params, absent, {})
    return published.Imported(c, task, params, {}, absent, file, lines)


def encoder_of(file: FileTensors) -> Any:
    """Return the encoder of a file, whose metadata hold its settings and its class.

    Other layouts than ours hold what a class of a library computes, so that of a user's encoder
    only the settings of the plain one are read.

    Raises:
      ConfigError: a user's class is not imported, or another version made the file.
    """
    settings = json.loads(file.about["encoder"])
    # files say no version
    settings = config_version.without_sentinels(settings, "method.encoder.")
    settings = config_version.with_named_remat(settings)
    known = {cls: set(schema.defaults(cls)) for cls in plugs.shipped(EncoderNetwork).values()}
    stages = "strides" in settings
    cls = next(cls for cls, names in known.items() if ("strides" in names) == stages)
    said = file.about.get("encoder_class", plugs.class_path(cls))
    if said != plugs.class_path(cls) and file.layout == detect.OWN:
        cls = plugs.find_plug(
            EncoderNetwork, class_name(said, file.where), f"{file.where}: encoder"
        )
    elif said != plugs.class_path(cls):
        settings = {name: value for name, value in settings.items() if name in known[cls]}
    if wrong := settings.keys() - set(schema.defaults(cls)):
        raise ConfigError(
            f"{file.where}: its metadata names settings that {cls.__name__} does not have: "
            f"{', '.join(sorted(wrong))}; it was made by another version"
        )
    settings["type"] = plugs.class_path(cls)
    return schema.build(cls, settings, f"{file.where}: encoder")


def without_class_token(file: FileTensors, encoder: ViT) -> tuple[FileTensors, PublishedViT]:
    """Return file and encoder without the class token, for which the file's layout has no place.

    The patch tokens then attend to patch tokens alone, which is what the library of such a layout
    computes (detectron2's ViT, which cuts the class token's row off the positions, too).

    Args:
      file: a file for which `lacks_class_token` holds.
      encoder: that of its metadata, a `models.vit.ViT` as it is in the file.
    """
    state = file.state
    for key in file.keys.get("encoder/pos_embed", ()):
        state = state | {key: state[key][:, encoder.num_prefix :]}
    network = PublishedViT(
        width=encoder.width,
        depth=encoder.depth,
        heads=encoder.heads,
        patch=encoder.patch,
        hidden=int(encoder.width * encoder.mlp_ratio),
        image_size=encoder.image_size,
        classes=0,
        learned=encoder.pos_embed == "learned",
        bias=encoder.bias,
        layer_scale=encoder.layer_scale,
        stream=encoder.stream,
    )
    return FileTensors(state, file.layout, file.where, file.about, file.beside), network


def lacks_class_token(file: FileTensors) -> bool:
    """Return whether the layout of a file has no place for an encoder's class token."""
    rows = detect.TABLES[file.layout][0]
    return (
        file.has("encoder")
        and file.layout != detect.OWN
        and not any(row.ours == "encoder/cls_token" for row in rows)
    )
