"""A trained encoder as an object that encodes images; `loading` makes it of a run or a file.

Images, crops, features, masks and pictures are those of the evaluators and programs, made by the
same functions. The object uses one device and no mesh. What encodes is compiled for batches of two
sizes, whatever the number of images; a picture is compiled for its number of images.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.data.in_memory import Images, Reader
from mimjax.errors import ConfigError, RunError
from mimjax.inference import encoders, precision
from mimjax.inference.reconstruction import Reconstructor, Sheet
from mimjax.schema import Config
from mimjax.task import View

PyTree = Any
POOLS = ("cls", "mean", "all")
FEW = 8  # rows of the small batch, for so many images or fewer
Reading = tuple[str, int | None]  # pool and layer; None = the norm
Layer = int | Literal["norm"] | None


class Model:
    """A network with its weights.

    `module.apply({"params": params["encoder"]}, images)` is the encoder as JAX has it, to be called
    in a function of the caller's own; `mimjax.patches.normalize(images, *statistics)` makes its
    input of uint8 images.

    Attributes:
      config: task and method settings; for a run all of its settings.
      report: lines that say where the weights came from and what was derived.
      dtype: "float32" or "bfloat16", in which the networks compute; parameters are float32.
      image_size: (height, width) that images are brought to.
      num_classes: number of outputs of `classify`; 0 = there is no head.
      class_names: their names, in this order; None = there is no head, or nothing tells them.
    """

    def __init__(
        self,
        config: Config,
        network: encoders.Network,
        params: PyTree,
        report: list[str],
        reader: Reader,
        reconstructor: Reconstructor | str,
        dtype: str = "float32",
    ):
        self.config, self.report, self.dtype = config, report, dtype
        self.image_size: tuple[int, int] = network.module.image_size
        self.num_classes = network.head.classes if network.head else 0
        self.class_names = network.names
        self._network, self._params, self._reader = network, params, reader
        self._reconstructor = reconstructor
        compiled = lambda fn, **options: jax.jit(precision.precise(fn), **options)
        self._candidates = compiled(lambda p, x: encoders.candidates(network.features(p, x)))
        self._tokens = compiled(self._read_tokens, static_argnums=2)
        self._many = compiled(self._read_many, static_argnums=2)
        self._pool = compiled(lambda p, x: network.pool(p, network.features(p, x)))
        self._logits = compiled(network.logits)

    def __repr__(self) -> str:
        module, (mean, std) = self.module, self.statistics
        count = sum(x.size for x in jax.tree.leaves(self._params))
        heads = getattr(module, "num_heads", module.heads)  # CLIP derives them from its width
        sizes = f"width {module.width}, depth {module.depth}, heads {heads}, patch {module.patch}"
        height, width = self.image_size
        head = f", {self.num_classes} classes" if self.num_classes else ""
        return (
            f"<mimjax model {type(module).__name__}: {sizes}{head}; {count:,} parameters, computes "
            f"in {self.dtype}; images {height}x{width}x{len(mean)}, mean {mean}, std {std}; "
            f"{self.report[0]}>"
        )

    def encode(
        self, images: Images, pool: str = "mean", layer: Layer = None, batch_size: int = 64
    ) -> np.ndarray:
        """Return the features of full images.

        Args:
          images: a path, a Pillow image, an array uint8 [h w c] or [b h w c], or any iterable of
            these, as a list or generator; a folder stands for all its images, sorted by path.
            Those that are not arrays of `image_size` are resized and cropped as the run's
            evaluators do.
          pool: "mean" of the patch tokens or "cls" ([b d]), or "all" tokens ([b p+n d], CLS first).
          layer: block from 0, negative from the end; "norm" or None = after the final norm. A
            fine-tuned model has a norm after pooling and none for tokens: "mean" alone, as its head
            reads it.
          batch_size: images at once; those of two batches are in memory, and the features of all.

        Returns:
          float32, b rows, also of one image.

        Raises:
          ConfigError: an image, pool or layer that the model cannot read.
        """
        name, layer = self.check(pool, layer), self._block(layer)
        if layer is None and not self._network.normed:
            fn = self._pool
        elif pool == "all":
            fn = lambda p, x: self._tokens(p, x, layer)
        else:
            fn = lambda p, x: self._candidates(p, x)[f"{pool} of {name}"]
        return self._batched(fn, images, batch_size)

    def _block(self, layer: Layer) -> int | None:
        """Return the number of a block; None = the norm.

        Raises:
          ConfigError: there is no such block.
        """
        depth = self.module.depth
        if layer is None or (isinstance(layer, str) and layer == "norm"):
            return None
        try:
            number = depth if isinstance(layer, bool) else operator.index(layer)  # pyright: ignore
        except TypeError:
            number = depth
        if not -depth <= number < depth:
            raise ConfigError(f"layer: {layer!r}; allowed: 'norm', {-depth} to {depth - 1}")
        return number

    def check(self, pool: str, layer: Layer) -> str:
        """Return the name of the layer that `encode` reads: "norm", "block_00".

        Raises:
          ConfigError: the model cannot read it.
        """
        depth = self._network.module.depth
        if pool not in POOLS:
            raise ConfigError(f"pool: {pool!r}; allowed: {', '.join(POOLS)}")
        if pool == "cls" and not self._network.module.class_tokens:
            raise ConfigError("pool: 'cls', and this encoder has no CLS token; allowed: mean, all")
        block, pooled = self._block(layer), self._network.pooled
        if block is None and not self._network.normed and not (pooled and pool == "mean"):
            mean = "pool='mean', or " if pooled else ""
            raise ConfigError(
                f"pool: {pool!r} with layer=None: the file has no norm for tokens (fine-tuned "
                f"models have one after pooling, backbones none); allowed: {mean}a layer"
            )
        return "norm" if block is None else f"block_{block % depth:02d}"

    def read(self, images: np.ndarray, readings: Sequence[Reading]) -> dict[str, np.ndarray]:
        """Return several of `encode`'s features of one batch, from one pass of the encoder.

        Args:
          images: uint8 [b h w c] of `image_size`; compiled once for each b.
          readings: what `check` allows.

        Returns:
          float32 by name: "mean_norm", "cls_block_11", "all_norm".
        """
        return jax.device_get(self._many(self._params, images, tuple(readings)))

    @property
    def task(self) -> Any:
        """The task of `reconstruct`; None where there is none."""
        return getattr(self._reconstructor, "task", None)

    @property
    def module(self) -> Any:
        """The encoder, a linen module."""
        return self._network.module

    @property
    def network(self) -> encoders.Network:
        """The encoder with the statistics of its images, and its head if there is one."""
        return self._network

    @property
    def params(self) -> PyTree:
        """Parameters by the name of the network: "encoder", and of some files "classifier"."""
        return self._params

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches in pool="all"; 1 = CLS."""
        return self._network.module.num_prefix

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._network.module.grid

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the images, per channel."""
        return self._network.mean, self._network.std

    @property
    def view(self) -> View:
        """Size and filter to which images are brought."""
        network = self._network
        return View(self.image_size, network.resample, channels=len(network.mean))

    @property
    def reader(self) -> Reader:
        """The function that brings images to the model's size."""
        return self._reader

    @overload
    def classify(self, images: Images, batch_size: int = 64, *, top: None = None) -> np.ndarray: ...

    @overload
    def classify(
        self, images: Images, batch_size: int = 64, *, top: int
    ) -> list[list[tuple[str, float]]]: ...

    def classify(
        self, images: Images, batch_size: int = 64, *, top: int | None = None
    ) -> np.ndarray | list[list[tuple[str, float]]]:
        """Return the classes of images, by a fine-tuned or linearly probed file.

        Args:
          images, batch_size: see `encode`.
          top: how many classes are named.

        Returns:
          The logits, float32 [b classes]; with `top` for each image its likeliest classes, the
          likeliest first, as pairs of a name and a probability (the softmax of the logits). Where
          nothing tells the names they are the classes' numbers as text.

        Raises:
          ConfigError: the model has no head, or fewer classes than `top`.
          RunError: with `top`, logits that are not finite.
        """
        if not self.num_classes:
            why = self._network.no_head or "this model has no classifier"
            allowed = "files of fine-tuned or linearly probed models"
            raise ConfigError(f"classify: {why}; allowed: {allowed}")
        if top is not None and (type(top) is not int or not 1 <= top <= self.num_classes):
            raise ConfigError(f"top: {top!r}; allowed: 1 to {self.num_classes}, or None")
        logits = self._batched(self._logits, images, batch_size)
        if top is None:
            return logits
        if bad := np.flatnonzero(~np.isfinite(logits).all(1)).tolist():
            raise RunError(f"classify: the logits of image {bad[0]} are not finite")
        names = self.class_names or tuple(map(str, range(self.num_classes)))
        shares = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf).astype(np.float64))
        shares /= shares.sum(1, keepdims=True)
        best = np.argsort(-shares, axis=1, kind="stable")[:, :top]
        return [[(names[i], float(row[i])) for i in ids] for ids, row in zip(best, shares)]

    def reconstruct(
        self, images: Images, mask: np.ndarray | None = None, seed: int | None = None
    ) -> Sheet:
        """Return the reconstruction of masked images, as `mimjax reconstruct` draws it.

        Args:
          images: see `encode`.
          mask: bool [b n], True = masked, in raster order; None = the method's own masks.
          seed: of the method's own masks; None = the run's.

        Returns:
          `columns` by name ("original", "masked", "reconstruction"), uint8 [b h w c]; a `caption`;
          the `error` of each image at its masked patches; `png()`.

        Raises:
          ConfigError: there is no decoder, or the target is no picture.
        """
        if isinstance(self._reconstructor, str):
            raise ConfigError(f"reconstruct: {self._reconstructor}")
        return self._reconstructor(images, mask, seed, self._reader)

    def _read_tokens(self, params: PyTree, images: jax.Array, layer: int | None) -> jax.Array:
        return self._network.features(params, images).read("all", layer).astype(jnp.float32)

    def _read_many(
        self, params: PyTree, images: jax.Array, readings: tuple[Reading, ...]
    ) -> dict[str, jax.Array]:
        features, out = self._network.features(params, images), {}
        for pool, layer in readings:
            if layer is None and not self._network.normed:
                value = self._network.pool(params, features)
            else:
                value = features.read(pool, layer)
            out[f"{pool}_{self.check(pool, layer)}"] = value.astype(jnp.float32)
        return out

    def _batched(self, fn: Callable[..., Any], images: Images, size: int) -> np.ndarray:
        """Return `fn` of all images, by batches of one shape that the last image fills up.

        Raises:
          ConfigError: an image that cannot be read, or a size below 1.
        """
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ConfigError(f"batch_size: {size!r}; allowed: 1 or more")
        out = []
        for batch in self._reader.batches(images, {"image": self.view}, int(size)):
            x = batch["image"]
            rows = min(FEW, size) if not out and len(x) <= FEW else size
            full = np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])
            out.append(np.asarray(fn(self._params, full))[: len(x)])
        made = np.concatenate(out)
        bad = len(made) - int(np.isfinite(made).reshape(len(made), -1).all(1).sum())
        if bad:
            text = f"outputs of {bad:,} of {len(made):,} images are not finite (NaN or infinite)"
            warnings.warn(text, stacklevel=3)
        return made
