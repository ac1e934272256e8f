"""FLOPs per image and train step by formula, for all methods: `python -m benchmarks.flops`.

A multiply-add is 2 FLOPs; products and convolutions only. The backward pass costs twice the forward
pass, less the gradient with respect to the images, which nobody needs; passes without a gradient
count once. `official=True` counts the published codes, which embed all patches before they drop the
masked ones, compute and predict every patch in a decoder's last block and let teachers project
every token; False counts what this package runs, to which `train.flops.step_flops` agrees by
counting the program. Convolutional encoders have no formula here: the program alone is counted.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from mimjax.methods.beit import BEiT
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.cae import CAE
from mimjax.methods.caev2 import CAEv2
from mimjax.methods.mae import MAE
from mimjax.methods.mcmae import MCMAE
from mimjax.methods.mim import MIM
from mimjax.methods.mrmae import MRMAE
from mimjax.models.dalle import GROUPS
from mimjax.models.decoders import InjectedDecoder, MAEDecoder, first_read
from mimjax.models.heads import LinearHead
from mimjax.models.regressor import LatentDecoder, Regressor, SharedHead
from mimjax.models.vit import SIZES, ViT
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.train.flops import step_flops

METHODS: dict[str, type[MIM]] = {
    "mae": MAE,
    "bootmae": BootMAE,
    "beit": BEiT,
    "cae": CAE,
    "caev2": CAEv2,
    "mrmae": MRMAE,
    "mcmae": MCMAE,
}


class Flops(NamedTuple):
    """FLOPs of one image.

    Attributes:
      forward: the differentiated forward pass.
      embed: its patch embedding, whose input needs no gradient.
      no_grad: teachers, tokenizers and averaged encoders.
    """

    forward: float
    embed: float
    no_grad: float = 0.0

    @property
    def train(self) -> float:
        """Forward, backward and teachers."""
        return 3 * self.forward - self.embed + self.no_grad


class Counts(NamedTuple):
    """The tokens that a part is computed on.

    Attributes:
      vit: the method's encoder.
      visible, masked: patches of each kind.
      at: places of the terms that read the part.
      official: whether the published code is counted.
    """

    vit: Any
    visible: int
    masked: int
    at: tuple[str, ...]
    official: bool

    @property
    def tokens(self) -> int:
        """The number of tokens at `at`."""
        sizes = {"cls": 1, "visible": self.visible, "masked": self.masked}
        return sum(sizes[place] for place in self.at)

    @property
    def first(self) -> int:
        """The number of tokens before the first of the places."""
        return first_read(1, self.visible, self.at)


# ------------------------------------------------------------------ layers
def linear(tokens: int, width_in: int, width_out: int) -> float:
    """A linear layer."""
    return 2.0 * tokens * width_in * width_out


def attention(queries: int, keys: int, width: int, context: int, inner: int) -> float:
    """Projections of the queries and the context, the two products, the output projection."""
    projections = linear(queries, width, 2 * inner) + linear(keys, context, 2 * inner)
    return projections + 4.0 * queries * keys * inner


def mlp(tokens: int, width: int, ratio: float = 4.0) -> float:
    """The two linear layers of an MLP."""
    return 2 * linear(tokens, width, int(width * ratio))


def block(tokens: int, width: int, ratio: float = 4.0) -> float:
    """A self-attention block, 24 n d^2 + 4 n^2 d at ratio 4."""
    return attention(tokens, tokens, width, width, width) + mlp(tokens, width, ratio)


def unread(tokens: int, total: int, width: int, inner: int) -> float:
    """What the last block saves at tokens that nobody reads; their queries are projected."""
    return tokens * (linear(1, inner, width) + 4.0 * total * inner) + mlp(tokens, width)


def encoder(vit: Any, patches: int, embedded: int) -> tuple[float, float]:
    """Return FLOPs over `patches` and CLS: all of it, and the embedding of `embedded` patches."""
    embed = linear(embedded, vit.channels * vit.patch**2, vit.width)
    return embed + vit.depth * block(patches + 1, vit.width, vit.mlp_ratio), embed


# ------------------------------------------------------------------ networks that predict
@functools.singledispatch
def network(part: Any, c: Counts) -> float:
    """Return FLOPs of a network, sized for its method."""
    raise NotImplementedError(f"no formula for a {type(part).__name__}")


@network.register
def _(part: MAEDecoder, c: Counts) -> float:
    n = c.vit.num_patches
    down = linear(c.visible + 1, c.vit.width, part.width)
    predicted, d = n if c.official else c.tokens, part.width
    blocks = part.depth * block(n + 1, d)
    if not c.official and part.depth:
        blocks -= unread(c.first, n + 1, d, d)
    return down + blocks + linear(predicted, d, part.out)


@network.register
def _(part: InjectedDecoder, c: Counts) -> float:
    """BootMAE's decoders: heads of floor(width / heads) channels make the inner width smaller."""
    vit, n = c.vit, c.vit.num_patches + 1
    d, heads = part.width or vit.width, part.heads or vit.heads
    inner = heads * (d // heads)
    one = attention(n, n, d, d, inner) + mlp(n, d)
    if part.inject is not None:
        one += attention(n, c.visible + 1, d, vit.width, inner)
    predicted, blocks = n - 1 if c.official else c.tokens, part.depth * one
    if not c.official and part.depth:
        blocks -= unread(c.first, n, d, inner)
        if part.inject is not None:
            blocks -= c.first * (linear(1, d, 2 * inner) + 4.0 * (c.visible + 1) * inner)
    return linear(c.visible + 1, vit.width, d) + blocks + linear(predicted, d, part.out)


@network.register
def _(part: Regressor, c: Counts) -> float:
    d = part.width
    one = attention(c.masked, c.visible + c.masked, d, d, part.heads * (d // part.heads))
    return part.depth * (one + mlp(c.masked, d, part.mlp_ratio))


@network.register
def _(part: LatentDecoder, c: Counts) -> float:
    d = c.vit.out_width
    return part.depth * block(c.masked, d, part.mlp_ratio) + linear(c.masked, d, part.out)


@network.register(LinearHead)
@network.register(SharedHead)
def _(part: Any, c: Counts) -> float:
    return linear(c.tokens, c.vit.out_width, part.out)


# ------------------------------------------------------------------ targets
@functools.singledispatch
def target(part: Target, c: Counts) -> float:
    """Return FLOPs of a target for an image; it has no gradient."""
    raise NotImplementedError(f"no formula for {type(part).__name__}")


@target.register
def _(part: Pixels, c: Counts) -> float:
    return 0.0


@target.register
def _(part: OwnFeatures, c: Counts) -> float:
    share = part.masked_share
    seen = c.vit.num_patches if share is None else round(share * c.masked)
    return encoder(c.vit, seen, c.vit.num_patches if c.official else seen)[0]


@target.register
def _(part: CLIP, c: Counts) -> float:
    clip = part.network
    n = c.vit.num_patches
    out = linear(n, 3 * clip.patch**2, clip.width)
    out += clip.depth * block(n + 1, clip.width, clip.mlp_ratio)
    projected = part.project and clip.proj_dim
    return out + (
        linear(n + 1 if c.official else c.tokens, clip.width, projected) if projected else 0
    )


@target.register
def _(part: DallE, c: Counts) -> float:
    """A 7x7 convolution, four groups of residual blocks with a pooling between, codes."""
    net, (rows, columns) = part.network, c.vit.grid
    side = 2 ** (GROUPS - 1)  # pixels per code
    pixels, width = rows * columns * side**2, net.n_hid
    out = linear(pixels, 7 * 7 * 3, width)
    for group in range(GROUPS):
        wide = 2**group * net.n_hid
        for _ in range(net.n_blk):
            inner = wide // 4
            out += linear(pixels, 9 * (width + 2 * inner), inner) + linear(pixels, inner, wide)
            out += linear(pixels, width, wide) if width != wide else 0
            width = wide
        pixels //= 4 if group < GROUPS - 1 else 1
    return out + linear(pixels if c.official else c.tokens, width, net.vocab)


# ------------------------------------------------------------------ methods
def flops(task: MIM, official: bool = False) -> Flops:
    """FLOPs of a composition of the parts that have formulas above, with a plain ViT."""
    vit: Any = task.encoder
    if not isinstance(vit, ViT):
        raise NotImplementedError(f"no formula for a {type(vit).__name__}")
    n, m = vit.num_patches, task.num_masked
    counts = lambda kind, name: Counts(vit, n - m, m, task.asked(kind, name), official)
    seen = n if vit.use_mask_token else n - m
    forward, embed = encoder(vit, seen, n if official else seen)
    forward += sum(network(task.network(k), counts("network", k)) for k in task.networks)
    no_grad = sum(target(x, counts("target", k)) for k, x in task.targets.items())
    if task.masking.reads:  # where the class token of a teacher looks, in its last block
        no_grad += linear(1, getattr(task, task.masking.reads).network.width, n + 1)
    return Flops(forward, embed, no_grad)


def published(method: str, size: str) -> Any:
    """The published recipe of a method at 224 pixels; MR-MAE's and MCMAE's on a plain ViT."""
    width, depth, heads, patch = SIZES[size]
    made: Any = METHODS[method]()
    sizes: Any = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    vit = made.encoder if isinstance(made.encoder, ViT) else ViT()
    return METHODS[method](encoder=vit.clone(**sizes))


def main() -> None:
    """Print the table."""
    print("GFLOP per image and train step")
    print("method   size  official code  this package  counted on the program")
    for method in METHODS:
        for size in SIZES:
            task = published(method, size)
            values = flops(task, True).train, flops(task).train, step_flops(task)
            cells = "  ".join(f"{v / 1e9:13.2f}" for v in values)
            print(f"{method:8s} {size:4s} {cells}", flush=True)


if __name__ == "__main__":
    main()
