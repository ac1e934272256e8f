"""Tiny methods, fake targets and batches that the tests of methods share."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches
from mimjax.masking.block import Block
from mimjax.models.vit import ViT
from mimjax.patches import patchify
from mimjax.targets.base import Target
from mimjax.task import TrainState
from mimjax.train.step import train_step

KEY = jax.random.key(7)
HALF = Block(0.5)  # 8 of 16 patches


def encoder(**options):
    """Sixteen patches, two blocks."""
    base = {"width": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": (16, 16)}
    return ViT(**base | {"bias": "qv", "layer_scale": 0.1} | options)


def flat(images, vit):
    images = patches.normalize(images, patches.IMAGENET_MEAN, patches.IMAGENET_STD)
    return patchify(images, vit.patch)


@dataclasses.dataclass(frozen=True)
class Codes(Target):
    """A tokenizer without a network: it codes a patch by its mean and remembers what it reads."""

    kind: ClassVar[str] = "codes"
    decodes: ClassVar[bool] = True

    vocab: int = 7
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def width(self, encoder):
        return self.vocab

    def encode(self, frozen, images, encoder):
        return flat(images, encoder)

    def read(self, frozen, hidden, key=None):
        self.seen.append(hidden.shape)
        return jnp.floor(50 * hidden.mean(-1)).astype(jnp.int32) % self.vocab

    def decode(self, frozen, values, encoder, colors):
        grid = values.reshape(-1, *encoder.grid, 1) / (self.vocab - 1)
        grid = jnp.repeat(jnp.repeat(grid, encoder.patch, 1), encoder.patch, 2)
        return jnp.repeat(grid, 3, axis=3)


@dataclasses.dataclass(frozen=True)
class Teacher(Target):
    """A teacher with a class token that is no network; remembers what it reads."""

    num_prefix: ClassVar[int] = 1

    size: int = 6
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def width(self, encoder):
        return self.size

    def encode(self, frozen, images, encoder):
        x = flat(images, encoder)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        return x @ jax.random.normal(jax.random.key(3), (x.shape[-1], self.size))

    def read(self, frozen, hidden, key=None):
        self.seen.append(hidden.shape)
        return hidden


@dataclasses.dataclass(frozen=True)
class Looks(Teacher):
    """A teacher that looks at bright patches, with two heads that agree."""

    has_attention: ClassVar[bool] = True

    def encode_with_attention(self, frozen, images, encoder):
        bright = jax.nn.softmax(flat(images, encoder).mean(-1), axis=-1)
        return self.encode(frozen, images, encoder), jnp.stack([bright, bright], axis=1)


def raw_batch(size=4, masked=8, shape=(16, 16), counts=None, patch=4):
    """uint8 images and masks of `masked` patches each, or of `counts`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(size, *shape, 3), dtype=np.uint8)
    n = shape[0] * shape[1] // patch**2
    mask = np.zeros((size, n), bool)
    for row, count in zip(mask, counts or [masked] * size):
        row[rng.permutation(n)[:count]] = True
    return {"image": jnp.asarray(images), "mask": jnp.asarray(mask)}


def randomized(params, spread=0.2):
    """Parameters with noise: zero biases and small factors would hide mistakes."""
    rng = np.random.default_rng(5)  # in numpy: every shape would be a program of its own
    noisy = lambda x: np.asarray(x) + np.float32(spread) * rng.standard_normal(x.shape, np.float32)
    return jax.tree.map(lambda x: jnp.asarray(noisy(x)), params)


@functools.cache
def start(task):
    """Parameters, randomized."""
    return randomized(jax.jit(task.init)(jax.random.key(0))[0])


def state_of(task, params, tx=None):
    """The state at step 0 with these parameters."""
    opt_state = tx.init(params) if tx else ()
    model_state = {k: t.init_state(task.encoder) for k, t in task.targets.items()}
    return TrainState(jnp.int32(0), params, model_state, task.init_ema(params), opt_state)


def prepare(task, raw, params=None, train=True, frozen=None, pieces=1):
    """What `loss` reads; compiled, because so many small operations take seconds one by one."""
    params = start(task) if params is None else params
    run = lambda p, f, b: task.prepare(state_of(task, p), f, b, KEY, train, pieces)[0]
    return jax.jit(run)(params, frozen or {}, raw)


@functools.cache
def compiled(task, name, train):
    """The loss or the predictions of a task, traced once for all of its parameters and batches."""
    if name == "loss":
        return jax.jit(lambda p, b: task.loss(p, {}, b, KEY, 0, train))
    return jax.jit(lambda p, b: task.predict(p, b, KEY, train))


def loss(task, params, prepared, train=True):
    return compiled(task, "loss", train)(params, prepared)


def predict(task, params, prepared, train=False):
    """What networks read, and what each predicts by place."""
    return compiled(task, "predict", train)(params, prepared)


def step(task, tx, params, raw, accum=1):
    """The first update of these parameters."""
    first = lambda p, b: train_step(state_of(task, p, tx), {}, b, task=task, tx=tx, accum=accum)
    return jax.jit(first)(params, raw)


def hidden_pixels(mask, patch=4):
    """Where masked patches are, bool [b h w 1], of masks on a square grid."""
    side = round(mask.shape[1] ** 0.5)
    grid = np.asarray(mask).reshape(-1, side, side, 1)
    return np.repeat(np.repeat(grid, patch, 1), patch, 2)


def close(ours, theirs, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), ours, theirs)
