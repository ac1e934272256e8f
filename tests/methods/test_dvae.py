"""The d-VAE's schedules, relaxation and losses, by numbers worked out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.methods import dvae
from mimjax.methods.dvae import DiscreteVAE
from mimjax.models.dvae import DVAEEncoder
from mimjax.run.config_files import import_config
from mimjax.task import Clock

config = import_config("dvae")


def test_published_schedules():
    task = DiscreteVAE(kl_weight=6.6 / 192)
    at = lambda step: np.asarray(task.schedules(step))
    np.testing.assert_allclose(at(0), [1.0, 6.6 / 192 / 5000], rtol=1e-6)
    np.testing.assert_allclose(at(75_000), [(1 + 1 / 16) / 2, 6.6 / 192], rtol=1e-6)
    for step in (150_000, 3_000_000):
        np.testing.assert_allclose(at(step), [1 / 16, 6.6 / 192], rtol=1e-6)


@pytest.mark.parametrize("total", [1, 2_000, 250_000])
def test_a_run_of_any_length_ends_with_hard_codes(total):
    c = config.get_config()
    c.method.unlock().kl_weight = 0.1
    task = schema.make_task(c, Clock(1, total))
    np.testing.assert_allclose(task.schedules(total), [1 / 16, 0.1], rtol=1e-6)
    if total == 250_000:  # the recipe's own length: DALL-E's updates
        np.testing.assert_allclose(task.schedules(75_000)[0], (1 + 1 / 16) / 2, rtol=1e-6)
        assert task.schedules(149_000)[0] > 1 / 16
        np.testing.assert_allclose(task.schedules(4_998)[1], 0.1 * 4_999 / 5_000, rtol=1e-5)


def test_relaxation():
    logits = jnp.asarray([[2.0, 1.0, -1.0]])
    soft = dvae.relax(logits, 0.5)
    np.testing.assert_allclose(soft, jax.nn.softmax(2 * logits), rtol=1e-6)
    hard = dvae.relax(logits, 0.5, straight_through=True)
    np.testing.assert_allclose(hard, [[1, 0, 0]], atol=1e-7)
    read = jnp.asarray([1.0, 2.0, 3.0])
    grads = [jax.grad(lambda l, s=s: (dvae.relax(l, 0.5, s) @ read)[0])(logits) for s in (0, 1)]
    np.testing.assert_allclose(*grads, rtol=1e-6)
    assert np.any(grads[0])


def test_losses():
    uniform, sure = jnp.zeros((1, 8)), jnp.eye(8)[:1] * 100
    np.testing.assert_allclose(dvae.kl_to_uniform(uniform), [0.0], atol=1e-6)
    np.testing.assert_allclose(dvae.kl_to_uniform(sure), [np.log(8)], rtol=1e-6)
    d = jnp.asarray([0.5, -3.0])
    np.testing.assert_allclose(dvae.distance(d, 0 * d, "mse"), [0.25, 9.0])
    np.testing.assert_allclose(dvae.distance(d, 0 * d, "smooth_l1"), [0.125, 2.5])


def test_usage():
    used, perplexity = dvae.usage(jnp.asarray([[0, 0], [5, 5]]), 8)
    np.testing.assert_allclose([used, perplexity], [0.25, 2.0], rtol=1e-6)


def test_noise_in_training_only():
    task = DiscreteVAE(encoder=DVAEEncoder(8, 4, 1, 0), image_size=(4, 4))
    params = jax.jit(task.init)(jax.random.key(0))[0]
    batch = {"image": jax.random.normal(jax.random.key(1), (2, 4, 4, 3))}
    loss = jax.jit(task.loss, static_argnums=5)
    total = lambda key, train: float(loss(params, {}, batch, jax.random.key(key), 0, train).total)
    assert total(0, True) == total(0, True) != total(1, True)
    assert total(0, False) == total(1, False)


def test_wrong_settings():
    for wrong, message in (
        ({"image_size": (100, 112)}, r"method\.image_size: 100 is not divisible by 8"),
        ({"reconstruction": "l1"}, r"method\.reconstruction"),
        ({"temperature_end": 0.0}, r"method\.temperature_end"),
    ):
        with pytest.raises(ConfigError, match=message):
            DiscreteVAE(**wrong)
