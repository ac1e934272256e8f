import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimjax import plugs, sharding
from mimjax.errors import ConfigError
from mimjax.schedules import MAECosine
from mimjax.schema import build, section
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


RULES = {
    "AdamW": (optimizers.AdamW(), optimizers.AdamW(0.0, 0.99, 1e-3)),
    "Lion": (optimizers.Lion(), optimizers.Lion(0.0, 0.5)),
    "LARS": (optimizers.LARS(), optimizers.LARS(0.0, 0.1)),
    "SGD": (optimizers.SGD(), optimizers.SGD(0.0, nesterov=True)),
}


def opt_state(rule, **settings):
    cfg = optimizers.OptimizerConfig(rule=rule, **settings)
    return optimizers.make_optimizer(cfg, PARAMS, lambda s: 0.1, lambda s: 0.0).init(PARAMS)


def test_every_shipped_rule_is_tested():
    assert plugs.shipped(optimizers.Rule).keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_the_state_s_structure_depends_on_the_rule_s_class_alone(name):
    plain, other = RULES[name]
    changed = opt_state(other, clip_norm=1.0, weight_decay=0.3, lr=2.0)
    assert jax.tree.structure(opt_state(plain)) == jax.tree.structure(changed)


def test_the_state_of_adamw_is_that_of_older_checkpoints():
    """Keys of orbax's files; the numbers are checked by the golden files."""
    names = [
        jax.tree_util.keystr(k)
        for k, _ in jax.tree_util.tree_leaves_with_path(opt_state(optimizers.AdamW()))
    ]
    moments = [f"[1].{m}['a']['{k}']" for m in ("mu", "nu") for k in ("bias", "kernel")]
    assert names == ["[1].count", *moments, "[2].count", "[4].count"]


def directions(rule, steps=3):
    """What a rule makes of GRADS, step after step, in one piece [s ...] per parameter."""
    tx = rule.transformation()
    state, out = tx.init(PARAMS), []
    for i in range(steps):
        grads = jax.tree.map(lambda g, i=i: g * (1 - 0.7 * i), GRADS)
        direction, state = tx.update(grads, state, PARAMS)
        out.append(direction["a"])
    return {k: np.stack([d[k] for d in out]) for k in ("kernel", "bias")}


def given(name):
    return [np.asarray(GRADS["a"][name]) * (1 - 0.7 * i) for i in range(3)]


def test_lion_is_the_sign_of_its_momentum():
    """Algorithm 2 of the paper, written out."""
    found = directions(optimizers.Lion(0.3, 0.9))
    for name in found:
        momentum = np.zeros_like(PARAMS["a"][name])
        for gradient, ours in zip(given(name), found[name], strict=True):
            np.testing.assert_array_equal(ours, np.sign(0.3 * momentum + 0.7 * gradient))
            momentum = 0.9 * momentum + 0.1 * gradient
    assert len(np.unique(found["kernel"])) > 1  # the direction changes on the way


def test_lars_scales_matrices_alone():
    """MAE's linear probe: |p| / |g| times the coefficient, then momentum; vectors as SGD."""
    found, plain = directions(optimizers.LARS(0.9, 0.02)), directions(optimizers.SGD(0.9))
    np.testing.assert_allclose(found["bias"], plain["bias"], rtol=1e-6)
    momentum = np.zeros((3, 2))
    for gradient, ours in zip(given("kernel"), found["kernel"], strict=True):
        ratio = 0.02 * np.linalg.norm(PARAMS["a"]["kernel"]) / np.linalg.norm(gradient)
        momentum = 0.9 * momentum + ratio * gradient
        np.testing.assert_allclose(ours, momentum, rtol=1e-5)


def test_lars_leaves_a_matrix_of_zeros_a_way_out():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = optimizers.LARS().transformation()
    direction, _ = tx.update(GRADS, tx.init(zeros), zeros)
    np.testing.assert_array_equal(direction["a"]["kernel"], GRADS["a"]["kernel"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_sgd_of_torch(nesterov):
    import torch

    p = [torch.nn.Parameter(torch.tensor(np.asarray(PARAMS["a"][k]))) for k in ("kernel", "bias")]
    groups = [{"params": [p[0]]}, {"params": [p[1]]}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(4):
        for q, k in zip(p, ("kernel", "bias"), strict=True):
            q.grad = torch.tensor(np.asarray(GRADS["a"][k]))
        sgd.step()
    rule = optimizers.SGD(0.9, nesterov=nesterov)
    ours = run(optimizers.OptimizerConfig(rule=rule, weight_decay=0.0))
    np.testing.assert_allclose(ours["a"]["kernel"], p[0].detach(), atol=1e-6)
    np.testing.assert_allclose(ours["a"]["bias"], p[1].detach(), atol=1e-6)


def test_decay_and_scale_follow_the_rule_whatever_it_is():
    """Decoupled: the direction of Lion is as long with decay as without."""
    rule = optimizers.Lion()
    plain = run(optimizers.OptimizerConfig(rule=rule, weight_decay=0.0), 1)["a"]["kernel"]
    decayed = run(optimizers.OptimizerConfig(rule=rule, weight_decay=0.5), 1)["a"]["kernel"]
    np.testing.assert_allclose(plain - decayed, 0.1 * 0.5, rtol=1e-5)


def test_slots_are_sharded_as_their_parameters():
    """A chain in the chain, with a mask in it, is no exception."""
    c = helpers.small("mae", **{"optimizer.rule": optimizers.LARS()})
    mesh = sharding.make_mesh(1, 2, devices=jax.devices()[:2])
    _, program = helpers.make(c, mesh, small_tensors=0)
    leaves = lambda tree: jax.tree_util.tree_leaves_with_path(tree)
    state = program.abstract_state
    params = {jax.tree_util.keystr(k): x.sharding.spec for k, x in leaves(state.params)}
    slots = {jax.tree_util.keystr(k): x.sharding.spec for k, x in leaves(state.opt_state)}
    assert any("fsdp" in spec for spec in params.values())
    for name, spec in params.items():
        (slot,) = [k for k in slots if k.endswith(f".trace{name}")]
        assert slots[slot] == spec, name


USERS = """
import dataclasses

import optax

from mimjax.train.optimizers import Rule
from mimjax.values import Positive


@dataclasses.dataclass(frozen=True)
class Signed(Rule):
    size: Positive = 1.0

    def transformation(self):
        return optax.chain(optax.scale_by_sign(), optax.scale(self.size))
"""


def test_a_rule_of_a_user_s_own_file(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    c = helpers.CONFIGS["mae"].get_config("demo").unlock()
    own = plugs.find_plug(optimizers.Rule, f"{tmp_path}/mine.py:Signed", "optimizer.rule")
    c.optimizer.rule = section(own, size=2.0)
    cfg = build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    np.testing.assert_array_equal(directions(cfg.rule, 1)["bias"], [[-2.0, -2.0]])
    assert c.optimizer.rule.digest == plugs.digest_of(own)


def test_scaling_rule():
    assert optimizers.OptimizerConfig(base_lr=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)
    assert optimizers.OptimizerConfig(base_lr=1.5e-4, lr=0.01).peak_lr(4096) == 0.01


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"optimizer\.schedule: 'poly'; allowed: Schedule"):
        optimizers.OptimizerConfig(schedule="poly")
    with pytest.raises(ConfigError, match=r"optimizer\.schedule\.min_lr: nan"):
        optimizers.OptimizerConfig(schedule=MAECosine(min_lr=float("nan")))
    with pytest.raises(ConfigError, match=r"optimizer\.rule\.momentum: 1\.0; allowed: 0 up to"):
        optimizers.OptimizerConfig(rule=optimizers.SGD(momentum=1.0))


def learning_rate(c, clock):
    cfg = build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    return optimizers.learning_rate(cfg, clock, c.batch_size)


@pytest.mark.parametrize("name", helpers.CONFIGS)
def test_a_run_shorter_than_its_warm_up_names_the_override_to_add(name):
    """What the error prints is taken as it stands, for the published configs."""
    c = helpers.CONFIGS[name].get_config().unlock()
    clock = Clock(312, 312 * 2)  # two epochs of ImageNet at batch 4096
    if c.optimizer.schedule.warmup_epochs <= 2:
        c.optimizer.schedule.warmup_steps = 1000
    with pytest.raises(ConfigError, match="but the run has 624; allowed: at most") as error:
        learning_rate(c, clock)
    words = re.search(
        r"add --config\.(optimizer\.schedule\.\w+)=(\S+) \(5% of the run\)", str(error.value)
    )
    _, _, key = words[1].rpartition(".")
    c.optimizer.schedule[key] = type(c.optimizer.schedule[key])(words[2])
    lr = learning_rate(c, clock)
    rates = [float(lr(step)) for step in (0, 31, 300, 623)]
    assert rates[0] < rates[1] > rates[2] > rates[3]
