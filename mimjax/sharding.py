"""Mesh and shardings: one code path for one CPU and for a pod.

Mesh axes are ("data", "fsdp"); the batch lies over both; parameters by rule. Shardings are computed
on shapes, and the state is created under them, so that no device ever holds more than its share.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mimjax import rules
from mimjax.errors import ConfigError
from mimjax.task import TrainState

PyTree = Any
AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
SMALL = 2**16  # elements; smaller tensors are replicated: sharding them costs more than it saves


def make_mesh(data: int | None = None, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; `data` = None takes what `fsdp` leaves.

    Raises:
      ConfigError: the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if data is None:
        data = max(n // max(fsdp, 1), 1)
    if data < 1 or fsdp < 1 or data * fsdp != n:
        raise ConfigError(
            f"mesh: data={data} x fsdp={fsdp} does not make the {n} devices of this run; "
            "allowed: factors of the device count"
        )
    grid = np.asarray(devices).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def spec(shape: tuple[int, ...], tactic: str, fsdp: int, small: int = SMALL) -> PartitionSpec:
    """How one tensor is laid out: "replicate", or "fsdp" = its largest dimension that divides."""
    if tactic not in ("replicate", "fsdp"):
        raise ConfigError(f"sharding: {tactic!r}; allowed: replicate, fsdp")
    if tactic == "replicate" or fsdp == 1 or math.prod(shape) < small:
        return PartitionSpec()
    free = [i for i, size in enumerate(shape) if size % fsdp == 0]
    if not free:
        return PartitionSpec()
    best = max(free, key=lambda i: shape[i])
    return PartitionSpec(*(AXES[1] if i == best else None for i in range(len(shape))))


def state_shardings(
    mesh: Mesh, state: TrainState, sharding_rules: rules.Rules, small: int = SMALL
) -> TrainState:
    """A sharding for every leaf of the state; EMA and optimizer slots follow their parameter."""
    tactics = rules.match(sharding_rules, state.params, "sharding")
    fsdp = mesh.shape["fsdp"]
    specs = jax.tree.map(lambda x, t: spec(x.shape, t, fsdp, small), state.params, tactics)
    everywhere = rules.extend(state.params, specs, state, PartitionSpec())
    return jax.tree.map(
        lambda x, s: NamedSharding(mesh, s if len(s) <= x.ndim else PartitionSpec()),
        state,
        everywhere,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process makes.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ConfigError(
            f"batch_size: {batch_size} is not divisible by the {mesh.size} devices; "
            f"allowed: multiples of {mesh.size}"
        )
    per_device = batch_size // mesh.size
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    if mine != list(range(mine[0], mine[0] + len(mine))):
        raise ConfigError("mesh: the devices of a process are not contiguous; use data=None")
    return slice(mine[0] * per_device, (mine[-1] + 1) * per_device)


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A global array per key, split over the batch axis, from the rows of each process."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
