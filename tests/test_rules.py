import jax.numpy as jnp
import pytest

from mimjax import rules
from mimjax.errors import ConfigError

TREE = {"encoder": {"norm": {"scale": jnp.ones(3)}, "fc": {"kernel": jnp.ones((3, 4))}}}


def test_first_match_wins_over_whole_paths():
    values = rules.match(((".*/scale", 0.0), (".*", 1.0)), TREE)
    assert values == {"encoder": {"norm": {"scale": 0.0}, "fc": {"kernel": 1.0}}}


def test_an_unmatched_parameter_is_an_error():
    with pytest.raises(ConfigError, match="no rule matches the parameter 'encoder/fc/kernel'"):
        rules.match(((".*/scale", 0.0),), TREE, "optimizer.decay")


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"optimizer.decay: .*\.\*/biass"):
        rules.match(((".*/biass", 0.0), (".*", 1.0)), TREE, "optimizer.decay")
    with pytest.raises(ConfigError, match="after a rule that takes all"):
        rules.match(((".*", 1.0), (".*/scale", 0.0)), TREE)


def test_optimizer_slots_inherit_by_the_longest_suffix():
    state = {"mu": TREE, "count": jnp.zeros(())}
    values = rules.match(((".*/scale", "a"), (".*", "b")), TREE)
    out = rules.inherit(TREE, values, state, "none")
    assert out == {
        "mu": {"encoder": {"norm": {"scale": "a"}, "fc": {"kernel": "b"}}},
        "count": "none",
    }
