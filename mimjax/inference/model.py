"""`mimjax.load`: a run or a published file as an object that encodes images.

Images, crops, features, masks and pictures are those of the evaluators and programs, made by the
same functions. The object uses one device and no mesh; it is compiled once per shape of a batch.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches, schema
from mimjax.data import configured
from mimjax.data.augment import Augment
from mimjax.data.decoding import Decoding
from mimjax.data.in_memory import Images, Reader
from mimjax.errors import ConfigError
from mimjax.inference import encoders, own_files, pixels, published, teachers, workdir
from mimjax.inference.reconstruction import Painter, Sheet
from mimjax.rng import example_seed, step_key
from mimjax.schema import Config
from mimjax.task import Pretraining, TrainState, View, initial
from mimjax.torch_io.read import files
from mimjax.torch_io.read.sizes import FileTensors

PyTree = Any
POOLS = ("cls", "mean", "all")
Reading = tuple[str, int | None]  # pool and layer, as `Model.encode` takes them


class Model:
    """A network with its weights.

    Attributes:
      config: task and method settings; for a run all of its settings.
      report: lines that say where the weights came from and what was derived.
      image_size: (height, width) that images are brought to.
      num_classes: number of outputs of `classify`; 0 = there is no head.
    """

    def __init__(
        self,
        config: Config,
        network: encoders.Network,
        params: PyTree,
        report: list[str],
        reader: Reader,
        reconstructor: Reconstructor | str,
    ):
        self.config, self.report = config, report
        self.image_size: tuple[int, int] = network.module.image_size
        self.num_classes = network.head.classes if network.head else 0
        self._network, self._params, self._reader = network, params, reader
        self._reconstructor = reconstructor
        self._candidates = jax.jit(lambda p, x: encoders.candidates(network.features(p, x)))
        self._tokens = jax.jit(self._read_tokens, static_argnums=2)
        self._many = jax.jit(self._read_many, static_argnums=2)
        self._pool = jax.jit(lambda p, x: network.pool(p, network.features(p, x)))
        self._logits = jax.jit(network.logits)

    def encode(
        self, images: Images, pool: str = "mean", layer: int | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """Return the features of full images.

        Args:
          images: uint8 [b h w c], or a list of arrays, Pillow images or paths. Those that are not
            of `image_size` are resized and cropped as the run's evaluators do.
          pool: "mean" of the patch tokens or "cls" ([b d]), or "all" tokens ([b p+n d], CLS first).
          layer: block from 0, negative from the end; None = after the final norm. A fine-tuned
            model has a norm after pooling and none for tokens: "mean" alone, as its head reads it.
          batch_size: images at once.

        Returns:
          float32.

        Raises:
          ConfigError: an image, pool or layer that the model cannot read.
        """
        name = self.check(pool, layer)
        if layer is None and not self._network.normed:
            fn = self._pool
        elif pool == "all":
            fn = lambda p, x: self._tokens(p, x, layer)
        else:
            fn = lambda p, x: self._candidates(p, x)[f"{pool} of {name}"]
        return self._batched(fn, images, batch_size)

    def check(self, pool: str, layer: int | None) -> str:
        """Return the name of the layer that `encode` reads: "norm", "block_00".

        Raises:
          ConfigError: the model cannot read it.
        """
        depth = self._network.module.depth
        if pool not in POOLS:
            raise ConfigError(f"pool: {pool!r}; allowed: {', '.join(POOLS)}")
        if pool == "cls" and not self._network.num_classes:
            raise ConfigError("pool: 'cls', and this encoder has no CLS token; allowed: mean, all")
        if layer is not None and not -depth <= layer < depth:
            raise ConfigError(f"layer: {layer}; allowed: None, or {-depth} to {depth - 1}")
        pooled = self._network.pooled
        if layer is None and not self._network.normed and not (pooled and pool == "mean"):
            mean = "pool='mean', or " if pooled else ""
            raise ConfigError(
                f"pool: {pool!r} with layer=None: the file has no norm for tokens (fine-tuned "
                f"models have one after pooling, backbones none); allowed: {mean}a layer"
            )
        return "norm" if layer is None else f"block_{layer % depth:02d}"

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
    def reader(self) -> Reader:
        """The function that brings images to the model's size."""
        return self._reader

    def classify(self, images: Images, batch_size: int = 64) -> np.ndarray:
        """Return the logits, float32 [b classes], of a fine-tuned or linearly probed file.

        Raises:
          ConfigError: the model has no head.
        """
        if not self.num_classes:
            why = self._network.no_head or "this model has no classifier"
            allowed = "files of fine-tuned or linearly probed models"
            raise ConfigError(f"classify: {why}; allowed: {allowed}")
        return self._batched(self._logits, images, batch_size)

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
        """Return `fn` of all images, by batches of one shape; the last image fills the last one."""
        view = View(self.image_size, self._network.resample)
        arrays = self._reader(images, {"image": view})
        x, out = arrays["image"], []
        size = min(max(size, 1), len(x))
        for i in range(0, len(x), size):
            part = x[i : i + size]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            out.append(np.asarray(fn(self._params, full))[: len(part)])
        return np.concatenate(out)


class Reconstructor:
    """Draws pictures of a task; frozen networks are read when the first one is asked for."""

    def __init__(
        self,
        task: Pretraining,
        state: Callable[[], TrainState],
        frozen: Callable[[], PyTree],
        seed: int = 0,
    ):
        self.task, self._load, self._seed = task, (state, frozen), seed
        self._ready: tuple[TrainState, PyTree] | None = None
        self._painters: dict[int, Painter] = {}  # a seed is part of what is compiled

    def __call__(
        self, images: Images, mask: np.ndarray | None, seed: int | None, reader: Reader
    ) -> Sheet:
        task, seed = self.task, self._seed if seed is None else seed
        batch: dict[str, Any] = reader(images, task.views)
        count = len(batch["image"])
        batch |= self._sampled(mask, count, seed)
        if self._ready is None:
            self._ready = self._load[0](), self._load[1]()
        painter = self._painters.setdefault(seed, Painter(task, seed))
        sheet = painter.sheet(*self._ready, batch, count)
        if sheet is None:
            raise ConfigError(
                f"reconstruct: {type(task).__name__} with this target predicts no pixels; allowed: "
                "models that do"
            )
        return sheet

    def _sampled(self, mask: np.ndarray | None, count: int, seed: int) -> dict[str, np.ndarray]:
        """Return the masks or ids of `count` images that the task makes on the host.

        Args:
          mask: takes the place of those that the task makes, if it fits; None = it does not.
        """
        task = self.task
        seeds = [example_seed(seed, 0, i, "eval_mask") for i in range(count)]
        made = [task.sample(random.Random(s), 0) for s in seeds]
        out = {name: np.stack([np.asarray(x[name]) for x in made]) for name in made[0]}
        if mask is None:
            return out
        if "mask" not in out:
            raise ConfigError("mask: the method chooses the patches itself; allowed: None")
        mask = np.asarray(mask)
        shape = (count, task.encoder.num_patches)
        if mask.dtype != bool or mask.shape != shape or (mask.sum(1) != task.num_masked).any():
            raise ConfigError(
                f"mask: {mask.dtype} {list(mask.shape)}; allowed: bool {list(shape)} with "
                f"{task.num_masked} masked patches in each image"
            )
        # a masking may have several masks of an image, [b s n], of which evaluation reads the first
        own = out["mask"]
        mask = mask.reshape(count, *(1,) * (own.ndim - 2), shape[1])
        return out | {"mask": np.broadcast_to(mask, own.shape)}


def load(
    path: str | os.PathLike,
    heads: int | None = None,
    decoder_heads: int | None = None,
    *,
    step: int | None = None,
    ema: bool | None = None,
    layout: str = "auto",
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher: str | Mapping[str, str] = "",
    pixel_norm: patches.PatchNorm | None = None,
) -> Model:
    """Return a model from a workdir of this project or from a published checkpoint file.

    Args:
      path: workdir, .safetensors or .pth (weights-only loading).
      heads, decoder_heads: numbers of heads of a file's encoder and of the networks behind it,
        where no tensor shows them and the size is no published one.
      step: step of a workdir's checkpoint; None = the newest.
      ema: whether to read the encoder's moving average instead of the encoder; None = of a workdir
        what its evaluators read, of a file the encoder.
      layout: layout of a file, a name of `mimjax/torch_io/read/detect.py`.
      image_size: (height, width), where a file's patches fill no square or its learned positions
        are to be resized.
      mean, std: statistics of a file's images, where they are not its method's.
      pixel_norm: normalization of the pixels that a file's decoder predicts, where only its
        training knows it (mae_visualize files: "none"; the official pretraining command: "patch").
      teacher: file or workdir of the tokenizer or teacher that a file's method reconstructs with;
        for several of them one by the target's field, {"mimic_target.first": FILE, ...}.

    Raises:
      ConfigError: what is wrong, in one line.
    """
    path = os.fspath(path)
    choice = published.Choice(heads, decoder_heads, image_size, published=True)
    if not files.is_weights(path):
        pixels.refuse(pixel_norm, f"{path} is a run, which knows it")
        return of_run(workdir.read_run(path, step), path, ema)
    file, average = published.open_file(path, layout, "path")
    if ema:
        if not average:
            raise ConfigError(f"ema: True, but {path} holds no moving average; allowed: False")
        file = type(file)(average, file.layout, file.where, beside=file.beside)
    c, why = own_files.method_config(file)
    if c is not None:
        pixels.refuse(pixel_norm, f"{path} says it itself")
        c.method.update({k: tuple(v) for k, v in (("mean", mean), ("std", std)) if v})
        teachers.name_paths(c, teacher)
        return _of_method(path, own_files.read(c, file, choice))
    if file.about or not published.method_of(file):
        pixels.refuse(pixel_norm, f"{path} holds no decoder")
        network, params, config, report = encoders.read(file, choice, mean, std)
        return Model(config, network, params, report, reader_of(network, file), why)
    return _from_method(path, file, choice, mean, std, teacher, pixel_norm)


def reader_of(network: encoders.Network, file: FileTensors) -> Reader:
    """Return the reader of images for a file; only one of ours says how the run crops them."""
    crop = float(file.about.get("eval_crop", 1.0))
    return Reader(Augment(eval_crop=crop), Decoding(channels=len(network.mean)))


def of_run(run: workdir.SavedRun, path: str, ema: bool | None = None) -> Model:
    """Return the model of a run that is open already, at `path`.

    Args:
      ema: see `load`.

    Raises:
      ConfigError: it has no encoder of images, or no average of it.
    """
    c, task = run.config, run.task
    if not isinstance(task, Pretraining):
        raise ConfigError(f"path: {path} is a run of {c.task}, which has no encoder of images")
    params = run.encoder(ema)
    network = encoders.Network.of(task)
    augment = schema.build(Augment, c.data.augment, "data.augment")
    reader = Reader(augment, configured.decoding(c))
    reconstruct = Reconstructor(task, run.state, run.frozen, c.seed)
    line = f"from {path}: {run.title}" + (", moving average" if run.takes_average(ema) else "")
    return Model(c, network, {"encoder": params}, [line], reader, reconstruct)


def _from_method(
    path: str,
    file: FileTensors,
    choice: published.Choice,
    mean: Any,
    std: Any,
    teacher: str | Mapping[str, str],
    pixel_norm: patches.PatchNorm | None,
) -> Model:
    """Return the model of a method's file, with the method's published settings."""
    c = published.method_config(file, path, mean, std)
    known = pixels.say(c, file, pixel_norm)
    teachers.name_paths(c, teacher)
    return _of_method(path, published.fit(teachers.fill(c), file, None, choice), known)


def _of_method(path: str, fitted: published.Imported, known: bool = True) -> Model:
    """Return the model of a file as the weights of a task; `known`: see `pixels.say`."""
    task: Any = fitted.task
    init = initial(task)(step_key(0, "init", 0))[0]
    params = jax.tree.map(jnp.asarray, published.complete(fitted.params, init))
    network = encoders.Network.of(task)
    lacking = [k for k in fitted.absent if "/" not in k]
    reconstruct: Any = f"{path} holds no {', '.join(lacking)}"
    if not lacking and not known:
        reconstruct = pixels.question(path)
    elif not lacking:
        state = lambda: TrainState(jnp.zeros((), jnp.int32), params, {}, task.init_ema(params), ())
        reconstruct = Reconstructor(task, state, lambda: teachers.read_named(task))
    reader = reader_of(network, fitted.file)
    return Model(fitted.config, network, params, fitted.report, reader, reconstruct)
