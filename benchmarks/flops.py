"""FLOPs per image and train step by formula, for MAE and BootMAE: `python -m benchmarks.flops`.

A multiply-add is 2 FLOPs; products only. The backward pass costs twice the forward pass, less the
gradient with respect to the images, which nobody needs; passes without a gradient count once.
`official=True` counts the published codes, which embed all patches before they drop the masked
ones and predict every patch; False counts what this package runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mimjax.methods.bootmae import BootMAE
from mimjax.methods.mae import MAE
from mimjax.models.decoders import InjectedDecoder
from mimjax.models.vit import SIZES
from mimjax.targets.own import OwnFeatures
from mimjax.task import Task
from mimjax.train.flops import step_flops


class Flops(NamedTuple):
    """FLOPs of one image.

    Attributes:
      forward: the differentiated forward pass.
      embed: its patch embedding, whose input needs no gradient.
      no_grad: teachers.
    """

    forward: float
    embed: float
    no_grad: float = 0.0

    @property
    def train(self) -> float:
        """Forward, backward and teachers."""
        return 3 * self.forward - self.embed + self.no_grad


def linear(tokens: int, width_in: int, width_out: int) -> float:
    """A linear layer."""
    return 2.0 * tokens * width_in * width_out


def attention(queries: int, keys: int, width: int, context: int, inner: int) -> float:
    """Projections of the queries and the context, the two products, the output projection."""
    projections = linear(queries, width, 2 * inner) + linear(keys, context, 2 * inner)
    return projections + 4.0 * queries * keys * inner


def block(tokens: int, width: int, ratio: float = 4.0) -> float:
    """A self-attention block, 24 n d^2 + 4 n^2 d at ratio 4."""
    mlp = 2 * linear(tokens, width, int(width * ratio))
    return attention(tokens, tokens, width, width, width) + mlp


def encoder(vit: Any, patches: int, embedded: int) -> tuple[float, float]:
    """Forward pass over `patches` and CLS; (all of it, the embedding of `embedded` patches)."""
    embed = linear(embedded, 3 * vit.patch**2, vit.width)
    return embed + vit.depth * block(patches + 1, vit.width, vit.mlp_ratio), embed


def mae(task: MAE, official: bool = False) -> Flops:
    """MAE with pixels as targets (paper section 3; official code's `models_mae.py`)."""
    vit, decoder = task.encoder, task.network("decoder")
    n, m = vit.num_patches, task.num_masked
    forward, embed = encoder(vit, n - m, n if official else n - m)
    forward += linear(n - m + 1, vit.width, decoder.width)
    forward += decoder.depth * block(n + 1, decoder.width)
    forward += linear(n if official else m, decoder.width, decoder.out)
    return Flops(forward, embed)


def injected(decoder: InjectedDecoder, vit: Any, visible: int, predicted: int) -> float:
    """One of BootMAE's decoders: self-attention, cross-attention, MLP per block.

    Heads of floor(width / heads) channels make the inner width smaller than the width.
    """
    n, d, heads = vit.num_patches + 1, decoder.width or vit.width, decoder.heads or vit.heads
    inner = heads * (d // heads)
    one = attention(n, n, d, d, inner) + 2 * linear(n, d, 4 * d)
    if decoder.inject is not None:
        one += attention(n, visible + 1, d, vit.width, inner)
    down = linear(visible + 1, vit.width, d)
    return down + decoder.depth * one + linear(predicted, d, decoder.out)


def bootmae(task: BootMAE, official: bool = False) -> Flops:
    """BootMAE: encoder, regressor, predictor; the moving average sees the image or a part of it."""
    vit = task.encoder
    n, m = vit.num_patches, task.num_masked
    forward, embed = encoder(vit, n - m, n if official else n - m)
    for name in task.networks:
        forward += injected(task.network(name), vit, n - m, n if official else m)
    no_grad, target = 0.0, task.targets.get("feature_target")
    if isinstance(target, OwnFeatures):
        share = target.masked_share
        seen = n if share is None else round(share * m)
        no_grad = encoder(vit, seen, n if official else seen)[0]
    return Flops(forward, embed, no_grad)


def published(method: str, size: str) -> Task:
    """The published recipe of "mae" or "bootmae" at 224 pixels."""
    width, depth, heads, patch = SIZES[size]
    cls = {"mae": MAE, "bootmae": BootMAE}[method]
    vit: Any = cls().encoder.clone(width=width, depth=depth, heads=heads, patch=patch)
    return cls(encoder=vit)


def main() -> None:
    """Prints the table."""
    print("GFLOP per image and train step")
    print("method   size  official code  this package  counted on the program")
    for method, formula in (("mae", mae), ("bootmae", bootmae)):
        for size in SIZES:
            task: Any = published(method, size)
            values = formula(task, True).train, formula(task).train, step_flops(task)
            cells = "  ".join(f"{v / 1e9:13.2f}" for v in values)
            print(f"{method:8s} {size:4s} {cells}")


if __name__ == "__main__":
    main()
