"""Encoders with their weights, also of files that belong to no pretraining method.

Such a file holds a CLIP or DINO tower, a timm or transformers ViT, or an encoder with a classifier.
These networks encode and, with a head, classify; there is nothing to reconstruct.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mimjax import patches, schema, values
from mimjax.errors import ConfigError
from mimjax.inference import classifier, own_files, published
from mimjax.losses import LN_EPS
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.layers import LayerNorm
from mimjax.models.published_vit import PublishedViT
from mimjax.models.vit import ViT
from mimjax.rules import paths
from mimjax.schema import Config
from mimjax.targets.clip import CLIP_MEAN, CLIP_STD
from mimjax.task import Encoder, Features, Pretraining, View
from mimjax.torch_io.read import beside, classes, detect, load, sizes, vision
from mimjax.torch_io.tables import teachers

PyTree = Any
STEM = "encoder/patch_embed1/proj/kernel"
CLIP_HEADS = {(768, 12): 12, (1024, 24): 16}  # of OpenAI's towers, by width and depth


def encode_images(
    encoder: Encoder | CLIPVision,
    params: PyTree,
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    method: str | None = None,
) -> Features:
    """Return the features of full images, uint8 [b h w c]; `method` None = the encoder's call."""
    return encoder.apply({"params": params}, patches.normalize(images, mean, std), method=method)


def candidates(features: Features) -> dict[str, jax.Array]:
    """Return every (pool, layer) of `features`, float32 [b d], named like "cls of block_03"."""
    pools = ("cls", "mean") if features.num_classes else ("mean",)
    layers = {f"block_{i:02d}": i for i in range(len(features.blocks))} | {"norm": None}
    return {
        f"{pool} of {name}": features.read(pool, layer).astype(jnp.float32)
        for pool in pools
        for name, layer in layers.items()
    }


@dataclasses.dataclass(frozen=True)
class EncoderAlone(Pretraining):
    """A task that holds an encoder and learns nothing, for readers of a run's images.

    Attributes:
      encoder: the network; mean, std: of its images.
    """

    encoder: Encoder | CLIPVision = ViT()  # pyright: ignore[reportIncompatibleVariableOverride]
    mean: tuple[float, ...] = patches.IMAGENET_MEAN
    std: tuple[float, ...] = patches.IMAGENET_STD

    @property
    def views(self) -> dict[str, View]:
        return {"image": View(self.encoder.image_size, channels=len(self.mean))}


@dataclasses.dataclass(frozen=True)
class Network:
    """An encoder, the statistics that its images are normalized with, and its classifier if any.

    Attributes:
      module: the encoder.
      head: a `Classifier`, or what has its interface; None = there is none.
      pooled: whether features are a norm of the mean of the last block's patch tokens, which is
        what the head of a fine-tuned model reads.
      normed: whether tokens have a norm; fine-tuned models and backbones have none.
      no_head: why the file's classifier cannot be computed; "" = it can, or there is none.
      method: of the module, that returns `Features`; None = its call.
      guessed: whether nobody says `mean` and `std`: they are those of the file's layout.
      resample: filter with which images are brought to its size, see `task.View`.
      names: of the head's classes, in the order of its outputs; None = nothing tells them.
      layout: of the file that it was read from; "" = of a method's.
    """

    module: Encoder | CLIPVision
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: Any = None
    pooled: bool = False
    normed: bool = True
    method: str | None = None
    no_head: str = ""
    guessed: bool = False
    resample: str = "bicubic"
    names: tuple[str, ...] | None = None
    layout: str = ""

    @classmethod
    def of(cls, task: Pretraining) -> Network:
        """Return the encoder of a task, without parameters."""
        resample = task.views["image"].resample
        return cls(task.encoder, tuple(task.mean), tuple(task.std), resample=resample)

    def features(self, params: PyTree, images: jax.Array) -> Features:
        """Return features of uint8 images [b h w c]; CLIP's tokens are normed and projected."""
        statistics = self.mean, self.std
        return encode_images(self.module, params["encoder"], images, *statistics, self.method)

    def pool(self, params: PyTree, features: Features) -> jax.Array:
        """Return what the head of a `pooled` network reads, [b d]."""
        norm: Any = LayerNorm()
        mean = features.read("mean", layer=-1)
        return norm.apply({"params": params["classifier"]["params"]["norm"]}, mean)

    def logits(self, params: PyTree, images: jax.Array) -> jax.Array:
        """Return the head's output, float32 [b classes]."""
        head: Any = self.head
        return head.apply(params["classifier"], self.features(params, images))


def read(
    file: sizes.FileTensors, choice: published.Choice, mean: Any = None, std: Any = None
) -> tuple[Network, PyTree, Config, list[str]]:
    """Read a file: its network, parameters, settings, and lines that say what was read.

    Raises:
      ConfigError: heads are not given and cannot be told, or tensors do not fit.
    """
    choice = choice._replace(heads=choice.heads or file.beside.heads)
    module: Any
    cut = False
    if "encoder" in file.about:
        root, module = "encoder", own_files.encoder_of(file)
        if cut := module.class_tokens > 0 and own_files.lacks_class_token(file):
            file, module = own_files.without_class_token(file, module)
    else:
        root, module = root_of(file), module_of(file, choice)
    head, shapes, why = classifier.head_of(file)
    default = _statistics(file, root)
    given = {name for name, x in (("mean", mean), ("std", std)) if x is not None}
    mean = values.fit(values.Mean, tuple(mean or default[0]), "mean")
    std = values.fit(values.Std, tuple(std or default[1]), "std")
    channels = channels_of(file, root, module.patch)
    if channels != len(mean):
        raise ConfigError(
            f"mean: {len(mean)} values, but {file.where} reads images of {channels} channels; "
            "allowed: as many in mean and std"
        )
    alone = "encoder" not in file.about and vision.root_of(file) == root
    after = file.about.get("pool") == "avg"  # a norm after pooling, without a classifier
    pooled = "classifier/params/norm/scale" in file or after
    normed = alone or (has_norm(file, root) and not after)
    outputs = head.classes if head else 0
    names, said = classes.of_head(*classes.of_file(file), outputs)
    if root == "clip":
        net = Network(module, mean, std, head, pooled, normed, "features")
    else:
        net = Network(module.clone(channels=channels), mean, std, head, pooled, normed)
    net = dataclasses.replace(resized_as(net, file), no_head=why, names=names, layout=file.layout)
    net = dataclasses.replace(net, guessed=bool(guessed(net, file, given)))
    tree = vision.params(file, root, net.module) if alone else trunk(file, net, root)
    params = {"encoder": tree}
    if after:
        params["classifier"] = {"params": {"norm": params["encoder"]["norm"]}}
    elif shapes:
        like = _nested({k: jnp.zeros(s) for k, s in shapes.items()})
        params |= load.from_torch(file.state, like, file.layout, file.where)
    used = {f"{root}/{p}" for p in paths(params["encoder"])} | shapes.keys()
    lines = report(file, root, net, used, given) + said
    if cut:
        lines.insert(
            1,
            "without the class token that the encoder was trained with: patch tokens attend to "
            f"patch tokens alone, as in the library of the layout {file.layout!r}",
        )
    return net, jax.tree.map(jnp.asarray, params), settings_of(net.mean, net.std, module), lines


def has_norm(file: sizes.FileTensors, root: str) -> bool:
    """Return whether the file has a norm of tokens; one behind the pooling is none."""
    behind = file.keys.get("classifier/params/norm/scale")
    norms = [f"{root}/{name}/scale" for name in ("norm", "norm_post")]
    return any(k in file.state or (k in file and file.keys[k] != behind) for k in norms)


def settings_of(mean: tuple[float, ...], std: tuple[float, ...], module: Any) -> Config:
    """Return the settings of an encoder and its images in the form of a run's, without a task."""
    settings: Config = ConfigDict({"task": "", "method": {"mean": mean, "std": std}})
    settings.method.encoder = schema.section(module)
    settings.method.encoder.update(schema.naming(type(module)))
    return settings.lock()


def resized_as(net: Network, file: sizes.FileTensors) -> Network:
    """Return a network for images that are resized with the filter that a file says, if any."""
    said = file.about.get("resample") or file.beside.resample
    return dataclasses.replace(net, resample=said) if said in beside.OURS else net


def report(
    file: sizes.FileTensors, root: str, net: Network, used: set[str], given: set[str]
) -> list[str]:
    """Return lines that say what was read, what was taken for granted, and what was not read.

    Args:
      root: first part of our paths of the encoder.
      used: our paths of all parameters that were read.
      given: which of "mean" and "std" the caller says.

    Raises:
      ConfigError: a tensor that was not read is the encoder's.
    """
    unread, alone = file.unread(used), vision.root_of(file) == root
    # those are checked already
    if not alone and file.layout not in teachers.OWN and file.layout != detect.OWN:
        file.check_unread(unread)
    head = net.head
    module: Any = net.module
    with_head = f" and its head, which reads {head.words}" if head else ""
    lines = [f"from {file.where} (layout {file.layout!r}): the encoder{with_head}"]
    if alone:
        lines += vision.notes(file, root, module)
    elif root != "clip":
        lines += sizes.resizing(file, module.grid, module.num_prefix, root)
    lines += file.beside.lines(*([module.eps] if alone else []), given=given)
    lines += guessed(net, file, given)
    if not alone and root != "clip" and not file.about:
        lines += assumed(file)
    if net.no_head:
        lines.append(f"its head is not read: {net.no_head}")
    if unread:
        lines.append(f"{len(unread)} keys not read: {load.listed(unread)}")
    return lines


def guessed(net: Network, file: sizes.FileTensors, given: set[str]) -> list[str]:
    """Return the line about statistics that nobody says; [] = somebody does.

    Args:
      given: which of "mean" and "std" the caller says.
    """
    if given or "mean" in file.about or file.beside.mean:
        return []
    return [
        f"mean {net.mean} and std {net.std}: those of the layout's code, nothing in the file or "
        "beside it says them"
    ]


def assumed(file: sizes.FileTensors) -> list[str]:
    """Return the line about functions that no tensor shows and nobody says; [] = all are said."""
    said = {"GELU": file.beside.activation, f"norms of epsilon {LN_EPS:g}": file.beside.eps}
    missing = [words for words, value in said.items() if value is None]
    if not missing:
        return []
    return [
        f"{' and '.join(missing)}: of the layout's code, nothing in the file or beside it says them"
    ]


@functools.lru_cache(maxsize=16)
def shapes_of(module: Any, channels: int) -> PyTree:
    """Return the shapes of an encoder's parameters; equal encoders are traced once."""
    images = jax.ShapeDtypeStruct((1, *module.image_size, channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def trunk(file: sizes.FileTensors, net: Network, root: str) -> PyTree:
    """Return the encoder's parameters; a norm that the file lacks does nothing."""
    module: Any = net.module
    like = shapes_of(module, len(net.mean))
    # a tower's positions keep the file's grid
    place: Any = (None, "") if root == "clip" else load.place_of(module)
    read = load.from_torch(file.state, {root: like}, file.layout, file.where, *place)[root]
    if "cls_token" in read and read["cls_token"] is None:
        raise ConfigError(
            f"{file.where}: layout {file.layout!r} has no class token, and no tensor shows in "
            "which windows its blocks attend; allowed: files whose metadata say their encoder "
            "(mimjax export), or --config.init_from"
        )
    plain = lambda path, x: jnp.ones(x.shape) if path.endswith("scale") else jnp.zeros(x.shape)
    leaves = [plain(p, x) for p, x in zip(paths(like), jax.tree.leaves(like))]
    return published.complete(read, jax.tree.unflatten(jax.tree.structure(like), leaves))


def channels_of(file: sizes.FileTensors, root: str, patch: int) -> int:
    """Return the number of channels of the images that the file's encoder reads."""
    if file.layout != detect.OWN:
        stem = next(k for k in (f"{root}/patch_embed/kernel", STEM) if k in file)
        return file.shape(stem)[1]
    if STEM in file.state:
        return file.state[STEM].shape[2]
    return file.state["encoder/patch_embed/kernel"].shape[0] // patch**2


def root_of(file: sizes.FileTensors) -> str:
    """Return the name, of ours, under which the file has its network."""
    for root in detect.ROOTS:
        if file.has(root):
            return root
    if not detect.roots_of(file.layout).isdisjoint(detect.ROOTS):
        raise ConfigError(
            f"{file.where}: its keys ({', '.join(sorted(file.state)[:3])}, ...) are none of layout "
            f"{file.layout!r}; allowed: its own layout, or auto"
        )
    raise ConfigError(
        f"{file.where} (layout {file.layout!r}) holds no encoder, but "
        f"{', '.join(sorted(detect.roots_of(file.layout)))}; allowed: encoders of images"
    )


def module_of(file: sizes.FileTensors, choice: published.Choice) -> Any:
    """Return the module with the file's sizes."""
    root = root_of(file)
    if vision.root_of(file) == root:
        module = PublishedViT(**vision.settings(file, root, choice.image_size, choice.heads))
        module.check(f"{file.where}: encoder")
        return module
    if root == "clip":
        found = sizes.clip(file)
        # others have other numbers: 16 at width 1280
        heads = choice.heads or CLIP_HEADS.get((found["width"], found["depth"]))
        if not heads:
            raise sizes.ask(file, "heads", "the number of heads", "--heads=12")
        return CLIPVision(**found, heads=heads)
    section = schema.section(cls := ConvViT if detect.CONV in file else ViT)
    published.size_encoder(file, section, choice, root)
    return schema.build(cls, section, file.where)


def _nested(flat: dict[str, Any]) -> PyTree:
    out: PyTree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


def _statistics(file: sizes.FileTensors, root: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the images: the file's, or else those of its layout's code."""
    if "mean" in file.about:
        numbers = lambda name: tuple(map(float, file.about[name].split(",")))
        return numbers("mean"), numbers("std")
    if file.beside.mean and file.beside.std:
        return file.beside.mean, file.beside.std
    if root == "clip":
        return CLIP_MEAN, CLIP_STD
    if file.layout == "bootmae":
        return patches.HALF, patches.HALF
    return patches.IMAGENET_MEAN, patches.IMAGENET_STD
