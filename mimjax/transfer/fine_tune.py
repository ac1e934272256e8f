"""Fine-tuning: a pretrained encoder and a head on it learn the classes of labeled images.

  prepare   normalized images, erased and mixed in training; targets [b c]        no gradient
  loss      encoder -> what the head reads -> head -> soft-target cross entropy

The encoder is that of the model which `init_from` names, without what only pretraining needs.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from mimjax import patches, values
from mimjax.errors import ConfigError
from mimjax.models.layers import LayerNorm
from mimjax.networks import Classified, Features, Network, Reader
from mimjax.rng import named
from mimjax.task import Batch, Key, LossOutput, PyTree, TrainState
from mimjax.transfer.head import POOLS, Affine, Head
from mimjax.transfer.mixing import Mixing, erase, targets
from mimjax.transfer.tuning import Tuning
from mimjax.values import NonNegative, Range, Rate


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

    def affine(self, params: Any, stats: Any) -> Affine:
        return Affine(params["linear"], params.get("norm", {}))

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
      target: share of each class, float32 [b c]; rows sum to the share of the image that has a
        label, by which it counts.
    """

    image: jax.Array
    target: jax.Array


@dataclasses.dataclass(frozen=True)
class FineTune(Tuning):
    """A pretrained encoder and a head that classifies, both trained.

    Attributes:
      head: what classifies.
      mixing: mixup and CutMix of the whole batch; None = images are not mixed.
      smoothing: share of every target that is spread evenly over all classes.
      erase: share of the images in which a box becomes noise.
      classes: their number; None = that of the training data.
    """

    learns_labels: ClassVar[bool] = True

    head: Head = LinearClassifier()
    mixing: Mixing | None = None
    smoothing: Rate = 0.0
    erase: Rate = 0.0
    classes: Annotated[int, Range(2)] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.encoder is None:
            return
        self.sized.check("method.head", self.network)
        if self.head.layer not in (None, -1, self.network.depth - 1):
            raise ConfigError(
                f"method.head.layer: {self.head.layer}; allowed: -1 (the last block), or None "
                "(after the norm): the whole encoder is fine-tuned"
            )

    @property
    def sized(self) -> Any:
        """The head for the encoder and the classes, of which there are none as long as no data."""
        return self.head.sized(self.network, self.classes or 0)

    @property
    def classified(self) -> Classified:
        of_params = lambda params, frozen: params["encoder"]
        return Classified(
            self.sized, Reader(self.network, *self.statistics), of_params, self.complete
        )

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of the encoder's parameter subtrees that no head here reads: the final norm."""
        return () if self.head.layer is None else ("norm", *self.network.behind)

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        if self.classes is None:
            raise ValueError("classes: None; allowed: a task whose classes the data told")
        images = jnp.zeros((2, *self.network.image_size, self.network.channels))
        features, made = self.network.init_with_output(named(key, "encoder"), images)
        encoder = {k: v for k, v in made["params"].items() if k not in self.unread}
        head = self.sized.init(named(key, "head"), features.read(*self.sized.reading), True)
        stats = {"head": head["stats"]} if "stats" in head else {}
        return {"encoder": encoder, "head": head["params"]}, stats

    # ---------------------------------------------------------------- the step
    def check_batch(self, size: int) -> None:
        """Check that a batch of this size can be mixed.

        Raises:
          ConfigError: it cannot, see `Mixing.check`.
        """
        if self.mixing is not None:
            self.mixing.check("method.mixing", size)

    def prepare(self, state, frozen, batch, key, train, pieces=1) -> tuple[Labeled, PyTree]:
        label, count = batch["label"], self.sized.classes
        if "weight" in batch:
            label = jnp.where(batch["weight"] > 0, label, -1)
        image = patches.normalize(batch["image"], *self.statistics)
        if not train:
            return Labeled(image, targets(label, count)), {}
        if self.erase:
            image = erase(named(key, "erase"), image, self.erase)
        if self.mixing is None:
            return Labeled(image, targets(label, count, self.smoothing)), {}
        mixed = self.mixing(named(key, "mixing"), image, label, count, self.smoothing)
        return Labeled(*mixed), {}

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

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        if self.unfrozen is not None:  # no backward pass through blocks that stay as they are
            still = lambda x, on: x if on else jax.lax.stop_gradient(x)
            params = jax.tree.map(still, params, self.trained(params))
        logits, stats = self.logits(params, model_state, prepared.image, key if train else None)
        target, weight = prepared.target, prepared.target.sum(-1)
        count = jnp.where(weight.sum() > 0, weight.sum(), 1)
        loss = optax.softmax_cross_entropy(logits, target).sum() / count
        right = (weight * (logits.argmax(-1) == target.argmax(-1))).sum() / count
        metrics = {"loss/class": loss, "train/top1": 100 * right}
        return LossOutput(loss, metrics, model_state | stats)

    def classify(self, state: TrainState, frozen: PyTree, batch: Batch) -> jax.Array:
        """Return logits of uint8 images in evaluation, float32 [b c]."""
        image = patches.normalize(batch["image"], *self.statistics)
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
