import re

import helpers
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimjax.errors import ConfigError
from mimjax.schema import build
from mimjax.task import Clock
from mimjax.train import optimizers

PARAMS = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
GRADS = {"a": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.full(2, -0.1)}}


def run(cfg, steps=4, lr=0.1):
    tx = optimizers.make_optimizer(
        cfg, PARAMS, lambda s: lr, optimizers.weight_decay(cfg, Clock(1, 9))
    )
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_equals_adamw_of_torch():
    """Decoupled decay on the kernel alone; eps outside the root."""
    import torch

    p = [torch.nn.Parameter(torch.tensor(np.asarray(PARAMS["a"][k]))) for k in ("kernel", "bias")]
    groups = [{"params": [p[0]], "weight_decay": 0.05}, {"params": [p[1]], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    for _ in range(4):
        for q, k in zip(p, ("kernel", "bias"), strict=True):
            q.grad = torch.tensor(np.asarray(GRADS["a"][k]))
        adam.step()
    ours = run(optimizers.OptimizerConfig())
    np.testing.assert_allclose(ours["a"]["kernel"], p[0].detach(), atol=1e-6)
    np.testing.assert_allclose(ours["a"]["bias"], p[1].detach(), atol=1e-6)


def test_learning_rate_scale_by_rule():
    scaled = run(optimizers.OptimizerConfig(lr_scale=((".*/kernel", 0.5), (".*", 0.0))), 1)
    plain = run(optimizers.OptimizerConfig(), 1)
    np.testing.assert_array_equal(scaled["a"]["bias"], 1.0)
    step = lambda p: np.asarray(p["a"]["kernel"]) - 1
    np.testing.assert_allclose(step(scaled), 0.5 * step(plain), rtol=1e-5)


def test_clipping_is_over_all_parameters():
    """One step of plain Adam hides a norm; the first moment does not."""
    cfg = optimizers.OptimizerConfig(clip_norm=0.3)
    tx = optimizers.make_optimizer(cfg, PARAMS, lambda s: 0.1, lambda s: 0.0)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    mu = next(s.mu for s in state if hasattr(s, "mu"))
    np.testing.assert_allclose(optax.global_norm(mu), 0.1 * 0.3, rtol=1e-5)


def test_the_state_s_structure_ignores_rates_and_lengths():
    import jax

    make = lambda **kw: optimizers.make_optimizer(
        optimizers.OptimizerConfig(**kw), PARAMS, lambda s: 0.1, lambda s: 0.0
    ).init(PARAMS)
    assert jax.tree.structure(make()) == jax.tree.structure(
        make(clip_norm=1.0, weight_decay=0.3, b2=0.99)
    )


def test_the_first_step_has_rate_zero_and_the_last_ends_at_the_minimum():
    clock = Clock(10, 100)
    for schedule in ("mae", "beit"):
        cfg = optimizers.OptimizerConfig(lr=1.0, min_lr=0.1, warmup_epochs=2, schedule=schedule)
        lr = optimizers.learning_rate(cfg, clock, 256)
        values = np.asarray([lr(s) for s in range(101)])
        assert values[0] == 0.0
        assert values.max() == pytest.approx(1.0)
        assert values[100] == pytest.approx(0.1)
        assert np.all(np.diff(values[21:]) <= 0)


def test_scaling_rule():
    assert optimizers.OptimizerConfig(base_lr=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)
    assert optimizers.OptimizerConfig(base_lr=1.5e-4, lr=0.01).peak_lr(4096) == 0.01


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"optimizer\.schedule"):
        optimizers.OptimizerConfig(schedule="poly")
    with pytest.raises(ConfigError, match=r"optimizer\.schedule\.min_lr"):
        optimizers.OptimizerConfig(min_lr=float("nan"))


def learning_rate(c, clock):
    cfg = build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    return optimizers.learning_rate(cfg, clock, c.batch_size)


@pytest.mark.parametrize("name", helpers.CONFIGS)
def test_a_run_shorter_than_its_warm_up_names_the_override_to_add(name):
    """Of the published configs; what the error prints is taken as it stands."""
    c = helpers.CONFIGS[name].get_config().unlock()
    clock = Clock(312, 312 * 2)  # two epochs of ImageNet at batch 4096
    if c.optimizer.schedule.warmup_epochs <= 2:
        c.optimizer.schedule.warmup_steps = 1000
    with pytest.raises(ConfigError, match="but the run has 624; allowed: at most") as error:
        learning_rate(c, clock)
    words = re.search(r"add --config\.(optimizer\.\w+)=(\S+) \(5% of the run\)", str(error.value))
    _, _, key = words[1].rpartition(".")
    c.optimizer[key] = type(c.optimizer[key])(words[2])
    lr = learning_rate(c, clock)
    rates = [float(lr(step)) for step in (0, 31, 300, 623)]
    assert rates[0] < rates[1] > rates[2] > rates[3]
