"""The contract of a method, checked for every `configs/*.py`: a new method needs no new test."""

import functools
import inspect
import os
import pathlib

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.masking.block import BlockAtMost
from mimjax.patches import normalize, split
from mimjax.rules import paths
from mimjax.run import messages, setup
from mimjax.storage import settings
from mimjax.task import Clock, init_state
from mimjax.train.step import train_step

GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
METHODS = sorted(helpers.CONFIGS)
# those that hide patches from their encoder
MASKED = [m for m in METHODS if "masking" in helpers.small(m).method]
slow = lambda name: pytest.param(name, marks=pytest.mark.slow)
# what is the same for all methods: one shows it in `make test`, three in the gate, all in test-all
QUICK = {"bootmae": "bootmae"} | {name: helpers.gate(name) for name in ("beit", "cae")}
# those whose training `make test` shows: with an average, and with a regressor and a tokenizer
TRAINED = ("bootmae", "cae")
# parameters whose gradient is zero, with the reason
NO_GRADIENT: dict[str, set[str]] = {}


def test_every_config_is_covered():
    found = {p.stem for p in (helpers.ROOT / "configs").glob("*.py")}
    assert found == {*METHODS, *helpers.LABELED}


@functools.cache
def trained(name):
    """What 80 steps on eight digits make: task, batch, first and second state, metrics of each."""
    c = helpers.small(name, **{"batch_size": 8, "optimizer.lr": 2e-3, "steps": 80})
    task, program = helpers.make(c)
    batch = helpers.batches(c, task, 1)[0]
    with jax.set_mesh(program.mesh):
        state, step, frozen = program.init(), program.compile(), helpers.frozen(task)
        first = jax.tree.map(np.array, state)  # a copy: the step donates its state
        state, metrics = step(state, frozen, batch)
        second = jax.tree.map(np.array, state)
        totals = [metrics]
        for _ in range(79):
            state, metrics = step(state, frozen, batch)
            totals.append(metrics)
    totals = [{k: float(v) for k, v in m.items() if k.startswith("loss/")} for m in totals]
    return task, batch, first, second, totals


@pytest.mark.parametrize("name", helpers.gated(METHODS, TRAINED))
def test_the_loss_is_finite_and_every_parameter_learns(name):
    _, _, first, second, totals = trained(name)
    assert np.isfinite(totals[0]["loss/total"])
    # the optimizer's mean of gradients, from zero, is not zero where the first gradient is not
    mean = lambda state: optax.tree_utils.tree_get(state.opt_state, "mu")
    assert not any(np.any(m) for m in jax.tree.leaves(mean(first)))
    grads = mean(second)
    assert paths(grads) == paths(first.params)
    still = {p for p, g in zip(paths(grads), jax.tree.leaves(grads)) if not np.any(g)}
    assert still == NO_GRADIENT.get(name, set())


@pytest.mark.parametrize("name", helpers.gated(METHODS, TRAINED))
def test_the_loss_falls_on_eight_images_and_nothing_but_update_ema_writes_the_average(name):
    task, _, first, second, totals = trained(name)
    # neither averages nor frozen networks: no gradient can reach them
    arguments = ["params", "model_state", "prepared", "key", "step", "train"]
    assert list(inspect.signature(task.loss).parameters) == arguments
    expected = jax.jit(task.update_ema)(first.ema, first.params, second.params, 0)
    near = functools.partial(np.testing.assert_allclose, atol=1e-7)
    jax.tree.map(near, second.ema, expected)
    for leaf in jax.tree.leaves(second.ema):
        assert leaf.dtype == jnp.float32
    terms = [k for k in totals[0] if k != "loss/total"]
    # A moving target may make its own term rise; what is predicted from pixels must fall.
    assert any(totals[-1][k] < 0.7 * totals[0][k] for k in terms), (totals[0], totals[-1])
    assert totals[-1]["loss/total"] < totals[1]["loss/total"]


@pytest.mark.parametrize("name", [QUICK.get(m) or slow(m) for m in MASKED])
def test_micro_batches_change_nothing(name):
    """Noise is left out: drop path (and the discrete VAE's) is drawn anew for each micro-batch."""
    c = helpers.small(name, batch_size=8)
    for section in helpers.sections(c.method):
        if "drop_path" in section:
            section.drop_path = 0.0
    task = schema.make_task(c, Clock(4, 8))
    tx = optax.sgd(1.0)
    batch = helpers.batches(c, task, 1)[0]
    state = jax.jit(functools.partial(init_state, task=task, tx=tx))(jax.random.key(0))
    frozen = helpers.frozen(task)
    step = lambda accum: jax.jit(functools.partial(train_step, task=task, tx=tx, accum=accum))
    (one, metrics), (four, split) = (step(a)(state, frozen, batch) for a in (1, 4))
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(near, (four.params, four.ema), (one.params, one.ema))
    assert metrics.keys() == split.keys()


@pytest.mark.parametrize("name", helpers.gated(MASKED, TRAINED))
def test_masked_pixels_cannot_influence_visible_latents(name):
    task, batch, first, _, _ = trained(name)
    image = jax.jit(lambda x: normalize(x, task.mean, task.std))(batch["image"])
    mask = np.zeros((8, task.encoder.num_patches), bool)
    mask[:, : task.num_masked] = True
    mask = jnp.asarray(mask)
    ids_v, _ = split(mask, task.num_masked)
    grid, p = task.encoder.grid, task.encoder.patch
    hidden = np.kron(np.reshape(mask, (8, *grid)), np.ones((1, p, p))).astype(bool)[..., None]
    image = np.asarray(image)
    other = np.where(hidden, np.float32(7), image)
    # an encoder with mask tokens sees them in place of the patches
    args = (None, mask) if task.encoder.use_mask_token else (ids_v,)
    apply = jax.jit(lambda p, x: task.encoder.apply({"params": p}, x, *args).tokens)
    encode = functools.partial(apply, first.params["encoder"])
    seen = np.asarray(encode(image))
    np.testing.assert_array_equal(seen, encode(other))
    assert np.any(seen != encode(image + 1.0))


@pytest.mark.parametrize("name", MASKED)
def test_masks_that_fall_short_are_weighed_or_refused(name):
    """BEiT's own sampler masks fewer patches than asked in a third of the images."""
    c = helpers.small(name, **{"method.masking": BlockAtMost(0.5)})
    sections = [s for s in c.method.values() if isinstance(s, ConfigDict)]
    terms = [t for t in sections if "normalize" in t and t.weight]
    if any(t.at != "masked" for t in terms):
        with pytest.raises(ConfigError, match=r"method\.\w+\.at: .* under BlockAtMost.*: masked"):
            schema.make_task(c, Clock(4, 8))
        return
    task = schema.make_task(c, Clock(4, 8))
    n, masked = task.encoder.num_patches, task.num_masked
    batch = {"image": jnp.zeros((1, 8, 8, 3)), "mask": jnp.arange(n)[None] < 1}
    weight = task.masking.choose(batch, task.encoder, None, jax.random.key(0)).weight
    np.testing.assert_array_equal(np.asarray(weight)[0], [0] * (masked - 1) + [masked])


@pytest.mark.parametrize("name", helpers.ALL)
def test_the_published_configuration_is_as_committed(name):
    """Config, shapes, decay, learning-rate scale and sharding of every parameter, as text."""
    c = helpers.ALL[name].get_config()
    program = helpers.make(c)[1]
    sizes = f"parameters: {sum(x.size for x in jax.tree.leaves(program.abstract_state.params))}\n"
    text = settings.to_json(c) + "\n" + sizes + messages.parameter_table(c, program)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("MIMJAX_UPDATE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


# the trainer is the same for all: a few show it, the rest in test-all
TRACED = [QUICK.get(m) or slow(m) for m in METHODS]


@pytest.mark.parametrize("name", TRACED)
def test_one_step_traces_the_loss_once(name):
    """`train_step` is pure and traced once, with and without accumulation."""
    c = helpers.small(name)
    for accum in (1, 2) if name == "bootmae" else (2,):
        c.accum = accum
        task = schema.make_task(c, Clock(4, 8))
        calls = []

        class Counting(type(task)):
            def loss(self, *args, calls=calls):
                calls.append(1)
                return super().loss(*args)

        counting = Counting(**vars(task))
        tx, _ = setup.make_tx(c, counting, Clock(4, 8))
        init = functools.partial(init_state, task=counting, tx=tx)
        state = jax.eval_shape(init, jax.random.key(0))
        step = jax.jit(functools.partial(train_step, task=counting, tx=tx, accum=accum))
        frozen = jax.eval_shape(task.init_frozen, jax.random.key(7))
        for batch in helpers.batches(c, task, 2):
            # shapes alone: what comes out of a step must go into the next without a new trace
            state, _ = jax.eval_shape(step, state, frozen, batch)
        assert len(calls) == 1
