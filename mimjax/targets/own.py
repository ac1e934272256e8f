"""Features that the method's own encoder has of the image, current or averaged, as targets.

BootMAE predicts those of a moving average at the full image, CAE aligns its regressor with those of
the current encoder at the masked patches, data2vec averages those of several blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mimjax import errors
from mimjax.losses import standardize
from mimjax.rng import named
from mimjax.targets.base import Student, Target
from mimjax.task import PLACES, Key, Known, Seen, gather_rows, take
from mimjax.values import Index, Some


@dataclasses.dataclass(frozen=True)
class OwnFeatures(Target):
    """Tokens of the method's own encoder.

    Attributes:
      of: "average" = of the moving average of its weights, "current" = of the weights of this step.
      blocks: () = after the final norm; one = that block's output as it is; several = their
        outputs, each standardized, and averaged.
      masked_share: the encoder sees this share of the masked patches alone; features are learned
        there only. None = it sees the whole image.
      noise: with its drop path, as in training.
    """

    of: Literal["average", "current"] = "average"
    blocks: tuple[Index, ...] = ()
    masked_share: Some | None = None
    noise: bool = False

    def channels(self, encoder: Student) -> int:
        return encoder.channels

    def width(self, encoder: Student) -> int:
        return encoder.width if self.blocks else encoder.out_width

    def places(self, encoder: Student) -> tuple[str, ...]:
        if self.masked_share is not None:
            return ("masked",)
        return PLACES if encoder.num_prefix else PLACES[1:]

    def check(self, key: str, encoder: Student) -> None:
        for index in self.blocks:
            errors.block_index(f"{key}.blocks", index, encoder.depth)

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        prefix, ids = encoder.num_prefix, seen.ids
        weights, current = seen.weights(self.of)["encoder"], seen.state.params["encoder"]
        # what stands behind the encoder belongs to the networks that read it: as of this step
        weights = weights | {k: current[k] for k in encoder.behind if k in current}
        params, train = {"params": weights}, seen.train and self.noise

        def tokens(key: Key, image: jax.Array, ids: jax.Array | None) -> jax.Array:
            f = encoder.apply(params, image, ids, None, train, rngs={"drop_path": key})
            x = [f.blocks[i] for i in self.blocks] or [f.tokens]
            mean: Any = x[0] if len(x) == 1 else sum(map(standardize, x)) / len(x)
            return mean.astype(jnp.float32)

        def whole(key: Key, image: jax.Array, ids: Any) -> Any:
            return take(tokens(key, image, None), prefix, ids, at)

        def part(key: Key, image: jax.Array, ids: jax.Array) -> Any:
            return {p: tokens(key, image, ids)[:, prefix:] for p in at}

        if self.masked_share is None:
            return Known(seen.in_pieces(whole, seen.image, ids))
        masked = ids["masked"]
        count = max(1, round(self.masked_share * masked.shape[1]))
        if count == masked.shape[1]:
            return Known(seen.in_pieces(part, seen.image, masked))
        # One choice for all images in evaluation: monitors compare the images' k-th values.
        size = masked.shape if seen.train else (1, masked.shape[1])
        noise = jnp.broadcast_to(jax.random.uniform(named(seen.key, "rows"), size), masked.shape)
        rows = jnp.sort(jnp.argsort(noise, axis=1)[:, :count], axis=1)
        values = seen.in_pieces(part, seen.image, gather_rows(masked, rows))
        return Known(values, {"masked": rows})

    @property
    def story(self) -> str:
        if self.of == "average":
            what = "the features that the encoder's own moving average has"
        else:
            what = "the latents that the encoder itself has"
        return what if self.masked_share is not None else f"{what} (of the full image)"
