"""PyTorch's side: a peer that starts from a case, is checked against it, and makes train steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.peers import cae, conv, plain
from benchmarks.peers.layers import Batch, Peer, Settings

TOLERANCE = 1e-4  # of loss and gradient norm, relative: float32 sums in another order
# The implementations of each method; of several the fastest counts.
METHODS: dict[str, dict[str, type[Peer]]] = {
    "mae": {"torch": plain.MAE, "transformers": plain.TransformersMAE},
    "bootmae": {"torch": plain.BootMAE},
    "beit": {"torch": plain.BEiT},
    "cae": {"torch": cae.CAE},
    "caev2": {"torch": cae.CAEv2},
    "mcmae": {"cells": conv.MCMAE, "dense": conv.DenseMCMAE},
    "mrmae": {"cells": conv.MRMAE, "dense": conv.DenseMRMAE},
}


class Variant(NamedTuple):
    """How a peer runs.

    Attributes:
      sdpa: whether attention is `scaled_dot_product_attention`.
      fused: whether AdamW is one kernel.
      compiled: whether torch.compile makes the programs.
      low: whether products are made in bfloat16, by autocast.
      device: "cpu" or "cuda".
    """

    sdpa: bool = True
    fused: bool = False
    compiled: bool = False
    low: bool = False
    device: str = "cpu"


VARIANTS = {
    "eager": Variant(sdpa=False),
    "sdpa": Variant(),
    "fused": Variant(fused=True),
    "compiled": Variant(fused=True, compiled=True),
}


def build(cls: type[Peer], meta: dict[str, Any], sdpa: bool = True) -> Peer:
    """A peer of the sizes of a case's settings, in training mode, frozen networks apart."""
    model = cls(Settings(meta["method"], meta["weights"], meta["masked"], sdpa))
    for name in cls.FROZEN:
        getattr(model, name).requires_grad_(False)
    return model


def tensors(z: Any, prefix: str) -> Batch:
    """The arrays of a case under `prefix/`, by the rest of their names."""
    return {
        k.removeprefix(f"{prefix}/"): torch.from_numpy(z[k])
        for k in z.files
        if k.startswith(f"{prefix}/")
    }


def check(
    model: Peer,
    batch: Batch,
    loss: float,
    grad_norm: float | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Compare the peer's loss, and the norm of its gradient, with given ones.

    Returns:
      The largest relative difference.

    Raises:
      AssertionError: a difference exceeds the tolerance; a peer of another function is not timed.
    """
    with torch.no_grad():
        given = model.targets(batch)
    value = model(given)
    value.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    lacking = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking, f"no gradient: {lacking}"
    found = {"loss": (value.item(), loss)}
    if grad_norm is not None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        found["gradient norm"] = (norm.item(), grad_norm)
    worst = 0.0
    for name, (ours, theirs) in found.items():
        gap = abs(ours / theirs - 1)
        assert gap <= tolerance, f"{type(model).__name__}: {name} {ours}, of mimjax {theirs}"
        worst = max(worst, gap)
    for p in trained:
        p.grad = None
    return worst


def read(path: str, cls: type[Peer], sdpa: bool = True) -> tuple[Peer, Batch, dict[str, Any], Any]:
    """A peer with the weights of a case, its batch, its settings and the file itself."""
    z = np.load(path)
    meta = json.loads(str(z["meta"]))
    model = build(cls, meta, sdpa)
    model.fill(tensors(z, f"sd/{cls.LAYOUT}"))
    for name, network in cls.NETWORKS.items():
        getattr(model, name).load(tensors(z, f"frozen/{network}"))
    batch = tensors(z, "in")
    return model, batch, meta, z


def prepare(
    path: str, cls: type[Peer], variant: Variant, tolerance: float = TOLERANCE
) -> Callable[[], float]:
    """Return a peer's train step, after its check against the case in `path`.

    The check is in float32 in every variant. Where mimjax's numbers are those of bfloat16, its loss
    alone is compared, to a tolerance that allows for it.
    """
    if variant.device == "cpu":
        torch.set_num_threads(1)
    model, batch, meta, z = read(path, cls, variant.sdpa)
    model, batch = model.to(variant.device), {k: v.to(variant.device) for k, v in batch.items()}
    check(
        model,
        batch,
        float(z["loss/total"]),
        None if variant.low else float(z["grad_norm"]),
        tolerance,
    )
    model.decay = meta["decay"]
    adam, trained = meta["optimizer"], [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": adam["weight_decay"]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, 1e-6, tuple(adam["betas"]), fused=variant.fused)
    targets, forward = model.targets, model
    if variant.compiled:
        targets, forward = torch.compile(targets), torch.compile(model)
    low = torch.autocast(variant.device, torch.bfloat16, enabled=variant.low)

    def step() -> float:
        with low:
            with torch.no_grad():
                given = targets(batch)
            optimizer.zero_grad(set_to_none=True)
            loss = forward(given)
        loss.backward()
        if adam["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(trained, adam["clip_norm"])
        optimizer.step()
        model.updated()
        return loss.item()

    return step
