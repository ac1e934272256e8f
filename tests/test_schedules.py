"""Schedules: their numbers, what they refuse, and one of a user's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import plugs, schema
from mimjax.errors import ConfigError
from mimjax.schedules import (
    WSD,
    BEiTCosine,
    CAPICosine,
    Constant,
    Cosine,
    Linear,
    MAECosine,
    RSqrt,
    Schedule,
    Warmup,
)
from mimjax.task import Clock
from mimjax.train import optimizers

CLOCK = Clock(10, 100)
STEPS = np.arange(101)
SHIPPED = plugs.shipped(Schedule)
RATES = [name for name, cls in SHIPPED.items() if issubclass(cls, Warmup)]


def rates(schedule, peak=1.0, clock=CLOCK):
    return np.asarray(schedule.rate(np.arange(clock.total_steps + 1), clock, peak))


def test_every_schedule_is_found_by_its_short_name():
    assert set(SHIPPED) == {
        *("BEiTCosine", "CAPICosine", "Constant", "Cosine", "Linear", "MAECosine", "RSqrt", "WSD")
    }
    for name, short in (("WSD", "wsd"), ("MAECosine", "mae_cosine"), ("RSqrt", "rsqrt")):
        assert plugs.find_plug(Schedule, short, "optimizer.schedule") is SHIPPED[name]
    with pytest.raises(ConfigError, match=r"optimizer\.schedule: 'poly'; allowed: Linear, Cosine"):
        plugs.find_plug(Schedule, "poly", "optimizer.schedule")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_schedule_is_the_same_traced_and_for_many_steps_at_once(name):
    """`rate` with peak 1 is the schedule itself, so that weights and decays can use each."""
    schedule = SHIPPED[name](**({"warmup_epochs": 1.0} if name in RATES else {}))
    many = np.asarray(schedule(STEPS, CLOCK))
    assert many.shape == STEPS.shape
    one = jax.jit(lambda step: schedule(step, CLOCK))
    np.testing.assert_allclose([one(jnp.int32(s)) for s in STEPS], many, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.rate(STEPS, CLOCK, 1.0), many)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_schedule_ignores_a_setting(name):
    """Another value of each setting gives other numbers."""
    others = {
        "warmup_epochs": 2.0,
        "warmup_steps": 7,
        "min_lr": 0.2,
        "value": 0.5,
        "decay_share": 0.4,
        "form": "linear",
        "timescale": 30.0,
        "cooldown_steps": 20,
        "start": 0.3,
        "end": 0.6,
        "share": 0.5,
    }
    base = {"warmup_epochs": 1.0} if name in RATES else {}
    base |= {"timescale": 1.0} if name == "RSqrt" else {}  # it falls below the minimum
    plain = SHIPPED[name](**base)
    for field in dataclasses.fields(plain):
        changed = dataclasses.replace(plain, **{field.name: others[field.name]})
        assert not np.array_equal(rates(plain), rates(changed)), field.name


@pytest.mark.parametrize("cls", [MAECosine, BEiTCosine])
def test_the_first_step_has_rate_zero_and_the_last_ends_at_the_minimum(cls):
    found = rates(cls(warmup_epochs=2.0, min_lr=0.1))
    assert found[0] == 0.0
    assert found.max() == pytest.approx(1.0)
    assert found[100] == pytest.approx(0.1)
    assert np.all(np.diff(found[21:]) <= 0)


def test_the_two_cosines_differ_by_the_end_of_the_warm_up():
    """linspace(0, peak, w) reaches the peak at its last step, e / w only after it."""
    mae, beit = rates(MAECosine(2.0)), rates(BEiTCosine(2.0))
    assert (mae[19], beit[19]) == (pytest.approx(0.95), pytest.approx(1.0))
    np.testing.assert_array_equal(mae[20:], beit[20:])


def test_capi_s_cosine_has_both_ends_in_both_parts():
    found = rates(CAPICosine(2.0, min_lr=0.1))[:100]
    whole = np.concatenate([np.linspace(0, 1, 20), (1 + np.cos(np.linspace(0, np.pi, 80))) / 2])
    whole[20:] = 0.1 + 0.9 * whole[20:]
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert rates(CAPICosine(warmup_steps=99))[99] == 1.0  # a cosine of one entry is its first


def test_constant_keeps_a_share_of_the_peak():
    found = rates(Constant(0.5, warmup_steps=10), 0.2)
    np.testing.assert_allclose(found[:11], 0.01 * np.arange(11), rtol=1e-6)
    np.testing.assert_allclose(found[10:], 0.1, rtol=1e-6)
    assert float(Constant(0.99)(jnp.int32(0), CLOCK)) == pytest.approx(0.99)  # no warm-up


@pytest.mark.parametrize(
    ("form", "half", "tenth"),
    [
        ("linear", 0.5, 0.1),
        ("cosine", 0.5, (1 + np.cos(0.9 * np.pi)) / 2),
        ("sqrt", 1 - np.sqrt(0.5), 1 - np.sqrt(0.9)),
    ],
)
def test_wsd_is_stable_until_its_decay(form, half, tenth):
    found = rates(WSD(1.0, min_lr=0.0, decay_share=0.2, form=form))
    np.testing.assert_allclose(found[:11], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(found[10:81], 1.0)
    assert found[90] == pytest.approx(half, rel=1e-5)
    assert found[98] == pytest.approx(tenth, rel=1e-4)
    assert found[100] == 0.0
    low = rates(WSD(1.0, min_lr=0.1, decay_share=0.2, form=form))
    np.testing.assert_allclose(low[10:], 0.1 + 0.9 * found[10:], rtol=1e-5)


def test_wsd_is_the_same_at_any_length_until_its_decay():
    short, long = rates(WSD(1.0)), rates(WSD(1.0), clock=Clock(10, 1000))
    np.testing.assert_array_equal(short[:81], long[:81])


def test_rsqrt_is_that_of_big_vision():
    """Big_vision's is lr / sqrt(1 + (step - warmup) / timescale), times the lines at both ends."""
    found = rates(RSqrt(1.0, timescale=50.0, cooldown_steps=20), 0.3)
    expected = 0.3 / np.sqrt(1 + np.maximum(STEPS - 10, 0) / 50)
    expected *= np.minimum(1.0, STEPS / 10) * np.minimum(1.0, (100 - STEPS) / 20)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    floor = rates(RSqrt(1.0, timescale=50.0, min_lr=0.2), 0.3)
    assert floor[-1] == pytest.approx(0.2)
    assert floor[0] == 0.0  # of the warm-up nothing is cut off


def test_rsqrt_without_a_cooldown_knows_no_length():
    schedule = RSqrt(1.0, timescale=50.0)
    text = lambda clock: jax.jit(lambda s: schedule.rate(s, clock, 0.3)).lower(0).as_text()
    assert text(Clock(10, 100)) == text(Clock(10, 900))
    assert text(Clock(10, 100)) != text(Clock(20, 100))


def test_lines_and_cosines_go_from_one_number_to_another():
    line = np.asarray(Linear(0.1, 1.0, 0.25)(STEPS, CLOCK))
    np.testing.assert_allclose(line[[0, 10, 25, 100]], [0.1, 0.46, 1.0, 1.0], rtol=1e-6)
    curve = np.asarray(Cosine(0.04, 0.4)(STEPS, CLOCK))
    np.testing.assert_allclose(curve[[0, 50, 100]], [0.04, 0.22, 0.4], rtol=1e-6)


@pytest.mark.parametrize("name", RATES)
def test_a_run_shorter_than_the_warm_up_is_refused(name):
    schedule = SHIPPED[name](warmup_epochs=11.0)
    cfg = optimizers.OptimizerConfig(schedule=schedule)
    with pytest.raises(ConfigError) as error:
        optimizers.learning_rate(cfg, CLOCK, 256)
    assert str(error.value) == (
        "optimizer.schedule.warmup_epochs: 11 is a warm-up of 110 steps, but the run has 100; "
        "allowed: at most that many; add --config.optimizer.schedule.warmup_epochs=0.5 "
        "(5% of the run)"
    )
    steps = optimizers.OptimizerConfig(schedule=SHIPPED[name](warmup_steps=101))
    with pytest.raises(ConfigError, match=r"^optimizer\.schedule\.warmup_steps: 101 .*steps=5 \("):
        optimizers.learning_rate(steps, CLOCK, 256)


def test_parts_that_do_not_fit_into_the_run_are_refused():
    where = "optimizer.schedule"
    with pytest.raises(ConfigError, match=r"\.decay_share: 0\.9 .* 90 steps, .* 80; .* most 0\.8,"):
        WSD(2.0, decay_share=0.9).check(CLOCK, where)
    WSD(2.0, decay_share=0.8).check(CLOCK, where)
    with pytest.raises(ConfigError, match=r"\.cooldown_steps: 90, .* the run has 80 steps;"):
        RSqrt(2.0, cooldown_steps=90).check(CLOCK, where)
    RSqrt(2.0, cooldown_steps=80).check(CLOCK, where)


def test_a_run_that_is_too_short_for_a_shorter_warmup_has_no_advice():
    assert MAECosine(warmup_steps=1).warnings(Clock(1, 2), 1.0, "s") == []
    assert MAECosine(warmup_steps=2).warnings(Clock(1, 2), 1.0, "s")


def test_what_is_hardly_meant_is_a_warning():
    for schedule in (MAECosine(10.0), BEiTCosine(10.0), RSqrt(10.0)):
        (line,) = schedule.warnings(CLOCK, 1.0, "s")
        assert (
            "s.warmup_epochs 10 is the whole run of 100 steps: the rate never decays; add" in line
        )
        assert type(schedule)(9.0).warnings(CLOCK, 1.0, "s") == []
    assert Constant(warmup_epochs=10.0).warnings(CLOCK, 1.0, "s") == []
    for cls in (MAECosine, BEiTCosine, WSD, RSqrt):
        (line,) = cls(1.0, min_lr=2.0).warnings(CLOCK, 1.0, "s")
        assert line.startswith("s.min_lr 2 is above the peak rate 1: the rate will rise")


USERS = """
import dataclasses

import jax.numpy as jnp

from mimjax.schedules import Schedule
from mimjax.values import Number


@dataclasses.dataclass(frozen=True)
class Stair(Schedule):
    factor: Number = 0.5

    def __call__(self, step, clock):
        return self.factor ** jnp.asarray(clock.epoch(step), jnp.float32)
"""


def test_a_schedule_of_a_user_s_own_file_is_a_factor_of_the_peak(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    cls = plugs.find_plug(Schedule, f"{tmp_path}/mine.py:Stair", "optimizer.schedule")
    made = schema.section(optimizers.OptimizerConfig, lr=0.2)
    made.schedule = schema.section(cls, factor=0.25)
    cfg = schema.build(optimizers.OptimizerConfig, made, "optimizer")
    found = np.asarray(optimizers.learning_rate(cfg, CLOCK, 256)(STEPS))
    np.testing.assert_allclose(found[[0, 9, 10, 25]], [0.2, 0.2, 0.05, 0.0125], rtol=1e-6)
    assert cfg.schedule.words() == "Stair factor 0.25"
    assert cfg.schedule.warnings(CLOCK, 0.2, "s") == []
