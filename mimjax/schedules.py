"""Numbers that change over a run: learning rates, weights of losses, decays of averages.

A schedule is a function of (step, clock). One that has a warm-up and a minimum is meant for the
learning rate; `Schedule.rate` is then its value for a given peak. A user's own kind is a frozen
dataclass that derives from `Schedule` and defines `__call__`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from mimjax.errors import ConfigError
from mimjax.task import Clock
from mimjax.values import NonNegative, Number, Positive, Some, Whole

WARMUP_SHARE = 0.05  # 40 of 800 epochs (MAE's code)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base class of all schedules; a config names the subclass."""

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = ("mimjax.schedules",)

    def __call__(self, step: Any, clock: Clock) -> jax.Array:
        """Return the number at `step`, a whole number or an array of them, which may be traced."""
        raise NotImplementedError(type(self).__name__)

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        """Return the learning rate at `step`: here the number is a factor of `peak`."""
        return peak * self(step, clock)

    def check(self, clock: Clock, where: str) -> None:
        """Compare the settings with the run's length.

        Args:
          where: names the section in errors, "optimizer.schedule".

        Raises:
          ConfigError: the schedule does not fit into the run.
        """

    def warnings(self, clock: Clock, peak: float, where: str) -> list[str]:
        """Return a line for each setting that is allowed, but hardly meant."""
        return []

    def words(self) -> str:
        """Return the schedule in words, for the start of a run."""
        return in_words(self)


def in_words(thing: Any) -> str:
    """Return "Lion b1 0.9, b2 0.99": the class of a dataclass and its settings."""
    pairs = [(f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing)]
    shown = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in pairs]
    return " ".join([type(thing).__name__, ", ".join(shown)]).rstrip()


def cosine(start: float, end: float, left: Any, of: float) -> jax.Array:
    """Return half a cosine from `start` to `end`, where `left` of `of` steps remain.

    sin^2 of what is left equals (1 + cos) / 2 of what is done, without its cancellation at the end.
    """
    share = jnp.clip(left / max(of, 1), 0, 1)
    return end + (start - end) * jnp.square(jnp.sin(jnp.pi / 2 * share))


# ------------------------------------------------------------------ from one number to another
@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A line from `start` to `end` over a share of all steps; then the number stays."""

    start: Number = 0.0
    end: Number = 1.0
    share: Some = 1.0

    def __call__(self, step: Any, clock: Clock) -> jax.Array:
        done = jnp.clip(step / (self.share * clock.total_steps), 0, 1)
        return self.start + (self.end - self.start) * done


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `start` to `end` over all steps."""

    start: Number = 1.0
    end: Number = 0.0

    def __call__(self, step: Any, clock: Clock) -> jax.Array:
        return cosine(self.start, self.end, clock.total_steps - step, clock.total_steps)


# ------------------------------------------------------------------ after a warm-up
class Warmup:
    """The warm-up that schedules of learning rates share; each declares both settings itself.

    Attributes:
      warmup_epochs, warmup_steps: length of the linear rise from 0; the steps win unless they are
        None.
    """

    warmup_epochs: float
    warmup_steps: int | None

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        raise NotImplementedError(type(self).__name__)

    def __call__(self, step: Any, clock: Clock) -> jax.Array:
        return self.rate(step, clock, 1.0)

    def warmup(self, clock: Clock) -> float:
        """Return the length of the warm-up in steps; a number of epochs may be fractional."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.warmup_epochs * clock.steps_per_epoch

    @property
    def warmup_key(self) -> str:
        """The setting that decides the length of the warm-up."""
        return "warmup_epochs" if self.warmup_steps is None else "warmup_steps"

    @property
    def warmup_words(self) -> str:
        """The length of the warm-up as the settings have it, "40 epochs"."""
        return f"{getattr(self, self.warmup_key):g} {self.warmup_key.removeprefix('warmup_')}"

    def words(self) -> str:
        return f"warm-up {self.warmup_words}, down to {getattr(self, 'min_lr', 0.0):g}"

    def check(self, clock: Clock, where: str) -> None:
        warmup, key = self.warmup(clock), self.warmup_key
        if warmup > clock.total_steps:
            raise ConfigError(
                f"{where}.{key}: {getattr(self, key):g} is a warm-up of {warmup:g} steps, but the "
                f"run has {clock.total_steps}; allowed: at most that many; "
                f"{shorter_warmup(f'{where}.{key}', clock)}"
            )

    def warnings(self, clock: Clock, peak: float, where: str) -> list[str]:
        total, low = clock.total_steps, getattr(self, "min_lr", 0.0)
        if low > peak:
            return [
                f"{where}.min_lr {low:g} is above the peak rate {peak:.3g}: "
                "the rate will rise; it is absolute and does not follow a smaller batch"
            ]
        rate = lambda step: self.rate(step, clock, peak)
        shorter = max(round(WARMUP_SHARE * total), 1)
        if total > 1 and rate(total - 1) > rate(total - 2) and self.warmup(clock) > shorter:
            # a warm-up of no steps is no reason, so that the epochs are meant
            key = "warmup_steps" if self.warmup_steps else "warmup_epochs"
            return [
                f"{where}.{key} {getattr(self, key):g} is the whole run of {total} steps: the rate "
                f"never decays; {shorter_warmup(f'{where}.{key}', clock)}"
            ]
        return []


def shorter_warmup(key: str, clock: Clock) -> str:
    """Return the override of "optimizer.schedule.warmup_epochs" that suits a run of this length."""
    steps = max(round(WARMUP_SHARE * clock.total_steps), 1)
    value = steps if key.endswith("_steps") else steps / clock.steps_per_epoch
    return f"add --config.{key}={value:.3g} ({WARMUP_SHARE:.0%} of the run)"


@dataclasses.dataclass(frozen=True)
class Constant(Warmup, Schedule):
    """One number without end: a run that is made longer is the longer run from the start.

    Attributes:
      value: the number; of a learning rate its factor of the peak.
      warmup_epochs, warmup_steps: see `Warmup`; the rise is MAE's.
    """

    value: Number = 1.0
    warmup_epochs: NonNegative = 0.0
    warmup_steps: Whole | None = None

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        top, warmup = peak * self.value, self.warmup(clock)
        return jnp.where(step < warmup, top * step / max(warmup, 1), top)

    def warnings(self, clock: Clock, peak: float, where: str) -> list[str]:
        return []  # a warm-up that is the whole run may be meant: the run is made longer later

    def words(self) -> str:
        factor = "" if self.value == 1 else f" at {self.value:g} of it"
        return f"warm-up {self.warmup_words}, then constant{factor}"


@dataclasses.dataclass(frozen=True)
class _Falling(Warmup, Schedule):
    """What the learning rates share that fall after their warm-up, MAE's as a rule.

    Attributes:
      warmup_epochs, warmup_steps: see `Warmup`.
      min_lr: absolute rate at the end.
    """

    warmup_epochs: NonNegative = 40.0
    warmup_steps: Whole | None = None
    min_lr: NonNegative = 0.0

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        warmup = self.warmup(clock)
        return jnp.where(step < warmup, peak * step / max(warmup, 1), self.fall(step, clock, peak))

    def fall(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        """Return the rate at a step after the warm-up."""
        rest = clock.total_steps - self.warmup(clock)
        return cosine(peak, self.min_lr, clock.total_steps - step, rest)


@dataclasses.dataclass(frozen=True)
class MAECosine(_Falling):
    """MAE's rate, from fractional epochs: peak * e / w, then min + (peak - min) (1 + cos) / 2.

    Attributes:
      warmup_epochs, warmup_steps, min_lr: see `_Falling`.
    """


@dataclasses.dataclass(frozen=True)
class BEiTCosine(_Falling):
    """The table of BEiT's and BootMAE's code: linspace(0, peak, w), then a cosine over the rest.

    The warm-up of w steps includes both ends, and the last entry is one step short of the minimum.

    Attributes:
      warmup_epochs, warmup_steps, min_lr: see `_Falling`.
    """

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        warmup = int(self.warmup(clock))
        rest = clock.total_steps - warmup
        falling = cosine(peak, self.min_lr, clock.total_steps - step, rest)
        return jnp.where(step < warmup, peak * step / max(warmup - 1, 1), falling)


@dataclasses.dataclass(frozen=True)
class CAPICosine(_Falling):
    """CAPI's table for probes: linspace(0, peak, w), then a cosine whose last entry is the minimum.

    Both parts include both ends, so that the peak stands twice.

    Attributes:
      warmup_epochs, warmup_steps, min_lr: see `_Falling`.
    """

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        warmup = int(self.warmup(clock))
        rest = clock.total_steps - warmup - 1
        left = clock.total_steps - 1 - step if rest else 1  # a table of one entry is the peak
        falling = cosine(peak, self.min_lr, left, rest)
        return jnp.where(step < warmup, peak * step / max(warmup - 1, 1), falling)


@dataclasses.dataclass(frozen=True)
class WSD(_Falling):
    """Warm-up, stable rate, decay (Hu et al. 2024, arXiv:2404.06395).

    The defaults are the best ones of Haegele et al. 2024 (arXiv:2405.18392): a decay over a fifth
    of the run by 1 - sqrt. Until it begins, a run is the same at any length.

    Attributes:
      warmup_epochs, warmup_steps, min_lr: see `_Falling`.
      decay_share: share of all steps over which the rate falls.
      form: of the fall from 1 to 0 where t goes from 0 to 1: "linear" = 1 - t, "cosine" =
        (1 + cos(pi t)) / 2, "sqrt" = 1 - sqrt(t).
    """

    decay_share: Some = 0.2
    form: Literal["linear", "cosine", "sqrt"] = "sqrt"

    def check(self, clock: Clock, where: str) -> None:
        super().check(clock, where)
        warmup, steps = self.warmup(clock), self.decay_share * clock.total_steps
        if warmup + steps > clock.total_steps:
            rest = clock.total_steps - warmup
            raise ConfigError(
                f"{where}.decay_share: {self.decay_share:g} is a decay of {steps:g} steps, but "
                f"after the warm-up the run has {rest:g}; allowed: at most "
                f"{rest / clock.total_steps:.3g}, or a shorter {where}.{self.warmup_key}"
            )

    def fall(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        steps = self.decay_share * clock.total_steps
        left = jnp.clip((clock.total_steps - step) / steps, 0, 1)  # 1 until the decay begins
        if self.form == "linear":
            factor = left
        elif self.form == "cosine":
            factor = cosine(1.0, 0.0, left, 1)
        else:
            factor = 1 - jnp.sqrt(1 - left)
        return self.min_lr + (peak - self.min_lr) * factor

    def words(self) -> str:
        return (
            f"warm-up {self.warmup_words}, then constant, over the last "
            f"{100 * self.decay_share:g} % of the run down to {self.min_lr:g} ({self.form})"
        )


@dataclasses.dataclass(frozen=True)
class RSqrt(_Falling):
    """Inverse square root of the steps after the warm-up, with an optional linear cooldown.

    As decay_type "rsqrt" of big_vision's `create_learning_rate_schedule` (utils.py; Zhai et al.
    2022, arXiv:2106.04560): peak / sqrt(1 + s / timescale) after s steps, times a line to 0 over
    the last `cooldown_steps`. Here the line ends at `min_lr`, which is also a floor before.

    Attributes:
      warmup_epochs, warmup_steps: see `Warmup`.
      min_lr: absolute rate below which the rate never falls after the warm-up.
      timescale: steps until the rate has fallen to peak / sqrt(2).
      cooldown_steps: length of the last line; with 0 steps nothing depends on the run's length.
    """

    timescale: Positive = 10_000.0
    cooldown_steps: Whole = 0

    def check(self, clock: Clock, where: str) -> None:
        super().check(clock, where)
        rest = clock.total_steps - self.warmup(clock)
        if self.cooldown_steps > rest:
            raise ConfigError(
                f"{where}.cooldown_steps: {self.cooldown_steps}, but after the warm-up the run has "
                f"{rest:g} steps; allowed: at most that many"
            )

    def fall(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        since = jnp.maximum(step - self.warmup(clock), 0)
        falling = jnp.maximum(peak / jnp.sqrt(1 + since / self.timescale), self.min_lr)
        if self.cooldown_steps:
            left = jnp.clip((clock.total_steps - step) / self.cooldown_steps, 0, 1)
            falling = self.min_lr + (falling - self.min_lr) * left
        return falling

    def words(self) -> str:
        falls = f"warm-up {self.warmup_words}, then 1 / sqrt(1 + steps / {self.timescale:g})"
        if self.cooldown_steps:
            return f"{falls}, over the last {self.cooldown_steps} steps down to {self.min_lr:g}"
        return f"{falls}, never below {self.min_lr:g}" if self.min_lr else falls
