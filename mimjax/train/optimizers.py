"""Schedules and the optimizer, from plain numbers to one optax chain.

The chain's structure depends only on the optimizer's name and options, never on rates or lengths,
so a checkpoint fits after those change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mimjax import rules, values
from mimjax.errors import ConfigError
from mimjax.task import Clock
from mimjax.values import NonNegative, Positive, Rate, Rule, Whole

WARMUP_SHARE = 0.05  # 40 of 800 epochs (MAE's code)

PyTree = Any
Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay.

    Attributes:
      name: "adamw" (all methods of this project).
      base_lr: learning rate per 256 images; the rate is base_lr * batch / 256.
      lr: absolute learning rate, which replaces base_lr; None = not given.
      min_lr: absolute rate at the end.
      warmup_epochs, warmup_steps: linear warm-up from 0; the steps win unless they are None.
      schedule: "mae" = from fractional epochs (MAE's code); "beit" = a table per step whose
        warm-up includes both ends (BEiT's and BootMAE's code); "constant" = MAE's warm-up, then the
        peak without end: a run that is extended later is the longer run from the start.
      weight_decay, weight_decay_end: decoupled decay, on a cosine from the first to the second
        (None = constant).
      b1, b2, eps: Adam's.
      clip_norm: global gradient norm above which gradients are scaled down; None = off.
      decay: rules (regex, factor) for the weight decay of each parameter.
      lr_scale: rules (regex, factor) for its learning rate.
    """

    name: Literal["adamw"] = "adamw"
    base_lr: NonNegative = 1.5e-4
    lr: NonNegative | None = None
    min_lr: NonNegative = 0.0
    warmup_epochs: NonNegative = 40.0
    warmup_steps: Whole | None = None
    schedule: Literal["mae", "beit", "constant"] = "mae"
    weight_decay: NonNegative = 0.05
    weight_decay_end: NonNegative | None = None
    b1: Rate = 0.9
    b2: Rate = 0.95
    eps: Positive = 1e-8
    clip_norm: Positive | None = None
    decay: tuple[Rule, ...] = ((rules.VECTORS, 0.0), (".*", 1.0))
    lr_scale: tuple[Rule, ...] = ((".*", 1.0),)

    def __post_init__(self):
        values.check(self, "optimizer")

    def peak_lr(self, batch_size: int) -> float:
        """The rate after warm-up, for an effective batch of `batch_size` images."""
        return self.base_lr * batch_size / 256 if self.lr is None else self.lr


def cosine(start: float, end: float, left: Any, of: float):
    """Half a cosine from `start` to `end`; `left` steps of `of` remain.

    sin^2 of what is left equals (1 + cos) / 2 of what is done, without its cancellation at the end.
    """
    share = jnp.clip(left / max(of, 1), 0, 1)
    return end + (start - end) * jnp.square(jnp.sin(jnp.pi / 2 * share))


def mae_lr(clock: Clock, peak: float, min_lr: float, warmup_steps: float) -> Schedule:
    """MAE's rate: peak * e / w while warming up, then min + (peak - min) (1 + cos) / 2."""
    rest = clock.total_steps - warmup_steps

    def lr(step):
        falling = cosine(peak, min_lr, clock.total_steps - step, rest)
        return jnp.where(step < warmup_steps, peak * step / max(warmup_steps, 1), falling)

    return lr


def beit_lr(clock: Clock, peak: float, min_lr: float, warmup_steps: int) -> Schedule:
    """BEiT's table: linspace(0, peak, w) with both ends, then a cosine over the n - w that remain.

    Its last entry is one step short of `min_lr`.
    """
    rest = clock.total_steps - warmup_steps

    def lr(step):
        falling = cosine(peak, min_lr, clock.total_steps - step, rest)
        return jnp.where(step < warmup_steps, peak * step / max(warmup_steps - 1, 1), falling)

    return lr


def learning_rate(cfg: OptimizerConfig, clock: Clock, batch_size: int) -> Schedule:
    """The learning rate as a function of the step (from 0)."""
    warmup = cfg.warmup_epochs * clock.steps_per_epoch
    if cfg.warmup_steps is not None:
        warmup = cfg.warmup_steps
    if warmup > clock.total_steps:
        key = "warmup_epochs" if cfg.warmup_steps is None else "warmup_steps"
        raise ConfigError(
            f"optimizer.{key}: {getattr(cfg, key):g} is a warm-up of {warmup:g} steps, but the run "
            f"has {clock.total_steps}; allowed: at most that many; {shorter_warmup(key, clock)}"
        )
    peak = cfg.peak_lr(batch_size)
    if cfg.schedule == "constant":
        return lambda step: jnp.where(step < warmup, peak * step / max(warmup, 1), peak)
    if cfg.schedule == "mae":
        return mae_lr(clock, peak, cfg.min_lr, warmup)
    return beit_lr(clock, peak, cfg.min_lr, int(warmup))


def shorter_warmup(key: str, clock: Clock) -> str:
    """The override of "warmup_epochs" or "warmup_steps" that suits a run of this length."""
    steps = max(round(WARMUP_SHARE * clock.total_steps), 1)
    value = steps if key == "warmup_steps" else steps / clock.steps_per_epoch
    return f"add --config.optimizer.{key}={value:.3g} ({WARMUP_SHARE:.0%} of the run)"


def weight_decay(cfg: OptimizerConfig, clock: Clock) -> Schedule:
    """The weight decay as a function of the step."""
    if cfg.weight_decay_end is None:
        return lambda step: jnp.asarray(cfg.weight_decay)
    return beit_lr(clock, cfg.weight_decay, cfg.weight_decay_end, 0)


def make_optimizer(
    cfg: OptimizerConfig, params: PyTree, lr: Schedule, decay: Schedule
) -> optax.GradientTransformation:
    """Clip (outermost: inside a group it would clip per group), Adam, decay, per-parameter scale.

    Args:
      params: parameters or their shapes, for the rules.
    """
    factors = rules.match(cfg.decay, params, "optimizer.decay")
    scales = rules.match(cfg.lr_scale, params, "optimizer.lr_scale")
    clip = optax.identity()
    if cfg.clip_norm is not None:
        clip = optax.clip_by_global_norm(cfg.clip_norm)
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        decay_weights(decay, factors),
        optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, scales)),
        optax.scale_by_learning_rate(lr),
    )


def decay_weights(decay: Schedule, factors: PyTree) -> optax.GradientTransformation:
    """Adds decay(step) * factor * parameter to each update (decoupled, as in AdamW)."""

    def update(updates, state, params=None):
        rate = decay(state.count)
        updates = jax.tree.map(lambda u, p, f: u + rate * f * p, updates, params, factors)
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32)), update
    )
