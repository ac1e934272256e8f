"""Parameters, averages and slots are float32 by construction, whatever JAX's flags say."""

import helpers
import jax
import jax.numpy as jnp
import pytest

from mimjax.rules import paths

STEPS = ("bootmae", "caev2")  # an average of the weights; a teacher
ALLOWED = {jnp.dtype(t) for t in (jnp.float32, jnp.int32, jnp.uint32, jnp.bool_)}


@pytest.mark.parametrize("name", helpers.CONFIGS)
def test_float64_by_flag_changes_no_state(name):
    """JAX_ENABLE_X64=1: the state has the same types, and a step keeps them."""
    settings = {"accum": 2} if name == "bootmae" else {}
    with jax.enable_x64(True):
        _, program = helpers.make(helpers.small(name, **settings))
        before = program.abstract_state
        wrong = {
            path: str(x.dtype)
            for tree in (before, program.abstract_frozen)
            for path, x in zip(paths(tree), jax.tree.leaves(tree), strict=True)
            if x.dtype not in ALLOWED
        }
        assert not wrong
        if name not in STEPS:
            return
        after, _ = jax.eval_shape(
            program.step, before, program.abstract_frozen, program.abstract_batch
        )
        types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
        assert types(after) == types(before)
