"""Fixed positions of weights that were trained on images of another size.

A network knows the coordinates of the grid that it was trained on. Where a config has images of
another size than the weights it begins with, the grid of the weights is written into the config
(`pos_grid`), so that the run records it and interpolates that grid's table instead of making one
for coordinates that the network has never seen. Learned positions are resized when they are read.
"""

from __future__ import annotations

import copy
import json
import math

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference import contradictions, places
from mimjax.methods.mim import MIM
from mimjax.models.positions import Grid
from mimjax.models.vit import table_grid
from mimjax.networks import Student
from mimjax.schema import Config
from mimjax.storage.files import Workdir
from mimjax.task import Clock
from mimjax.torch_io.read import detect, files, sizes


def of_file(path: str) -> Grid | None:
    """Return rows and columns of a file's fixed positions; None = it has none, or cannot be read.

    Whoever reads its weights says what is wrong with it.
    """
    try:
        read = files.read(path)
        layout = files.layout_of(read)
    except ConfigError:
        return None
    if layout == detect.OWN:  # it says what computes the positions, and has no table
        encoder = json.loads(read.about.get("encoder", "{}"))
        patch = encoder.get("patch") or math.prod(encoder.get("strides", ()))
        sides = [side // patch for side in encoder.get("image_size", ())]
        return tuple(encoder.get("pos_grid") or sides) or None
    file = sizes.FileTensors(read.state, layout, path)
    found = [sizes.fixed_grid(file, root) for root in sorted({k.split("/")[0] for k in file.keys})]
    found += [sizes.fixed_grid(file, root) for root in detect.TABLES[layout][1].values()]
    return next((grid for grid in found if grid), None)


def of_workdir(path: str) -> Grid | None:
    """Return rows and columns of a run's fixed positions; None = it has none, or is no run."""
    try:
        run = contradictions.task_of(Workdir(path, writer=False))[1]
    except ConfigError:
        return None
    if not isinstance(run, MIM):
        return None
    return run.encoder.pos_grid or run.encoder.grid


def of_weights(path: str) -> Grid | None:
    """Return rows and columns of the fixed positions in a file or a workdir; None = none."""
    return of_file(path) if files.is_weights(path) else of_workdir(path)


def fill(c: Config) -> Config:
    """Return the config with the grid of the positions that the weights of `init_from` have.

    It is written where the images of the config have another grid, a network has fixed positions,
    and the config does not name a grid itself.
    """
    if not c.init_from or "pos_grid" not in (c.method.get("encoder") or {}):
        return c
    task = schema.make_task(c, Clock(1, 1))
    if not isinstance(task, MIM) or task.encoder.pos_grid or not has_fixed(task):
        return c
    made_for = of_weights(c.init_from)
    return with_grid(c, made_for) if differs(task.encoder, made_for) else c


def has_fixed(task: MIM) -> bool:
    """Return whether the encoder, or a network behind it, has fixed positions."""
    networks = (task.network(name) for name in task.networks)
    return bool(task.encoder.positions) or any("pos_grid" in n.DERIVED for n in networks)


def differs(encoder: Student, made_for: Grid | None) -> bool:
    """Return whether a table's grid is another one than that of the encoder's images."""
    return made_for is not None and made_for != (table_grid(encoder) or tuple(encoder.grid))


def with_grid(c: Config, grid: Grid | None) -> Config:
    """Return a copy of a config with this grid of the encoder's fixed positions."""
    locked = getattr(c, "is_locked", False)
    c = copy.deepcopy(c).unlock()
    del c.method.encoder.pos_grid  # a ConfigDict would keep the type of None
    c.method.encoder.pos_grid = grid
    return c.lock() if locked else c


def continued(c: Config, workdir: str) -> Config:
    """Return the config with the grid that a workdir's run took over from its first weights.

    A run that is continued needs its first weights no more, nor the setting that named them.
    """
    place = Workdir(workdir, writer=False)
    if "pos_grid" not in (c.get("method", {}).get("encoder") or {}) or c.method.encoder.pos_grid:
        return c
    if not places.has_checkpoints(place):
        return c
    try:
        before = place.read_json("config.json").get("method", {}).get("encoder", {})
    except ConfigError:
        return c  # damaged: whoever opens the workdir says so
    same = contradictions.plain(c.method.encoder.image_size) == before.get("image_size")
    grid = before.get("pos_grid")
    return with_grid(c, (grid[0], grid[1])) if grid and same else c
