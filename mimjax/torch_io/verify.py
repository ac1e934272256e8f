"""Verification of an exported file: its features are compared with those of the run's network.

The file is read back from the disk by the library that it is for (`libraries.py`), or by mimjax if
there is none. The same images go through both networks. The run's parameters are those in memory,
to which no step of the export was applied.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.data.decoding import open_image
from mimjax.errors import ConfigError
from mimjax.masking.base import Random
from mimjax.methods.mim import MIM
from mimjax.models.layers import normalize
from mimjax.patches import normalize as normalize_pixels
from mimjax.task import Encoder, Features, TrainState, pretraining
from mimjax.torch_io import libraries
from mimjax.torch_io.write import tensors
from mimjax.torch_io.write.export import Export

Outputs = dict[str, np.ndarray]
BOUND = 1e-4  # of the difference, times the largest feature if that is above 1
PHOTOS = ("images/china.jpg", "images/flower.jpg")  # inside scikit-learn's wheel


@dataclasses.dataclass(frozen=True)
class Proof:
    """Result of a comparison.

    Attributes:
      reader: library that read the file, with its version.
      difference, bound: largest absolute difference of all compared outputs, and the allowed one.
      outputs: names of the compared outputs.
      verified: False if the library that the file is for cannot be imported, and mimjax read it.
      why: why it cannot, where it is installed.
    """

    reader: str
    difference: float = 0.0
    bound: float = 0.0
    outputs: tuple[str, ...] = ()
    verified: bool = True
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # not with NaN

    def __str__(self) -> str:
        what = " and ".join(self.outputs)
        return (
            f"max |difference| {self.difference:.2g} (bound {self.bound:.2g}): {what} of "
            f"{self.reader} against this run's, float32"
        )


def proof_images(export: Export) -> np.ndarray:
    """Return normalized images, float32 [b h w c]: noise, and as many photographs if possible."""
    height, width = export.plain[0].image_size
    rng = np.random.default_rng(0)
    count = 2 if export.plain[0].num_patches <= 400 else 1  # large images take much memory
    noise = rng.normal(size=(count, height, width, export.channels)).astype(np.float32)
    spec = importlib.util.find_spec("sklearn.datasets")
    if export.channels != 3 or spec is None or spec.origin is None:
        return noise
    photos = []
    for name in PHOTOS[:count]:
        with open_image(Path(spec.origin).parent / name) as image:
            photos.append(np.asarray(image.convert("RGB").resize((width, height))))
    task = pretraining(export.task)
    normalized = normalize_pixels(jnp.asarray(np.stack(photos)), task.mean, task.std)
    return np.concatenate([noise, normalized])


@functools.partial(jax.jit, static_argnums=0)
def run(network: Any, params: Any, inputs: jax.Array) -> Any:
    """Return the outputs of a module on whole images or tokens, in full float32 on any device."""
    with jax.default_matmul_precision("highest"):
        return network.apply({"params": params}, inputs)


def features(encoder: Encoder, params: Any, images: np.ndarray) -> Outputs:
    """Return an encoder's features of whole images.

    Args:
      encoder, params: the encoder; the parameters may lack the final norm.
      images: normalized, float32 [b h w c].

    Returns:
      "raw" [b p+n d], the last block's output; "patches" [b n d], the same without prefix tokens;
      "tokens" [b p+n d], after the final norm; "pooled" [b d], the norm of the mean patch. The last
      two are missing without a final norm.
    """
    normed = "norm" in params
    ones = {"scale": jnp.ones(encoder.width), "bias": jnp.zeros(encoder.width)}
    f: Features = run(encoder, params if normed else params | {"norm": ones}, images)
    raw = np.asarray(f.blocks[-1])
    patches = raw[:, f.prefix :]
    out = {"raw": raw, "patches": patches}
    if not normed:
        return out
    mean = normalize(jnp.asarray(patches.mean(1)))
    pooled = mean * params["norm"]["scale"] + params["norm"]["bias"]
    return out | {"tokens": np.asarray(f.tokens), "pooled": np.asarray(pooled)}


def logits(
    trained: tuple[Encoder, Any], images: np.ndarray, head: Callable[[Features], jax.Array]
) -> np.ndarray:
    """Return logits, float32 [b c], of an encoder with its parameters and what stands behind it.

    Args:
      trained: the encoder and its parameters, which may lack the final norm.
      images: normalized, float32 [b h w c].
    """
    encoder, params = trained
    ones = {"scale": jnp.ones(encoder.width), "bias": jnp.zeros(encoder.width)}
    with jax.default_matmul_precision("highest"):
        return np.asarray(head(run(encoder, {"norm": ones} | params, images)))


def reference(export: Export, images: np.ndarray, noise: np.ndarray) -> Outputs:
    """Return the run's outputs: `features`, and outputs of its decoder that a library has too.

    Args:
      export: the export; of one with a classifier, only the logits are returned.
      images: normalized, float32 [b h w c].
      noise: uniform numbers [b n], whose order decides MAE's masks.
    """
    task, params = export.task, export.params
    if export.head:
        return {"logits": logits(export.plain, images, export.head.logits)}
    out = features(*export.plain, images)
    if export.layout == "beit_transformers":
        head = export.network("head").clone(dtype=jnp.float32)
        rows = {"all": jnp.asarray(out["tokens"][:, export.encoder.num_prefix :])}
        out["logits"] = np.asarray(run(head, params["head"], rows)["all"])
    if export.layout == "vitmae_transformers":
        mask = noise.argsort(1).argsort(1) >= export.encoder.num_patches - task.num_masked
        method: Any = task
        out |= reconstruct(method, params, jnp.asarray(images), jnp.asarray(mask))
    return out


def reconstruct(task: MIM, params: Any, images: jax.Array, mask: jax.Array) -> Outputs:
    """Return the "prediction" of the masked patches, and its "loss" [1], for masks [b n].

    Args:
      task: the run's, which learns one thing by one network.
    """
    ((name, term),) = task.terms.items()
    networks = {k: getattr(task, k).clone(dtype=jnp.float32) for k in ("encoder", term.network)}
    masking = Random((task.num_masked - 0.5) / task.encoder.num_patches)  # as many, whatever kind
    made: Any = dataclasses.replace(task, masking=masking, **networks)
    key = jax.random.key(0)  # read by nothing: no random numbers are drawn

    @jax.jit
    def both(params, images, mask):
        state = TrainState(jnp.int32(0), params, {}, {}, ())
        with jax.default_matmul_precision("highest"):
            batch = {"image": images, "mask": mask}
            prepared, _ = made.prepare(state, {}, batch, key, False)
            predicted = made.loss(params, {}, prepared, key, 0, False).predictions[name]
        error, values = predicted.error["masked"], predicted.values["masked"]
        return {"loss": error.mean()[None], "prediction": values}

    return {k: np.asarray(v) for k, v in both(params, images, mask).items()}


def compare(ours: Outputs, theirs: Outputs, reader: str) -> Proof:
    """Return the largest absolute difference over all outputs in `theirs`."""
    difference, size = 0.0, 1.0
    for name, x in theirs.items():
        assert x.shape == ours[name].shape, (name, x.shape, ours[name].shape)
        difference = float(np.maximum(difference, np.abs(x - ours[name]).max()))  # keeps NaN
        size = max(size, float(np.abs(ours[name]).max()))
    return Proof(reader, difference, BOUND * size, tuple(theirs))


def reread(export: Export, trees: Any, images: np.ndarray) -> Outputs:
    """Return features of the encoder in `trees`, which mimjax has read back from the file.

    With a classifier they are its logits.
    """
    encoder, read = export.written[0], trees["encoder"]
    if export.format == "detectron2":  # ViTDet has no CLS token, whose attention is missed
        read = read | {"cls_token": export.plain[1]["cls_token"]}
    if export.decoder:
        encoder, read = tensors.plain(encoder, read)
    if network := export.classifier:
        made: Any = network
        head = lambda x: made.apply(trees["classifier"], x)
        return {"logits": logits((encoder, read), images, head)}
    out = features(encoder, read, images)
    return {k: v for k, v in out.items() if k in ("tokens", "raw")}


def prove(export: Export, path: str) -> Proof:
    """Read an exported file back and compare its outputs with the run's.

    Args:
      export: the export.
      path: its file or folder.

    Raises:
      ConfigError: the library refuses the file, or its features differ by more than the bound.
    """
    trees = libraries.read_back(export, path)
    if not export.is_encoder:
        return Proof("the file read back", outputs=("tensors",))
    images = proof_images(export)
    noise = np.random.default_rng(1).random((len(images), export.plain[0].num_patches))
    ours = reference(export, images, noise)
    if not all(np.isfinite(x).all() for x in ours.values()):
        raise ConfigError("--model: this checkpoint's features are not finite; allowed: a --step")
    # its module is an encoder
    alone = export.format == "convmae" and (export.decoder or export.head)
    reader = None if alone else libraries.READERS.get(export.kind.library)
    name, verified, theirs, why = "the file read back", True, None, ""
    if reader:
        try:
            name, theirs = reader(export, path, images, noise)
        except ImportError as error:
            verified, why = False, str(error) if error.__cause__ else ""
    if theirs is None:
        theirs = reread(export, trees, images)
    proof = dataclasses.replace(compare(ours, theirs, name), verified=verified, why=why)
    if not proof.ok:
        raise ConfigError(f"--format: {export.format}: the file is wrong and was not kept: {proof}")
    return proof
