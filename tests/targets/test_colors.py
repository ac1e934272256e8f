"""Vectors as colors."""

import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.targets.colors import feature_colors


@pytest.mark.parametrize("width", [1, 2, 5])
def test_vectors_of_any_width_have_colors(width):
    x = np.random.default_rng(0).normal(size=(2, 6, width)).astype(np.float32)
    theirs, ours = map(np.asarray, feature_colors(jnp.asarray(x), jnp.asarray(x)))
    assert theirs.shape == (2, 6, 3)
    np.testing.assert_array_equal(theirs, ours)
    spread = theirs.reshape(-1, 3).max(0) - theirs.reshape(-1, 3).min(0)
    assert (spread[: min(width, 3)] > 0.5).all(), "a component tells vectors apart"
    assert (theirs[..., width:] == 0).all()
