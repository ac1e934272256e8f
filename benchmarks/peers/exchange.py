"""mimjax's side: a train step on one CPU device, and the case that a peer must reproduce.

A case is a file of arrays: weights and frozen networks under the names of published checkpoints,
one batch, the loss and the norm of the gradient that mimjax makes of it, and the settings. Branches
are not dropped, so that both sides compute the same numbers; the decision costs no time.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches, schema, sharding
from mimjax.run.sections import load as load_config
from mimjax.run.setup import setup
from mimjax.torch_io.read import load
from mimjax.train.flops import step_flops

SMALLEST = {"mcmae": "s", "mrmae": "s"}  # sizes that a method does not have
# The layouts under whose names weights are written; a peer says which one it reads.
LAYOUTS = {
    "mae": ("mae", "vitmae_transformers"),
    "bootmae": ("bootmae",),
    "beit": ("beit",),
    "cae": ("cae",),
    "caev2": ("cae",),
    "mcmae": ("mcmae",),
    "mrmae": ("mcmae",),
}
FROZEN = {"dalle": "flava", "clip": "clip_hf"}  # network: layout
DECODERS = {"ti": (256, 4, 8)}  # of MAE's kind: width, depth, heads; else 512, 8, 16
# Sizes of the shape "tiny", which tests the program itself.
TINY = {
    "encoder": {"width": 32, "depth": 2, "heads": 2, "patch": 8, "image_size": (32, 32)},
    "decoder": {"width": 24, "depth": 1, "heads": 2},
    "regressor": {"depth": 1, "heads": 4},
    "pixel_decoder": {"width": 20, "depth": 1},
    "feature_decoder": {"depth": 1},
}
TINY_CONV = {"stage_widths": (8, 16), "stage_depths": (1, 1), "strides": (2, 2, 2)}
TINY_NETWORKS = {
    "vocab": {"n_hid": 8, "n_blk": 1, "vocab": 64},
    "proj_dim": {"width": 32, "depth": 2, "heads": 2, "patch": 8, "pos_grid": (4, 4)},
}


def config(name: str, shape: str, batch: int, dtype: str = "float32") -> Any:
    """Return the published configuration of a method at a size, without dropped branches.

    Args:
      shape: a size of configs/, or "tiny".
      dtype: the type of computation.
    """
    size = SMALLEST.get(name, "ti") if shape in ("ti", "tiny") else shape
    c = load_config(f"{name}:size={size}").unlock()
    c.batch_size, c.dtype = batch, dtype
    m = c.method
    for part in (m[k] for k in m if hasattr(m[k], "keys")):
        if "drop_path" in part:
            part.drop_path = 0.0
    if size in DECODERS and "decoder" in m and "width" in m.decoder:
        m.decoder.width, m.decoder.depth, m.decoder.heads = DECODERS[size]
    if shape == "tiny":
        shrink(m)
    return c.lock()


def shrink(m: Any) -> None:
    """Give a method the sizes of the shape "tiny"."""
    for name, sizes in TINY.items():
        if name in m and m[name] is not None:
            m[name].update({k: v for k, v in sizes.items() if k in m[name]})
    if "strides" in m.encoder:
        m.encoder.update(TINY_CONV)
    if len(m.encoder.fuse_layers) > 1:
        m.encoder.fuse_layers = (0, 1)
    if m.encoder.get("project"):
        m.encoder.project = 16
    parts = [m[k] for k in m if hasattr(m[k], "keys")]
    for net in [part.network for part in parts if hasattr(part.get("network"), "keys")]:
        net.update(next(v for k, v in TINY_NETWORKS.items() if k in net))
        if net.get("proj_dim"):
            net.proj_dim = 24


def make_batch(task: Any, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images of every view and masks, as the data pipeline delivers them."""
    rng, source = np.random.default_rng(seed), random.Random(seed)
    data = {
        k: rng.integers(0, 256, (batch, *v.size, v.channels), np.uint8)
        for k, v in task.views.items()
    }
    made = [task.sample(source, 0) for _ in range(batch)]
    data |= {k: np.stack([x[k] for x in made]) for k in made[0]}
    return data | {k: np.zeros(batch, np.int32) for k in ("label", "index")}


def settings(task: Any) -> dict[str, Any]:
    """All settings of a method, its networks with the sizes that the encoder gives them."""
    sized = {name: task.network(name) for name in task.networks}
    return schema.section(dataclasses.replace(task, **sized)).to_dict()


def inputs(task: Any, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch as a peer reads it.

    Returns:
      "image": the student's view, normalized, [b c h w]; "target": that of the frozen network,
      normalized by its own statistics; "mask" bool [b n] where the host draws it.
    """
    out = {k: data[k] for k in ("mask",) if k in data}
    wanted = {"image": ("image", task)}
    for target in (t for t in task.targets.values() if hasattr(t, "mean")):
        wanted["target"] = next(iter(target.views(task.encoder)), "image"), target
    for name, (view, part) in wanted.items():
        x = np.asarray(patches.normalize(jnp.asarray(data[view]), part.mean, part.std))
        out[name] = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return out


def prepare(
    name: str, shape: str, batch: int, case: str = "", dtype: str = "float32"
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A train step of mimjax on one device, and what is known of it.

    Args:
      case: path to which the case is written; "" = it is not.
      dtype: the type of computation.

    Returns:
      () -> loss; {"parameters_m", "frozen_m", "gflop"}: the last by image, products alone.
    """
    c = config(name, shape, batch, dtype)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = setup(c, mesh=mesh, images=1000 * batch).program
    task: Any = run.task
    compiled, state = run.compile(), run.init()
    frozen = jax.jit(task.init_frozen)(jax.random.key(1))
    data = make_batch(task, batch)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    known = {"parameters_m": count(state.params), "frozen_m": count(frozen)}
    known["gflop"] = step_flops(task) / 1e9
    arrays = {f"in/{k}": v for k, v in inputs(task, data).items()}
    for layout in LAYOUTS[name] if case else ():
        weights = load.to_torch(state.params, layout)
        arrays |= {f"sd/{layout}/{k}": v for k, v in weights.items()}
    for networks in frozen.values() if case else ():
        for network, tree in networks.items():
            weights = load.to_torch({network: tree}, FROZEN[network])
            arrays |= {f"frozen/{network}/{k}": v for k, v in weights.items()}
    rows = sharding.to_global(mesh, data)
    metrics: dict[str, Any] = {}

    def step() -> float:
        nonlocal state, metrics
        state, metrics = compiled(state, frozen, rows)
        return float(metrics["loss/total"])

    if case:
        step()
        arrays |= {k: np.asarray(metrics[k]) for k in ("loss/total", "grad_norm")}
        rule = c.optimizer
        meta = {
            "method": settings(task),
            "masked": task.num_masked,
            "weights": {k: float(metrics[f"weight/{k}"]) for k in task.terms},
            "optimizer": {
                "betas": (rule.rule.b1, rule.rule.b2),
                "weight_decay": rule.weight_decay,
                "clip_norm": rule.clip_norm,
            },
            "decay": float(metrics.get("ema_decay", 1.0)),
        }
        np.savez(case, allow_pickle=False, meta=json.dumps(meta), **arrays)
    return step, known
