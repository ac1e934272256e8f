"""What masked pretraining methods share: an encoder, a masking, the ids of patches, a target.

No network of its own; a method inherits and adds those that predict. `MaskedTask` serves methods
that make their targets themselves, `TargetTask` those with a pluggable frozen target.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mimjax import errors, patches, values
from mimjax.losses import cross_entropy, distance, patch_cross_entropy
from mimjax.masking.base import EXACT, Masking
from mimjax.models.vit import ViT
from mimjax.patches import gather, split
from mimjax.rng import named
from mimjax.targets.base import Target, checked_views
from mimjax.targets.pixels import Pixels
from mimjax.task import Batch, Key, MaskFn, Pretraining, PyTree, Reader, View
from mimjax.values import Mean, Std


@dataclasses.dataclass(frozen=True)
class MaskedTask(Pretraining):
    """Base class of masked image modeling.

    Attributes:
      encoder: the network that is pretrained.
      masking: which patches are masked.
      mean, std: of the student's images, per channel on the scale 0 to 1; ImageNet's in most
        official codes. Their number is that of the channels.
      WEIGHS_MASKS: whether the loss skips visible patches, so that a mask may have fewer than
        `num_masked` patches.
    """

    WEIGHS_MASKS: ClassVar[bool] = False

    encoder: ViT = ViT()
    masking: Masking = Masking()
    mean: Mean = patches.IMAGENET_MEAN
    std: Std = patches.IMAGENET_STD

    def __post_init__(self):
        values.check(self, "method")
        errors.statistics("method", self.mean, self.std)
        encoder = self.encoder.clone(channels=len(self.mean))
        encoder.check("method.encoder")
        object.__setattr__(self, "encoder", encoder)  # derived field of a frozen dataclass
        _ = self.num_masked  # raises for a ratio that leaves nothing
        if not (self.masking.exact or self.WEIGHS_MASKS):
            raise errors.ConfigError(
                f"method.masking.kind: {self.masking.kind!r} may mask fewer patches than "
                f"{type(self).__name__} predicts, and it weighs all alike; allowed: "
                + ", ".join(EXACT)
            )

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch of pixels."""
        return self.encoder.patch**2 * len(self.mean)

    @property
    def num_masked(self) -> int:
        return self.masking.num_masked(self.encoder.grid)

    @property
    def views(self) -> dict[str, View]:
        return {"image": View(self.encoder.image_size, channels=len(self.mean))}

    @property
    def mask_fn(self) -> MaskFn:
        """The sampler of host-made masks, called once per image in `data/pipeline.py`."""
        return self.masking.sampler(self.encoder.grid)

    @property
    def hidden(self) -> str:
        """How much is masked, in words."""
        return f"{100 * self.num_masked / self.encoder.num_patches:.0f} % of the patches"

    def example(self):
        """Zero images [1 h w c], ids_v [1 v] and ids_m [1 m], to initialize networks with."""
        images = jnp.zeros((1, *self.encoder.image_size, len(self.mean)))
        order = jnp.arange(self.encoder.num_patches)[None]
        return images, order[:, : -self.num_masked], order[:, -self.num_masked :]

    def masked_batch(self, batch: Batch) -> Batch:
        """Normalized images, the mask and the ids, as every `prepare` begins."""
        ids_v, ids_m = split(batch["mask"], self.num_masked)
        images = patches.normalize(batch["image"], self.mean, self.std)
        return {"image": images, "mask": batch["mask"], "ids_v": ids_v, "ids_m": ids_m}

    def spread(self, values: jax.Array) -> jax.Array:
        """One value or color per patch in raster order, [b n c], as images [b h w c]."""
        grid = values.reshape(len(values), *self.encoder.grid, -1)
        shape = (len(values), *self.encoder.image_size, grid.shape[-1])
        return jax.image.resize(grid, shape, "nearest")

    def shown(self, image: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalized images [b h w c] as colors in [0, 1], and with the patches `hidden` gray.

        Args:
          hidden: bool [b n].
        """
        original = jnp.clip(image * jnp.asarray(self.std) + jnp.asarray(self.mean), 0, 1)
        cover = self.spread(hidden.astype(jnp.float32)[..., None])
        return original, jnp.where(cover > 0, 0.5, original)


@dataclasses.dataclass(frozen=True)
class TargetTask(MaskedTask):
    """A masked task whose targets come from a pluggable `Target`.

    Attributes:
      target: codes of a tokenizer, features of a teacher, or pixels.
      distance: loss of a target that is no code: "mse", "cosine" or "smooth_l1".
    """

    target: Target = Pixels()
    distance: Literal["mse", "cosine", "smooth_l1"] = "mse"

    def __post_init__(self):
        super().__post_init__()
        _ = self.views  # raises where the target's grid is not the student's

    @property
    def views(self) -> dict[str, View]:
        return super().views | checked_views(self.target, self.encoder, len(self.mean))

    @property
    def pred_dim(self) -> int:
        """Width of the head."""
        return self.target.out_dim(self.encoder)

    def init_frozen(self, key: Key) -> PyTree:
        return self.target.init_frozen(named(key, "target"), self.encoder)

    def frozen_readers(self) -> dict[str, Reader]:
        return self.target.readers()

    def target_batch(self, frozen: PyTree, batch: Batch, key: Key, train: bool) -> Batch:
        """`masked_batch` with "target", [b m] codes or [b m d], at the masked patches.

        With train=False also "visible" for pictures, under the name "visible_codes" or
        "visible_target" for naive predictors too, where their error is the loss's: the train step
        projects only what its loss reads.
        """
        out = self.masked_batch(batch)
        hidden = self.target.encode(frozen, batch, self.encoder)[:, self.target.num_prefix :]
        read = lambda ids: self.target.read(frozen, gather(hidden, ids), named(key, "target"))
        out["target"] = read(out["ids_m"])
        if not train:
            out["visible"] = read(out["ids_v"])
            if self.target.discrete:
                out["visible_codes"] = out["visible"]
            elif self.distance == "mse":
                out["visible_target"] = out["visible"]
        return out

    def target_loss(self, pred: jax.Array, batch: Batch) -> tuple[jax.Array, dict, dict]:
        """Loss, metrics and preds of predictions [b m k] of the masked patches' targets."""
        pred, target, weight = pred.astype(jnp.float32), batch["target"], batch.get("weight_m")
        scale = 1.0 if weight is None else weight
        if self.target.discrete:
            loss = cross_entropy(pred, target, weight)
            right = ((pred.argmax(-1) == target) * scale).mean()
            metrics = {"loss/codes": loss, "accuracy": right}
            error = patch_cross_entropy(pred, target)
        else:
            error = distance(self.distance, pred, target)
            loss = (error * scale).mean()
            metrics = {"loss/target": loss}
        preds = {"pred": pred, "target": target, "error": (error * scale).mean(-1)}
        return loss, metrics, preds

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Original, masked image, what the target keeps of the image, and the prediction."""
        if not self.target.decodes:
            return {}
        image = batch["image"]
        original, masked = self.shown(image, batch["mask"])
        columns = {"original": original, "masked": masked}
        if self.target.discrete:
            known = self.in_order(batch, batch["visible"], batch["target"])
            pred = self.in_order(batch, batch["visible"], preds["pred"].argmax(-1))
            columns["target codes"] = self.target.decode(frozen, known, self.encoder, image)
        else:
            pred = self.in_order(batch, batch["visible"], preds["pred"])
        columns["prediction"] = self.target.decode(frozen, pred, self.encoder, image)
        # a tokenizer's view may be smaller than the student's
        return {k: jax.image.resize(v, original.shape, "nearest") for k, v in columns.items()}

    @property
    def story(self) -> str:
        return f"{self.target.story} of the masked {self.hidden}, from the visible rest."

    @property
    def picture_note(self) -> str:
        if self.target.discrete:
            return (
                "Target codes: the full image's, decoded. Prediction: the true codes of visible "
                "and the predicted ones of masked patches, decoded."
            )
        return self.target.picture_note

    def in_order(self, batch: Batch, visible: jax.Array, masked: jax.Array) -> jax.Array:
        """Values of visible and of masked patches, [b v ...] and [b m ...], by raster."""
        order = jnp.argsort(jnp.concatenate([batch["ids_v"], batch["ids_m"]], axis=1), axis=1)
        both = jnp.concatenate([visible, masked], axis=1)
        return jnp.take_along_axis(both, order[..., None] if both.ndim == 3 else order, axis=1)

    @property
    def error_name(self) -> str:
        if self.target.discrete:
            return "cross-entropy of codes in nats, at fixed masks"
        kind = {"mse": "mean squared", "cosine": "1 - cosine", "smooth_l1": "smooth L1"}
        return f"{kind[self.distance]}, in target space, at fixed masks"
