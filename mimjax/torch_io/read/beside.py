"""What stands beside a file of weights: `config.json` and `preprocessor_config.json`.

transformers and timm write there what no tensor shows: heads, activation, the epsilon of norms,
mean and std, how a head pools, whether a decoder predicts normalized pixels. A value is taken as
it stands or contradicted aloud; a function that no network here computes is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

from mimjax.errors import ConfigError
from mimjax.losses import LN_EPS

# spellings of the one activation that the encoders here have
GELU = ("gelu", "gelu_python", "GELU", "nn.GELU")
QUICK = ("quick_gelu", "quickgelu")  # CLIP's
SILU = ("silu", "swish", "SiLU", "nn.SiLU")  # of gates
EPS = 1e-5  # below it, another epsilon moves features by less than about 1e-4


@dataclasses.dataclass(frozen=True)
class Beside:
    """The facts; None = nothing says it.

    Attributes:
      source: the file that says it, "" = there is none.
      heads, decoder_heads: numbers of attention heads.
      mean, std: statistics of the images.
      norm_pix: whether a decoder predicts pixels that are normalized in each patch.
      activation, eps: of the blocks' MLPs, and of the norms.
      rope_theta: base of the periods by which positions turn queries and keys.
      pool: what a head reads, timm's words: "token", "avg", "map", ...
      head_norm: whether the final norm stands after pooling.
    """

    source: str = ""
    heads: int | None = None
    decoder_heads: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_pix: bool | None = None
    activation: str | None = None
    eps: float | None = None
    rope_theta: float | None = None
    pool: str | None = None
    head_norm: bool | None = None

    def check(self, quick: bool = False) -> None:
        """Check that the networks here compute what the file's network does.

        Args:
          quick: whether the network is CLIP's, whose activation is another one.

        Raises:
          ConfigError: another activation or epsilon.
        """
        self.check_activation(QUICK if quick else GELU)
        if self.eps is not None and self.eps > EPS:
            raise ConfigError(
                f"{self.source}: epsilon of norms {self.eps:g}; allowed: at most {EPS:g} (norms "
                f"are computed with {LN_EPS:g})"
            )

    def check_activation(self, allowed: tuple[str, ...]) -> None:
        """Check that the activation has one of these names, all of one function.

        Raises:
          ConfigError: it is another one.
        """
        if self.activation is not None and self.activation not in allowed:
            raise ConfigError(
                f"{self.source}: activation {self.activation!r}; allowed: {allowed[0]}, which is "
                "the one that this network computes"
            )

    def check_positive(self) -> None:
        """Check that numbers of the norms and positions can be computed with.

        Raises:
          ConfigError: one is not above 0, or not finite.
        """
        for name in ("eps", "rope_theta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{self.source}: {name}: {value}; allowed: numbers above 0")

    def lines(self, eps: float = LN_EPS) -> list[str]:
        """Return what was taken, in words; [] = nothing.

        Args:
          eps: with which the network computes its norms.
        """
        names = ("heads", "decoder_heads", "mean", "std", "norm_pix", "activation", "pool")
        told = {k: getattr(self, k) for k in names}
        taken = [f"{k}={v}" for k, v in told.items() if v is not None]
        if self.eps is not None and abs(self.eps - eps) > 1e-9:
            taken.append(f"epsilon of norms {self.eps:g} (computed with {eps:g})")
        elif self.eps is not None:
            taken.append(f"epsilon of norms {self.eps:g}")
        return [f"from {self.source}: {', '.join(taken)}"] if taken else []


def settings(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; {} = there is none, or something else."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read(path: str) -> Beside:
    """Return what stands beside the file of weights at `path`."""
    folder = os.path.dirname(os.path.expanduser(path))
    place = os.path.join(folder, "config.json")
    whole = settings(place)
    images = settings(os.path.join(folder, "preprocessor_config.json"))
    part = lambda name: x if isinstance(x := whole.get(name), dict) else {}
    args = part("model_args")
    outer = part("vision_config") or whole
    turns = outer.get("rope_parameters")  # transformers 5's models of other kinds
    sections = (outer, args, part("pretrained_cfg"), turns if isinstance(turns, dict) else {})

    def first(kind: type | tuple[type, ...], *names: str) -> Any:
        found = (s[n] for s in sections for n in names if n in s)
        return next((x for x in found if isinstance(x, kind) and type(x) is not bool), None)

    def flag(*names: str) -> bool | None:
        found = (s[n] for s in sections for n in names if n in s)
        return next((x for x in found if isinstance(x, bool)), None)

    mean, std = statistics(images) or (numbers(first(list, "mean")), numbers(first(list, "std")))
    pool, pooled = first(str, "global_pool"), flag("use_mean_pooling")
    pool = args.get("global_pool", whole.get("global_pool", pool))
    if pooled is not None:
        pool = "avg" if pooled else "token"
    facts = Beside(
        heads=first(int, "num_attention_heads", "num_heads"),
        decoder_heads=first(int, "decoder_num_attention_heads"),
        mean=mean,
        std=std,
        norm_pix=flag("norm_pix_loss"),
        activation=first(str, "hidden_act", "act_layer"),
        eps=first((int, float), "layer_norm_eps"),
        rope_theta=first((int, float), "rope_theta", "rope_temperature"),
        pool=pool if isinstance(pool, str) else None,
        head_norm=flag("fc_norm"),
    )
    if facts == Beside():
        return facts
    return dataclasses.replace(
        facts, source=place if whole else f"{folder}/preprocessor_config.json"
    )


def statistics(images: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return mean and std of transformers' image processor; None = it says none."""
    if images.get("do_normalize") is False:
        count = len(images.get("image_mean") or (0, 0, 0))
        return (0.0,) * count, (1.0,) * count
    mean, std = numbers(images.get("image_mean")), numbers(images.get("image_std"))
    return (mean, std) if mean and std else None


def numbers(value: Any) -> tuple[float, ...] | None:
    """Return a list of numbers as a tuple; None = it is none."""
    if not isinstance(value, list) or not all(isinstance(x, int | float) for x in value):
        return None
    return tuple(map(float, value)) or None
