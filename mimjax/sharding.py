"""The mesh and the shardings of state and batch; the code is the same for one CPU and for a pod.

The axes of the mesh are ("data", "fsdp"). The batch is split over both, parameters by rules (regex,
"fsdp" | "replicate"). Shardings are computed on shapes, and the state is created under them, so
that no device ever holds more than its share (`train.program`).
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
    """Return a mesh over all devices.

    Args:
      data, fsdp: sizes of the two axes; data = None is the number of devices / fsdp.
      devices: None = all devices of the run.

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
    """Return how one tensor is split over the mesh.

    Args:
      shape: of the tensor.
      tactic: "replicate", or "fsdp" = split the largest dimension that is divisible by `fsdp`.
      fsdp: devices on the axis "fsdp".
      small: tensors with fewer elements are replicated.

    Raises:
      ConfigError: another tactic.
    """
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
    """Return a sharding for every leaf of the state; EMA and optimizer slots follow parameters.

    Args:
      state: the state or its abstract tree.
      sharding_rules: (regex, tactic) over parameter paths, see `spec`.
      small: tensors with fewer elements are replicated.

    Raises:
      ConfigError: a rule does not fit, see `rules.match` and `spec`.
    """
    tactics = rules.match(sharding_rules, state.params, "sharding")
    fsdp = mesh.shape["fsdp"]
    specs = jax.tree.map(lambda x, t: spec(x.shape, t, fsdp, small), state.params, tactics)
    everywhere = rules.inherit(state.params, specs, state, PartitionSpec())
    # A slot of fewer dimensions than its parameter (a scalar per parameter) is replicated.
    return jax.tree.map(
        lambda x, s: NamedSharding(mesh, s if len(s) <= x.ndim else PartitionSpec()),
        state,
        everywhere,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, BATCH)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """Return the rows of the global batch that this process makes.

    Raises:
      ConfigError: the batch does not divide over the devices, or those of a process do not follow
        each other in the mesh.
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
    """Return the global batch, split over all devices, from the rows of each process.

    Args:
      batch: the rows of this process (`local_rows`), by name.
    """
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
