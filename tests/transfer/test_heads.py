"""Heads: what they read and refuse, whose statistics normalize, grids in one program."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import plugs, values
from mimjax.errors import ConfigError
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT
from mimjax.task import Clock, TrainState
from mimjax.train import optimizers
from mimjax.train.step import train_step
from mimjax.transfer.attentive_probe import AttentiveProbe, EfficientProbe, QueryProbe
from mimjax.transfer.fine_tune import LinearClassifier
from mimjax.transfer.head import POOLS, Head, Reading
from mimjax.transfer.linear_probe import LinearProbe
from mimjax.transfer.probing import Heads, Member, feature_name

KEY = jax.random.key(0)
VIT = ViT(width=12, depth=3, heads=2, patch=4, image_size=(8, 8))
CONV = ConvViT(
    stage_widths=(4, 4), stage_depths=(1, 1), width=12, depth=2, heads=2, image_size=(32, 32)
)
SMALL = {
    LinearProbe: {},
    AttentiveProbe: {},
    EfficientProbe: {"queries": 3},
    QueryProbe: {"head_width": 4},
    LinearClassifier: {},
}
IMAGES = jax.random.normal(KEY, (6, 8, 8, 3))


@functools.cache
def features():
    return jax.jit(VIT.init_with_output)(KEY, IMAGES)[0]


def test_every_shipped_head_reads_its_pools():
    assert set(plugs.shipped(Head).values()) == SMALL.keys()
    read = set()
    for cls, settings in SMALL.items():
        for pool in typing.get_args(values.fields(cls)["pool"]):
            for layer in (None, 1):
                head = cls(pool=pool, layer=layer, **settings).sized(VIT, 5)
                head.check("head", VIT)
                assert head.reading == Reading(pool, layer)
                x = features().read(*head.reading)
                assert x.shape == (*x.shape[:-1], head.width(VIT))
                assert x.ndim == (3 if pool in ("patches", "all") else 2)
                shape = jax.eval_shape(head.init_with_output, KEY, x)[0].shape
                assert shape == (6, 5)
            read.add(pool)
    assert read == POOLS.keys()
    both = np.concatenate([features().read("cls", 1), features().read("mean", 1)], axis=1)
    np.testing.assert_array_equal(features().read("cls_mean", 1), both)
    np.testing.assert_array_equal(features().read("first", 1), features().blocks[1][:, 0])


@pytest.mark.parametrize(
    ("head", "encoder", "line"),
    [
        (
            LinearProbe(layer=3),
            VIT,
            "m.head.layer: 3, and the encoder has 3 blocks; allowed: -3 to 2, or None for the",
        ),
        (LinearProbe(layer=-4), VIT, "m.head.layer: -4, and the encoder has 3 blocks; allowed: -3"),
        (
            LinearProbe(),
            CONV,
            "m.head.pool: 'cls', and this encoder has no class token; allowed: mean, or first (the",
        ),
        (LinearProbe(pool="cls_mean"), CONV, "m.head.pool: 'cls_mean', and this encoder has no"),
        (EfficientProbe(d_out=5), VIT, "m.head.d_out: 5; allowed: divisors of the width 12"),
        (
            EfficientProbe(queries=4, d_out=2),
            VIT,
            "m.head.queries: 4; allowed: divisors of 6, the width of the values",
        ),
        (AttentiveProbe(heads=5), VIT, "m.head.heads: 5; allowed: divisors of the width 12"),
        (QueryProbe(), VIT, "m.head.head_width: 64; allowed: divisors of the width 12"),
    ],
)
def test_what_an_encoder_does_not_give_is_one_line(head, encoder, line):
    with pytest.raises(ConfigError) as error:
        head.check("m.head", encoder)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_the_first_token_of_an_encoder_without_class_token_is_read_by_its_name():
    LinearProbe(pool="first").check("head", CONV)
    EfficientProbe(queries=3).check("head", CONV)  # patches


def test_official_bn_evaluates_by_the_batch_and_the_default_by_what_was_counted():
    x = features().read("all")
    plain = AttentiveProbe().sized(VIT, 5)
    official = AttentiveProbe(official_bn=True).sized(VIT, 5)
    variables = plain.init(KEY, x, True)
    query = jax.random.normal(KEY, variables["params"]["query"].shape)
    variables["params"]["query"] = query  # at zero every image is pooled alike
    trained, changed = plain.apply(variables, x, True, mutable=["stats"])
    same, kept = official.apply(variables, x, False, mutable=["stats"])
    np.testing.assert_array_equal(same, trained)
    # an evaluation counts nothing
    np.testing.assert_array_equal(
        kept["stats"]["batch_norm"]["var"], variables["stats"]["batch_norm"]["var"]
    )
    assert np.abs(changed["stats"]["batch_norm"]["var"] - 1).max() > 1e-3
    assert np.abs(plain.apply(variables, x) - trained).max() > 1e-3
    alone = plain.apply(variables, x[:1])
    np.testing.assert_allclose(alone, plain.apply(variables, x)[:1], atol=1e-6)
    assert np.abs(official.apply(variables, x[:3]) - same[:3]).max() > 1e-3


def test_a_head_s_own_norms_need_no_weights():
    """A norm of the vector, and none at all, beside what PyTorch computes."""
    import torch

    x = np.random.default_rng(0).normal(3, 2, (6, 12)).astype(np.float32)
    for layer_norm in (False, True):
        for batch_norm in (False, True):
            head = LinearProbe(5, layer_norm=layer_norm, batch_norm=batch_norm)
            variables = head.init(KEY, jnp.asarray(x), True)
            assert ("stats" in variables) == batch_norm
            ours, _ = head.apply(variables, jnp.asarray(x), True, mutable=["stats"])
            y = torch.tensor(x)
            y = torch.nn.functional.layer_norm(y, (12,), eps=1e-6) if layer_norm else y
            y = torch.nn.BatchNorm1d(12, eps=1e-6, affine=False)(y) if batch_norm else y
            kernel = np.array(variables["params"]["linear"]["kernel"])
            np.testing.assert_allclose(ours, y.numpy() @ kernel, atol=1e-5)


def members():
    linear, queries = LinearProbe(3, layer=1), QueryProbe(3, head_width=4)
    return {
        "a": Member(linear, 1.0, 0.0),
        "b": Member(linear, 0.1, 2.0),
        "c": Member(queries, 1.0, 1.0),
    }


def step_of(task, rule):
    params, stats = task.init(KEY)
    cfg = optimizers.OptimizerConfig(rule=rule, weight_decay=0.1)
    decay = optimizers.weight_decay(cfg, Clock(1, 1))
    tx = optimizers.make_optimizer(cfg, params, lambda s: 0.1, decay, task)
    step = jax.jit(functools.partial(train_step, task=task, tx=tx))
    state = TrainState(jnp.int32(0), params, stats, {}, jax.jit(tx.init)(params))
    for _ in range(2):
        state, metrics = step(state, {}, batch())
    return state, metrics


def batch():
    readings = {m.head.reading for m in members().values()}
    found = {feature_name(r): features().read(*r) for r in readings}
    return found | {"label": jnp.asarray([0, 1, 2, 0, -1, 1])}


@pytest.mark.parametrize("rule", [optimizers.LARS(), optimizers.AdamW()], ids=["LARS", "AdamW"])
def test_heads_of_a_grid_learn_as_if_each_were_alone(rule):
    shapes = {
        m.head.reading: features().read(*m.head.reading).shape[1:] for m in members().values()
    }
    together, metrics = step_of(Heads(Clock(1, 1), members(), shapes), rule)
    assert len(Heads(Clock(1, 1), members(), shapes).groups()) == 2
    for name, member in members().items():
        task = Heads(Clock(1, 1), {name: member}, shapes)
        alone, theirs = step_of(task, rule)
        for ours, other in (
            (together.params, alone.params),
            (together.model_state, alone.model_state),
        ):
            if name in other:
                jax.tree.map(
                    functools.partial(np.testing.assert_allclose, atol=2e-6),
                    ours[name],
                    other[name],
                )
        for key in (f"loss/{name}", f"accuracy/{name}"):
            np.testing.assert_allclose(metrics[key], theirs[key], rtol=1e-5)
    # what differs in a rate or a decay alone ends elsewhere
    kernels = [np.asarray(together.params[k]["linear"]["kernel"]) for k in "ab"]
    assert np.abs(kernels[0] - kernels[1]).max() > 2e-5
