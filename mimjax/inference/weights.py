"""Reading of the weights that a config names, from a workdir or a published file.

They are where a run begins (`init_from`) or the frozen networks of its targets, each of which names
a file or workdir in its own section (`method.code_target.path`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mimjax import rules
from mimjax.errors import ConfigError
from mimjax.inference import contradictions, pixels, places
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import table_grid
from mimjax.networks import Student
from mimjax.rng import step_key
from mimjax.schema import Config
from mimjax.storage.files import Workdir
from mimjax.task import Encoder, EncoderNetwork, Frozen, Pretraining, Task
from mimjax.torch_io.read import beside, detect, files, load, positions, sizes, vision
from mimjax.torch_io.tables import methods

PyTree = Any
Say = Callable[[str], None]
Sources = dict[str, dict[str, str]]  # by the owner of frozen networks: "path" and "sha256"
TEACHER_FILE = "teacher.json"  # `Sources`: where frozen weights came from
RANDOM = "random"  # as a path: noise


def grid_of(task: Task) -> tuple[int, int] | None:
    """Return rows and columns of the encoder's patches; None = the task pretrains no encoder."""
    return task.encoder.grid if isinstance(task, Pretraining) else None


def place_of(task: Task) -> tuple[Any, ...]:
    """Return `grid`, `order` and `made_for` of `read_params` for what a task trains."""
    return load.place_of(task.encoder) if isinstance(task, Pretraining) else ()


def read_params(
    path: str,
    like: PyTree,
    key: str,
    say: Say,
    grid: tuple[int, int] | None = None,
    order: str = "",
    made_for: tuple[int, int] | None = None,
    c: Config | None = None,
) -> PyTree:
    """Read parameters from a workdir or a published file; None for subtrees that it lacks.

    Args:
      like: abstract parameters, {"encoder": ..., ...}.
      key: the config key, for errors.
      grid: rows and columns of the encoder's patches; learned positions are resized to them.
      order, made_for: of the encoder's fixed positions, see `load.from_torch`.
      c: the config whose run begins with these weights; None = they are a frozen network's.
    """
    if not files.is_weights(path):
        places.check_source(path, key)
        try:
            params = run_params(places.existing(path, key), like, grid, say)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(key) else f"{key}: {text}") from None
        say(f"weights: all of {', '.join(like)} from {path}")
        return params
    file = load.read(path)
    where = f"{key}: {path}"
    layout = files.layout_of(file, f"{where}: ", like)
    facts = beside.Beside() if file.about else beside.read(files.weights_file(path))
    tensors = sizes.FileTensors(file.state, layout, where, file.about, facts)
    facts.check_tensors(tensors)
    if "encoder" in like and layout != detect.OWN:
        vision.refuse(tensors)
    if not file.about:  # what mimjax exported says what it lacks
        load.check_fused(file.state, like, layout, where)
    out, absent = load.take(file.state, like, layout, where, grid, order, made_for)
    fresh = f"; {', '.join(absent)} not in the file: random" if absent else ""
    say(f"weights: {', '.join(k for k in like if k not in absent)} from {path} ({layout}){fresh}")
    if grid and "encoder" in like and layout != detect.OWN:
        for line in sizes.resizing(tensors, grid, 0 if layout in methods.NO_CLS else 1, "encoder"):
            say(line)
    if c is not None and "decoder" in like and "decoder" not in absent:
        for line in pixels.kept(c, tensors):
            say(line)
    return out


def run_params(workdir: Workdir, like: PyTree, grid: tuple[int, int] | None, say: Say) -> PyTree:
    """Read parameters from a run's newest checkpoint; learned positions are resized to `grid`."""
    from mimjax.storage.checkpoints import Checkpoints  # orbax, which no file needs

    reader = Checkpoints(workdir, read_only=True)
    run = contradictions.task_of(workdir)[1] if grid and "encoder" in like else None
    if grid is None or not isinstance(run, Pretraining) or run.encoder.grid == grid:
        return reader.params(like)
    encoder: Encoder = run.encoder
    shapes = {}  # of the run's position tables
    init = jax.eval_shape(run.init, jax.random.key(0))[0]
    positions.in_tree(init["encoder"], lambda name, x: shapes.setdefault(name, x.shape))

    def stored(name: str, x: Any) -> Any:
        sharding = x.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shapes.get(name, x.shape), x.dtype, sharding=sharding)

    def resize(name: str, x: Any) -> np.ndarray:
        if name == "pos_embed":
            return resize_absolute(np.asarray(x), encoder.grid, grid, 0.0, encoder.num_prefix)
        return positions.resize_relative(np.asarray(x), encoder.grid, grid)

    params = reader.params(like | {"encoder": positions.in_tree(like["encoder"], stored)})
    say(positions.moved(encoder.grid, grid, "interpolation"))
    return params | {"encoder": positions.in_tree(params["encoder"], resize)}


def make_frozen(
    c: Config,
    task: Task,
    abstract: PyTree,
    workdir: Workdir,
    sample: Callable[[int], np.ndarray],
    say: Say,
    meta: dict[str, Any] | None = None,
) -> tuple[PyTree, Sources]:
    """Make the frozen parameters: each owner's from its path, or estimated from the data.

    Args:
      abstract: shapes and shardings of `task.init_frozen`.
      sample: see `Task.fit_frozen`.
      meta: metadata of the checkpoint that is continued.

    Returns:
      The tree, and what was read for each owner of `task.frozen` that names a path.

    Raises:
      ConfigError: a target has a frozen network and no path is given, the file does not fit, or it
        is not the one that the workdir was made with.
    """
    owners = {name: frozen for name, frozen in task.frozen.items() if frozen.key}
    for name, owner in owners.items():
        if not owner.path and owner.alone:
            raise ConfigError(
                f"{owner.key}: none, and {c.task} trains no encoder; allowed: --model=PATH of a "
                f"workdir, .safetensors, .pth, or '{RANDOM}' (an untrained encoder)"
            )
        if not owner.path:
            names = ", ".join(at(abstract, name))
            raise ConfigError(
                f"{owner.key}: none, but {c.task} learns from a frozen network ({names}); "
                "allowed: a workdir, .safetensors, .pth (see docs/teachers.md), or "
                f"'{RANDOM}' (tests and benchmarks only)"
            )
    files = {name: str(o.path) for name, o in owners.items() if o.path != RANDOM}
    count = lambda tree: len(jax.tree.leaves(tree))
    frozen, sharding = {}, jax.tree.map(lambda x: x.sharding, abstract)
    if sum(count(at(abstract, name)) for name in files) < count(abstract):
        frozen = jax.jit(task.init_frozen, out_shardings=sharding)(step_key(c.seed, "init", 1))
        frozen = task.fit_frozen(frozen, sample)
    sources: Sources = {}
    for name, owner in owners.items():
        if name not in files:
            noise = "the targets are noise; for tests and benchmarks only"
            noise = "the encoder is untrained" if owner.alone else noise
            say(f"WARNING: {owner.key}={RANDOM}: {noise}")
            sources[name] = {"path": RANDOM, "sha256": "random weights"}
            continue
        path, like = files[name], at(abstract, name)
        tree = (read_alone if owner.alone else read_network)(path, like, owner, say, grid_of(task))
        sources[name] = {"path": path, "sha256": checksum(path, tree)}
        what = name if owner.alone else "teacher"
        say(f"{what}: {path}, sha256 {sources[name]['sha256']}")
        frozen = put(frozen, name, tree)
    keys = {name: owner.key for name, owner in owners.items()}
    check_teachers(sources, keys, workdir, meta or {}, say)
    return jax.tree.map(lambda x, s: jax.device_put(x, s), frozen, sharding), sources


def at(tree: PyTree, name: str) -> PyTree:
    """Return the subtree of a dotted name; {} where there is none."""
    for part in name.split("."):
        tree = tree.get(part, {})
    return tree


def put(tree: PyTree, name: str, value: PyTree) -> PyTree:
    """Return the tree with another subtree at a dotted name."""
    first, _, rest = name.partition(".")
    return tree | {first: put(tree.get(first, {}), rest, value) if rest else value}


def read_network(
    path: str, like: PyTree, owner: Frozen, say: Say, grid: tuple[int, int] | None
) -> PyTree:
    """Read the frozen networks of one owner, all of them, and compare their settings first.

    Args:
      like: abstract parameters by the name of the network.
      grid: see `read_params`.

    Raises:
      ConfigError: settings contradict each other, or the path does not hold the networks.
    """
    places.check_source(path, owner.key)
    contradictions.check(path, owner.key, owner.readers, say)
    network = owner.readers["encoder"].network if "encoder" in owner.readers else None
    place: tuple[Any, ...] = ("", None)
    if isinstance(network, EncoderNetwork):  # it reads views of the student's grid
        student: Student = network
        place = student.positions, table_grid(student)
    tree = read_params(path, like, owner.key, say, grid, *place)
    count = lambda tree: len(jax.tree.leaves(tree))
    if absent := [name for name in like if count(tree[name]) < count(like[name])]:
        raise ConfigError(f"{owner.key}: {path} does not hold all of {', '.join(absent)}")
    return tree


def read_alone(
    path: str, like: PyTree, owner: Frozen, say: Say, grid: tuple[int, int] | None
) -> PyTree:
    """Read the encoder of a transfer task; see `read_network`.

    Args:
      grid: ignored, the images are the encoder's.
    """
    network = owner.readers["encoder"].network
    if not files.is_weights(path):
        return read_network(path, like, owner, say, network.grid)
    from mimjax.inference import loading, teachers  # which read what a config fills in

    contradictions.check(path, owner.key, owner.readers, say)
    read = lambda: loading.load(path, network.heads, image_size=network.image_size)
    model = teachers.named(owner.key, read)
    for line in model.report:
        say(f"weights: {line}")
    shapes = lambda tree: [(p, x.shape) for p, x in zip(rules.paths(tree), jax.tree.leaves(tree))]
    if differing := sorted({*shapes(like["encoder"])} ^ {*shapes(model.params["encoder"])}):
        raise ConfigError(
            f"{owner.key}: {path} has other arrays than {owner.key.removesuffix('path')}network "
            f"({differing[0][0]} {differing[0][1]}); allowed: network=None, which takes the file's"
        )
    return {"encoder": model.params["encoder"]}


def check_teachers(
    sources: Sources, keys: Mapping[str, str], workdir: Workdir, meta: dict[str, Any], say: Say
) -> None:
    """Compare the frozen weights with those that the workdir's run began with.

    Args:
      sources: what was read.
      keys: the setting that named it, by owner.
      meta: metadata of the checkpoint that is continued, which repeats teacher.json; {} = none.

    Raises:
      ConfigError: they differ, or nothing says what they were.
    """
    if not sources:
        return
    kept, there = known_sources(meta.get("teacher"), sources), workdir.file(TEACHER_FILE).exists()
    try:
        before = known_sources(workdir.read_json(TEACHER_FILE), sources)
    except ConfigError:
        before = {}
    if there and not before:
        if not kept:
            raise ConfigError(
                f"--workdir: {workdir.file(TEACHER_FILE)} is damaged; allowed: the file as a run "
                "wrote it (restore it from a copy)"
            )
        say(f"{TEACHER_FILE} is damaged: the checkpoint says what it held")
    for name, known in (before or kept).items():
        source = sources.get(name, known)
        if known["sha256"] != source["sha256"]:
            raise ConfigError(
                f"{keys[name]}: {source['path']} (sha256 {source['sha256'][:14]}), but the workdir "
                f"was made with {known['path']} (sha256 {known['sha256'][:14]}); use the same "
                "weights or another --workdir"
            )


def known_sources(content: Any, sources: Sources) -> Sources:
    """Return what teacher.json or a checkpoint says of each owner; {} where it is not complete.

    Older versions kept one path and one checksum for all frozen networks, with commas between
    several, in any order.

    Args:
      sources: what was read now, whose owners an old record is about.
    """
    if not isinstance(content, dict):
        return {}
    complete = lambda x: isinstance(x, dict) and {"path", "sha256"} <= x.keys()
    if not complete(content):
        return content if all(map(complete, content.values())) else {}
    digests = str(content["sha256"]).split(",")
    out = {}
    for number, (name, source) in enumerate(sources.items()):
        digest = digests[min(number, len(digests) - 1)]
        same = source["sha256"] if source["sha256"] in digests else digest
        out[name] = {"path": str(content["path"]), "sha256": same}
    return out


def checksum(path: str, trees: PyTree) -> str:
    """Return the sha256 of a file, or of a checkpoint's arrays (names and float32 bytes)."""
    if files.is_weights(path):
        with open(files.weights_file(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, x in zip(rules.paths(trees), jax.tree.leaves(trees), strict=True):
        digest.update(name.encode() + np.asarray(x, np.float32).tobytes())
    return digest.hexdigest()
