"""The optimizer, from plain numbers to one optax chain.

The chain's structure depends only on the class of the rule, never on rates, lengths or a rule's
settings, so a checkpoint fits after those change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from mimjax import rules, values
from mimjax.schedules import Cosine, MAECosine, Schedule
from mimjax.task import Clock, Task
from mimjax.values import NonNegative, Positive, Rate

PyTree = Any
ByStep = Callable[[Any], jax.Array]  # a number as a function of the step (from 0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a gradient becomes a direction, before weight decay and the learning rate.

    A user's own rule is a frozen dataclass that derives from this class; its fields are settings.
    """

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = ("mimjax.train.optimizers",)

    def transformation(self) -> optax.GradientTransformation:
        """Return what stands between clipping and decay; its state has one structure per class."""
        raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True)
class AdamW(Rule):
    """Adam's first over the root of its second moment; with the chain's decay it is AdamW.

    Attributes:
      b1, b2: decay of the two moments; the defaults are those of MAE's code.
      eps: added to the root; 1e-8 is PyTorch's.
    """

    b1: Rate = 0.9
    b2: Rate = 0.95
    eps: Positive = 1e-8

    def transformation(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class Lion(Rule):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675).

    Its authors take a rate of a third to a tenth of AdamW's and a decay larger by as much.

    Attributes:
      b1: share of the momentum in the direction; the defaults are those of algorithm 2.
      b2: decay of the momentum.
    """

    b1: Rate = 0.9
    b2: Rate = 0.99

    def transformation(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(b1=self.b1, b2=self.b2)


@dataclasses.dataclass(frozen=True)
class LARS(Rule):
    """Momentum of gradients that are as long as a share of their parameter (arXiv:1708.03888).

    Parameters of one dimension are not scaled. The defaults are those of the optimizer with which
    MAE's code trains linear probes.

    Attributes:
      momentum: decay of the momentum.
      trust_coefficient: length of a scaled gradient over that of its parameter.
      weight_decay: share of each scaled parameter that joins its gradient before the ratio, as in
        the paper; `optimizer.weight_decay` acts after it.
    """

    momentum: Rate = 0.9
    trust_coefficient: Positive = 0.001
    weight_decay: NonNegative = 0.0

    def transformation(self) -> optax.GradientTransformation:
        ratio = optax.scale_by_trust_ratio(trust_coefficient=self.trust_coefficient)

        def update(updates, state, params=None):
            updates = jax.tree.map(lambda u, p: u + self.weight_decay * p, updates, params)
            return ratio.update(updates, state, params)

        scaled = optax.GradientTransformation(ratio.init, update)
        matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
        return optax.chain(optax.masked(scaled, matrices), optax.trace(decay=self.momentum))


@dataclasses.dataclass(frozen=True)
class SGD(Rule):
    """Gradient descent with momentum, as PyTorch's.

    Attributes:
      momentum: decay of the momentum; 0.9 is that of MoCo v3's linear probe.
      nesterov: whether the momentum is looked at one step ahead.
    """

    momentum: Rate = 0.9
    nesterov: bool = False

    def transformation(self) -> optax.GradientTransformation:
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What a swap of the rule or the schedule keeps, and the two.

    Attributes:
      base_lr: learning rate per 256 images; the rate is base_lr * batch / 256.
      lr: absolute learning rate, which replaces base_lr; None = not given.
      rule: how gradients become directions.
      schedule: of the learning rate, whose peak `base_lr` or `lr` gives.
      weight_decay, weight_decay_end: decoupled decay, on a cosine from the first to the second
        (None = constant).
      clip_norm: global gradient norm above which gradients are scaled down; None = off.
      decay: rules (regex, factor) for the weight decay of each parameter.
      lr_scale: rules (regex, factor) for its learning rate.
    """

    base_lr: NonNegative = 1.5e-4
    lr: NonNegative | None = None
    rule: Rule = AdamW()
    schedule: Schedule = MAECosine()
    weight_decay: NonNegative = 0.05
    weight_decay_end: NonNegative | None = None
    clip_norm: Positive | None = None
    decay: tuple[values.Rule, ...] = ((rules.VECTORS, 0.0), (".*", 1.0))
    lr_scale: tuple[values.Rule, ...] = ((".*", 1.0),)

    def __post_init__(self):
        values.check(self, "optimizer")

    def peak_lr(self, batch_size: int) -> float:
        """Return the rate after warm-up, for an effective batch of `batch_size` images."""
        return self.base_lr * batch_size / 256 if self.lr is None else self.lr


def learning_rate(cfg: OptimizerConfig, clock: Clock, batch_size: int) -> ByStep:
    """Return the learning rate as a function of the step (from 0).

    Raises:
      ConfigError: the schedule does not fit into the run.
    """
    cfg.schedule.check(clock, "optimizer.schedule")
    peak = cfg.peak_lr(batch_size)
    return lambda step: cfg.schedule.rate(step, clock, peak)


def weight_decay(cfg: OptimizerConfig, clock: Clock) -> ByStep:
    """Return the weight decay as a function of the step."""
    if cfg.weight_decay_end is None:
        return lambda step: jnp.asarray(cfg.weight_decay)
    schedule = Cosine(cfg.weight_decay, cfg.weight_decay_end)
    return lambda step: schedule(step, clock)


def make_optimizer(
    cfg: OptimizerConfig, params: PyTree, lr: ByStep, decay: ByStep, task: Task | None = None
) -> optax.GradientTransformation:
    """Chain clipping (over all parameters), the rule, decay, per-parameter scale and rate.

    Args:
      params: parameters or their shapes, for the rules.
      task: its own factors of rate and decay join those of the rules; None = there are none.
    """
    decays, scales = factors(cfg, params, task)
    clip = optax.identity()
    if cfg.clip_norm is not None:
        clip = optax.clip_by_global_norm(cfg.clip_norm)
    return optax.chain(
        clip,
        cfg.rule.transformation(),
        decay_weights(decay, decays),
        optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, scales)),
        optax.scale_by_learning_rate(lr),
    )


def factors(
    cfg: OptimizerConfig, params: PyTree, task: Task | None = None
) -> tuple[PyTree, PyTree]:
    """Return the factors of every parameter's weight decay and of its learning rate.

    Args:
      params, task: see `make_optimizer`.
    """
    decays = rules.match(cfg.decay, params, "optimizer.decay")
    scales = rules.match(cfg.lr_scale, params, "optimizer.lr_scale")
    if task is None:
        return decays, scales
    return joined(decays, task.decay_scale(params)), joined(scales, task.lr_scale(params))


def joined(factors: PyTree, others: PyTree | None) -> PyTree:
    """Return the products of two trees of numbers; None = the first as it is."""
    return factors if others is None else jax.tree.map(lambda a, b: a * b, factors, others)


def decay_weights(decay: ByStep, factors: PyTree) -> optax.GradientTransformation:
    """Add decay(step) * factor * parameter to each update (decoupled, as in AdamW)."""

    def update(updates, state, params=None):
        rate = decay(state.count)
        updates = jax.tree.map(lambda u, p, f: u + rate * f * p, updates, params, factors)
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32)), update
    )
