"""The pretrained encoder of a transfer task: which network, of which images, from which path."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mimjax import errors, patches
from mimjax.models.vit import ViT, at_size
from mimjax.networks import Features, Frozen, Reader
from mimjax.targets.base import Path
from mimjax.task import EncoderNetwork, Key, PyTree, View
from mimjax.values import Count, Mean, Size, Std

DEFAULT = ViT()  # where neither a path nor a setting says the network


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """A pretrained encoder that computes features and is not trained.

    `network`, `mean` and `std` are filled in from the workdir or the file that `path` names before
    a run begins. Of a run the weights are read that it trains, no moving average of them.

    Attributes:
      path: workdir or file; `--model` of `mimjax train` sets it.
      network: its settings; None = those of the workdir or file.
      size: (height, width) of the images; None = those of pretraining. Positions are resized.
      heads: of a file's encoder, where neither the file nor its size shows them.
      mean, std: of the images, per channel; None = those of the workdir or file.
      brings, follows, standard: see `targets.base.Target`.
    """

    brings: ClassVar[dict[str, str]] = {"network": "encoder", "mean": "mean", "std": "std"}
    standard: ClassVar[dict[str, Any]] = {
        "network": DEFAULT,
        "mean": patches.IMAGENET_MEAN,
        "std": patches.IMAGENET_STD,
    }
    follows: ClassVar[bool] = False

    path: Path | None = None
    network: EncoderNetwork | None = None
    size: Size | None = None
    heads: Count | None = None
    mean: Mean | None = None
    std: Std | None = None

    @property
    def module(self) -> Any:
        """The network, with the channels and the size of the run's images."""
        network: Any = DEFAULT if self.network is None else self.network
        network = network.clone(channels=len(self.statistics[0]))
        return network if self.size is None else at_size(network, self.size)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images; ImageNet's where nothing says them."""
        mean = patches.IMAGENET_MEAN if self.mean is None else self.mean
        return mean, patches.IMAGENET_STD if self.std is None else self.std

    @property
    def view(self) -> View:
        """The images that it reads."""
        height, width = self.module.image_size
        return View((height, width), channels=len(self.statistics[0]))

    def check(self, key: str) -> None:
        """Check sizes and statistics.

        Args:
          key: names the section in errors.

        Raises:
          ConfigError: images that are no whole number of patches, or statistics of no images.
        """
        errors.statistics(key, *self.statistics)
        network = self.module
        for side in network.image_size:
            if side % network.patch:
                raise errors.ConfigError(
                    f"{key}.size: {side}; allowed: multiples of the patch, {network.patch}"
                )
        network.check(f"{key}.network")

    def owned(self, key: str) -> Frozen:
        """Return how its weights are read; `key` names the section."""
        readers = {"encoder": Reader(self.module, self.mean, self.std)}
        return Frozen(f"{key}.path", self.path, readers, alone=True)

    def init_weights(self, key: Key) -> PyTree:
        """Return random weights, {"encoder": ...} as any run of this project has them."""
        network, (mean, _) = self.module, self.statistics
        images = jnp.zeros((1, *network.image_size, len(mean)))
        return {"encoder": network.init(key, images)["params"]}

    def encode(self, frozen: PyTree, images: jax.Array) -> Features:
        """Return the features of uint8 images [b h w c], as in evaluation."""
        images = patches.normalize(images, *self.statistics)
        return self.module.apply({"params": frozen["encoder"]}, images)
