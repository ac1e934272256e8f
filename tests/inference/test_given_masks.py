"""A mask that the caller gives takes the place of the masks that a method samples on the host."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.inference.reconstruction import Reconstructor
from mimjax.masking.base import Random
from mimjax.masking.block import Block, BlockRandom
from mimjax.masking.views import Complementary
from mimjax.methods.mae import MAE
from mimjax.models.vit import ViT
from mimjax.rng import example_seed
from mimjax.task import TrainState

ENCODER = ViT(16, 1, 2, patch=8, image_size=(32, 32))


def sampled(masking, mask=None):
    """What the task is given for three images, and the mask that it then prepares."""
    task = MAE(encoder=ENCODER, masking=masking)
    arrays = Reconstructor(task, dict, dict)._sampled(mask, 3, 7)
    batch = {"image": np.zeros((3, 32, 32, 3), np.uint8)} | arrays
    state = TrainState(jnp.int32(0), {}, {}, {}, ())
    prepare = jax.jit(task.prepare, static_argnums=4)
    return arrays, np.asarray(prepare(state, {}, batch, jax.random.key(0), False)[0].mask)


def left_columns(masked):
    mask = np.zeros((3, 16), bool)
    mask[:, :masked] = True
    return mask


@pytest.mark.parametrize("masking", [Random(), Block(0.75), Complementary()], ids=str)
def test_a_given_mask_is_the_one_that_is_drawn(masking):
    np.testing.assert_array_equal(sampled(masking, left_columns(12))[1], left_columns(12))


@pytest.mark.parametrize("masking", [Random(), Complementary(), BlockRandom(roll="batch")], ids=str)
def test_without_one_the_masks_are_those_of_the_evaluators(masking):
    arrays, mask = sampled(masking)
    assert (mask.sum(1) == 12).all()
    for i in range(3):
        own = masking.sample(random.Random(example_seed(7, 0, i, "eval_mask")), (4, 4), 0)
        assert own.keys() == arrays.keys()
        for name, x in own.items():
            np.testing.assert_array_equal(arrays[name][i], x)


@pytest.mark.parametrize(
    "mask", [left_columns(11), left_columns(12).astype(int), np.ones((3, 8), bool)]
)
def test_a_mask_that_does_not_fit(mask):
    line = r"^mask: .*; allowed: bool \[3, 16\] with 12 masked patches in each image$"
    with pytest.raises(ConfigError, match=line):
        sampled(Random(), mask)


def test_a_method_that_chooses_on_the_device_takes_none():
    with pytest.raises(ConfigError, match=r"^mask: the method chooses the patches itself"):
        sampled(BlockRandom(roll="batch"), left_columns(12))
