"""What fine-tuning tasks share: the pretrained encoder and how it is trained further."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from mimjax import errors, patches, rules, values
from mimjax.errors import ConfigError
from mimjax.models.attention import Remat
from mimjax.models.vit import ViT, at_size
from mimjax.task import EncoderNetwork, Pretraining, PyTree, Student, TrainState, View
from mimjax.values import Count, Mean, Range, Rate, Size, Std, Whole


@dataclasses.dataclass(frozen=True)
class Tuning(Pretraining):
    """The base class of tasks that train a pretrained encoder, with networks on top of it.

    The parameters are {"encoder": ..., ...}. Where `encoder`, `mean` and `std` are None, those of
    the model that `init_from` names are filled in before a run begins.

    Attributes:
      encoder: the pretrained network; None = the model's. What only pretraining needs is left out:
        mask token, projection, sums of blocks or stages.
      size: (height, width) of the images; None = those of pretraining. Positions are resized.
      heads: of a file's encoder, where neither the file nor its size shows them.
      drop_path: the last block's rate; it rises linearly from 0.
      remat: what the backward pass computes again, see `models.attention.rematerialized`.
      train_positions: whether a fixed table of positions becomes a parameter that begins as that
        table (MAE, MCMAE) or stays fixed (BootMAE, CAE). Learned positions are trained either way.
      rel_pos: "per_block": each block has a relative position bias of its own, which begins as the
        one that the pretrained blocks share (BEiT) or, where they have none, at zero (CAE);
        "kept" = as in pretraining.
      layer_decay: factor of the learning rate from one block to the one in front of it. Of n blocks
        the last has rate * layer_decay, the first rate * layer_decay^n, what stands in front of
        them rate * layer_decay^(n + 1); None = one rate for all.
      unfrozen: number of last blocks that are trained with what stands behind the blocks (MAE,
        Figure 9); 0 = none of them, None = the whole encoder.
      average: share of the old average that each step keeps in a moving average of all parameters,
        which is evaluated beside them; None = there is none.
      mean, std: of the images, per channel; None = those of the model.
    """

    model_path: ClassVar[str] = "init_from"

    encoder: EncoderNetwork | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    size: Size | None = None
    heads: Count | None = None
    drop_path: Rate = 0.1
    remat: Remat = "none"
    train_positions: bool = True
    rel_pos: Literal["kept", "per_block"] = "kept"
    layer_decay: Annotated[float, Range(0, 1, low_open=True)] | None = 0.65
    unfrozen: Whole | None = None
    average: Rate | None = None
    mean: Mean | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    std: Std | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        values.check(self, "method")
        fill = functools.partial(object.__setattr__, self)
        fill("mean", self.mean or patches.IMAGENET_MEAN)
        fill("std", self.std or patches.IMAGENET_STD)
        errors.statistics("method", *self.statistics)
        if self.encoder is None:
            return  # a recipe, nobody's run yet
        fill("encoder", self.adopted(self.encoder))
        network = self.network
        network.check("method.encoder")
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

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images."""
        return self.mean or patches.IMAGENET_MEAN, self.std or patches.IMAGENET_STD

    # ---------------------------------------------------------------- the encoder
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
        kept = {
            k: getattr(network, k)
            for k in ("dtype", "stream", "attention_form")
            if hasattr(network, k)
        }
        out = network.plain().clone(channels=len(self.statistics[0]), **kept)
        own = {f.name for f in dataclasses.fields(out)}
        if self.size is not None:
            for side in self.size:
                if side % out.patch:
                    raise ConfigError(
                        f"method.size: {side}; allowed: multiples of the patch, {out.patch}"
                    )
            out = at_size(out, self.size)
        asked = {"drop_path": (self.drop_path, 0.0), "remat": (self.remat, "none")}
        asked |= {"rel_pos": (self.rel_pos, "kept")} if self.rel_pos != "kept" else {}
        for name, (value, nothing) in asked.items():
            if name in own:
                out = out.clone(**{name: value})
            elif value != nothing:
                raise ConfigError(
                    f"method.{name}: {value!r}, but {type(out).__name__} has no such setting; "
                    f"allowed: {nothing}"
                )
        if self.train_positions and out.positions:
            out = out.clone(pos_embed="learned", pos_grid=None)
        return out

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
        """Names of the encoder's parameter subtrees that nothing reads."""
        return ()

    def layer_of(self, name: str) -> int | None:
        """Return the block of an encoder's parameter; None = behind them, or nothing tells it.

        A user's encoder need not derive from `PatchEncoder`, whose method tells it.
        """
        told = getattr(self.network, "layer_of", None)
        return told(name) if told else None

    @property
    def numbered(self) -> bool:
        """Whether the encoder's blocks have numbers."""
        return any(self.layer_of(name) for name in rules.paths(self.shapes))

    @property
    def views(self) -> dict[str, View]:
        height, width = self.network.image_size
        return {"image": View((height, width), channels=self.network.channels)}

    def complete(self, encoder: PyTree) -> PyTree:
        """Return the encoder's parameters with those that `unread` left out, which do nothing."""
        fill = {"scale": jnp.ones}
        still = lambda path, x: fill.get(path[-1].key, jnp.zeros)(x.shape, x.dtype)
        missing = {k: v for k, v in self.shapes.items() if k not in encoder}
        return encoder | jax.tree_util.tree_map_with_path(still, missing)

    def evaluated(self, state: TrainState) -> PyTree:
        return self.complete(state.params["encoder"])

    # ---------------------------------------------------------------- what is trained
    def depth_of(self, params: PyTree) -> PyTree:
        """Return, for each parameter, the number of blocks from it to the head.

        0 = behind the blocks, 1 = of the last block, depth + 1 = in front of the first.
        """
        last = self.network.depth + 1

        def behind(name: str) -> int:
            subtree, _, rest = name.partition("/")
            number = self.layer_of(rest) if subtree == "encoder" else None
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

    def init_ema(self, params: PyTree) -> PyTree:
        if self.average is None:
            return {}
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        if self.average is None:
            return ema
        keep = jnp.float32(self.average)
        return jax.tree.map(lambda e, p: keep * e + (1 - keep) * p.astype(jnp.float32), ema, new)
