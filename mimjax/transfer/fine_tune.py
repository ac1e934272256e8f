"""Fine-tuning: a pretrained encoder and a head on it learn the classes of labeled images.

  prepare   normalized images, targets [b c]                               no gradient
  loss      encoder -> what the head reads -> head -> soft-target cross entropy

The encoder is that of the model which `init_from` names, without what only pretraining needs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from mimjax import errors, patches, rules, values
from mimjax.errors import ConfigError
from mimjax.models.layers import LayerNorm
from mimjax.models.vit import ViT, at_size
from mimjax.networks import Features, Network
from mimjax.rng import named
from mimjax.task import (
    Batch,
    EncoderNetwork,
    Key,
    LossOutput,
    Pretraining,
    PyTree,
    Student,
    TrainState,
    View,
)
from mimjax.transfer.head import POOLS, Head
from mimjax.values import Count, Mean, NonNegative, Range, Rate, Size, Std, Whole


class LinearClassifier(Head):
    """A linear layer on one vector of each image, behind a norm if the encoder's is not read.

    Attributes:
      pool: "mean" of the patch tokens; "cls"; or "first", the first token whichever it is (MCMAE's
        --cls_token reads the top left patch so).
      layer: -1, the last block without the final norm, where the norm stands behind the pooling
        (--global_pool of MAE and MCMAE; BootMAE, BEiT and CAE); None = after the final norm.
      norm: whether a LayerNorm stands behind the pooling, `fc_norm` in the codes.
      init_std: of the layer's weights; its biases start at zero.
    """

    pool: Literal["mean", "cls", "first"] = "mean"
    layer: values.Index | None = -1
    norm: bool = True
    init_std: NonNegative = 2e-5  # main_finetune.py of MAE; truncated at +-2, which says nothing

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], train: bool = False) -> Float[Array, "b c"]:
        x = x.astype(jnp.float32)
        if self.norm:
            x = LayerNorm(name="norm")(x)
        init = nn.initializers.normal(self.init_std)
        return nn.Dense(self.classes, kernel_init=init, name="linear")(x)


@struct.dataclass
class Labeled:
    """What the loss reads.

    Attributes:
      image: normalized, float32 [b h w c].
      target: share of each class, float32 [b c].
      weight: float32 [b]; 0 = the row does not count.
    """

    image: jax.Array
    target: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class FineTune(Pretraining):
    """A pretrained encoder and a head, both trained.

    `encoder`, `mean`, `std` and `classes` are filled in before a run begins where they are None.

    Attributes:
      encoder: the pretrained network; None = that of the model which `init_from` names. What only
        pretraining needs is left out: mask token, projection, sums of blocks or stages.
      head: what classifies.
      size: (height, width) of the images; None = those of pretraining. Positions are resized.
      heads: of a file's encoder, where neither the file nor its size shows them.
      drop_path: the last block's rate; it rises linearly from 0.
      remat: recompute each block in the backward pass instead of storing its inner activations.
      train_positions: whether a fixed table of positions becomes a parameter that begins as that
        table (MAE, MCMAE) or stays fixed (BootMAE, CAE). Learned positions are trained either way.
      rel_pos: "per_block": each block has a relative position bias of its own, which begins as the
        one that the pretrained blocks share (BEiT) or, where they have none, at zero (CAE);
        "kept" = as in pretraining.
      layer_decay: factor of the learning rate from one block to the one in front of it. Of n blocks
        the last has rate * layer_decay, the first rate * layer_decay^n, what stands in front of
        them rate * layer_decay^(n + 1); None = one rate for all.
      unfrozen: number of last blocks that are trained with the head and what stands behind the
        blocks (MAE, Figure 9); 0 = none of them, None = the whole encoder.
      average: share of the old average that each step keeps in a moving average of all parameters,
        which is evaluated beside them; None = there is none.
      classes: their number; None = that of the training data.
      mean, std: of the images, per channel; None = those of the model.
    """

    learns_labels: ClassVar[bool] = True
    model_path: ClassVar[str] = "init_from"
    adopts: ClassVar[bool] = True

    encoder: EncoderNetwork | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    head: Head = LinearClassifier()
    size: Size | None = None
    heads: Count | None = None
    drop_path: Rate = 0.1
    remat: bool = False
    train_positions: bool = True
    rel_pos: Literal["kept", "per_block"] = "kept"
    layer_decay: Annotated[float, Range(0, 1, low_open=True)] | None = 0.65
    unfrozen: Whole | None = None
    average: Rate | None = None
    classes: Annotated[int, Range(2)] | None = None
    mean: Mean | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    std: Std | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        values.check(self, "method")
        fill = functools.partial(object.__setattr__, self)
        fill("mean", self.mean or patches.IMAGENET_MEAN)
        fill("std", self.std or patches.IMAGENET_STD)
        errors.statistics("method", self.mean, self.std)
        if self.encoder is None:
            return  # a recipe, nobody's run yet
        fill("encoder", self.adopted(self.encoder))
        network = self.network
        network.check("method.encoder")
        self.sized.check("method.head", network)
        if self.head.layer not in (None, -1, network.depth - 1):
            raise ConfigError(
                f"method.head.layer: {self.head.layer}; allowed: -1 (the last block), or None "
                "(after the norm): the whole encoder is fine-tuned"
            )
        if self.unfrozen is not None and self.unfrozen > network.depth:
            raise ConfigError(
                f"method.unfrozen: {self.unfrozen}, and the encoder has {network.depth} blocks; "
                "allowed: at most that many, or None (the whole encoder)"
            )
        for name in ("layer_decay", "unfrozen"):
            if (value := getattr(self, name)) is not None and not self.numbered:
                raise ConfigError(
                    f"method.{name}: {value}, but {type(network).__name__} has no numbered blocks "
                    "(block_00, block_01, ...); allowed: None"
                )

    # ---------------------------------------------------------------- networks
    @property
    def network(self) -> Student:
        """The encoder as it is trained; of a recipe, before a model is named, a ViT-B."""
        return self.adopted(ViT()) if self.encoder is None else self.encoder

    def adopted(self, network: Any) -> Any:
        """Return a pretrained network as this task trains it; one that is so already stays.

        Raises:
          ConfigError: a setting that the network has no place for, or a size that is no whole
            number of its patches.
        """
        kept = {k: getattr(network, k) for k in ("dtype", "stream") if hasattr(network, k)}
        out = network.plain().clone(channels=len(self.mean or ()), **kept)
        own = {f.name for f in dataclasses.fields(out)}
        if self.size is not None:
            for side in self.size:
                if side % out.patch:
                    raise ConfigError(
                        f"method.size: {side}; allowed: multiples of the patch, {out.patch}"
                    )
            out = at_size(out, self.size)
        asked = {"drop_path": self.drop_path, "remat": self.remat}
        asked |= {"rel_pos": self.rel_pos} if self.rel_pos != "kept" else {}
        for name, value in asked.items():
            if name in own:
                out = out.clone(**{name: value})
            elif value:
                raise ConfigError(
                    f"method.{name}: {value!r}, but {type(out).__name__} has no such setting; "
                    f"allowed: {'kept' if name == 'rel_pos' else type(value)()}"
                )
        if self.train_positions and out.positions:
            out = out.clone(pos_embed="learned", pos_grid=None)
        return out

    @property
    def sized(self) -> Any:
        """The head for the encoder and the classes, of which there are none as long as no data."""
        return self.head.sized(self.network, self.classes or 0)

    @property
    def shapes(self) -> PyTree:
        """Shapes of all parameters of the encoder."""
        return self.shapes_of(self.network)

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def shapes_of(network: Any) -> PyTree:
        """Return the shapes of an encoder's parameters; equal encoders are traced once."""
        images = jax.ShapeDtypeStruct((1, *network.image_size, network.channels), jnp.float32)
        return jax.eval_shape(network.init, jax.random.key(0), images)["params"]

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of the encoder's parameter subtrees that no head here reads: the final norm."""
        return () if self.head.layer is None else ("norm", *self.network.behind)

    @property
    def numbered(self) -> bool:
        """Whether the encoder's blocks have numbers."""
        return any(self.network.layer_of(name) for name in rules.paths(self.shapes))

    @property
    def views(self) -> dict[str, View]:
        height, width = self.network.image_size
        return {"image": View((height, width), channels=self.network.channels)}

    # ---------------------------------------------------------------- parameters
    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        if self.classes is None:
            raise ValueError("classes: None; allowed: a task whose classes the data told")
        images = jnp.zeros((2, *self.network.image_size, self.network.channels))
        features, made = self.network.init_with_output(named(key, "encoder"), images)
        encoder = {k: v for k, v in made["params"].items() if k not in self.unread}
        head = self.sized.init(named(key, "head"), features.read(*self.sized.reading), True)
        stats = {"head": head["stats"]} if "stats" in head else {}
        return {"encoder": encoder, "head": head["params"]}, stats

    def depth_of(self, params: PyTree) -> PyTree:
        """Return, for each parameter, the number of blocks from it to the head.

        0 = behind the blocks, 1 = of the last block, depth + 1 = in front of the first.
        """
        last = self.network.depth + 1

        def behind(name: str) -> int:
            subtree, _, rest = name.partition("/")
            number = self.network.layer_of(rest) if subtree == "encoder" else None
            return 0 if number is None else last - number

        return jax.tree.unflatten(jax.tree.structure(params), map(behind, rules.paths(params)))

    def lr_scale(self, params: PyTree) -> PyTree:
        decay = self.layer_decay or 1.0
        trained = self.trained(params)
        scale = lambda depth, on: decay**depth if on else 0.0
        return jax.tree.map(scale, self.depth_of(params), trained)

    def trained(self, params: PyTree) -> PyTree:
        """Return, for each parameter, whether it is trained."""
        k = self.unfrozen
        return jax.tree.map(lambda depth: k is None or depth <= k, self.depth_of(params))

    @property
    def averages(self) -> bool:
        return self.average is not None

    def init_ema(self, params: PyTree) -> PyTree:
        if self.average is None:
            return {}
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        if self.average is None:
            return ema
        keep = jnp.float32(self.average)
        return jax.tree.map(lambda e, p: keep * e + (1 - keep) * p.astype(jnp.float32), ema, new)

    # ---------------------------------------------------------------- the step
    def prepare(self, state, frozen, batch, key, train, pieces=1) -> tuple[Labeled, PyTree]:
        label = batch["label"]
        weight = label >= 0
        if "weight" in batch:
            weight &= batch["weight"] > 0
        image = patches.normalize(batch["image"], self.mean, self.std)
        target = jax.nn.one_hot(label, self.sized.classes)
        return Labeled(image, target, weight.astype(jnp.float32)), {}

    def logits(
        self, params: PyTree, stats: PyTree, image: jax.Array, key: Key | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Return logits, float32 [b c], of normalized images, and the head's statistics.

        Args:
          key: of the branches that are dropped in training; None = evaluation.
        """
        train, rngs = key is not None, {}
        if key is not None:
            rngs = {"drop_path": named(key, "encoder")}
        with jax.named_scope("encoder"):
            encoder = self.complete(params["encoder"])
            f: Features = self.network.apply(
                {"params": encoder}, image, None, None, train, rngs=rngs
            )
        with jax.named_scope("head"):
            variables, x = {"params": params["head"]} | _stats(stats), f.read(*self.sized.reading)
            head: Network = self.sized
            out, changed = head.apply(variables, x, train, mutable=["stats"])
        return out, {"head": changed["stats"]} if changed else {}

    def complete(self, encoder: PyTree) -> PyTree:
        """Return the encoder's parameters with those that `unread` left out, which do nothing."""
        fill = {"scale": jnp.ones}
        still = lambda path, x: fill.get(path[-1].key, jnp.zeros)(x.shape, x.dtype)
        missing = {k: v for k, v in self.shapes.items() if k not in encoder}
        return encoder | jax.tree_util.tree_map_with_path(still, missing)

    def evaluated(self, state: TrainState) -> PyTree:
        return self.complete(state.params["encoder"])

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        if self.unfrozen is not None:  # no backward pass through blocks that stay as they are
            still = lambda x, on: x if on else jax.lax.stop_gradient(x)
            params = jax.tree.map(still, params, self.trained(params))
        logits, stats = self.logits(params, model_state, prepared.image, key if train else None)
        weight, target = prepared.weight, prepared.target
        mean = lambda x: (x * weight).sum() / jnp.maximum(weight.sum(), 1)
        loss = mean(optax.softmax_cross_entropy(logits, target))
        right = mean(logits.argmax(-1) == target.argmax(-1))
        metrics = {"loss/class": loss, "train/top1": 100 * right}
        return LossOutput(loss, metrics, model_state | stats)

    def classify(self, state: TrainState, frozen: PyTree, batch: Batch) -> jax.Array:
        """Return logits of uint8 images in evaluation, float32 [b c]."""
        image = patches.normalize(batch["image"], self.mean, self.std)
        return self.logits(state.params, state.model_state, image)[0]

    @property
    def story(self) -> str:
        (pool, layer), count = self.sized.reading, f"{self.classes:,}" if self.classes else "the"
        where = "after the norm" if layer is None else "of the last block"
        if layer is not None and layer % self.network.depth + 1 < self.network.depth:
            where = f"of block {layer % self.network.depth + 1} of {self.network.depth}"
        part = "" if self.unfrozen is None else f", of which {self.unfrozen} blocks are trained"
        return (
            f"which of {count} classes an image belongs to, by a head on {POOLS[pool]} {where} of "
            f"a pretrained {type(self.network).__name__}{part}."
        )


def _stats(stats: PyTree) -> PyTree:
    """Return the head's statistics as a collection of its variables; {} = it has none."""
    return {"stats": stats["head"]} if "head" in stats else {}
