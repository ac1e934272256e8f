"""Ordered rules over parameter paths: weight decay, learning-rate scale, sharding.

A rule is (regex, value); the regex must match a whole path ("encoder/block_00/attn/qkv/kernel"),
and the first match wins. A parameter that no rule matches is an error, and so is a rule that
matches no parameter: a misspelled rule cannot pass silently. What values mean is decided where the
rules are read (`train.optimizers`, `sharding`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from mimjax.errors import ConfigError

PyTree = Any
Rules = Sequence[tuple[str, Any]]
# paths of biases, scales of norms and layer scales; no official code decays them
VECTORS = r".*/(bias|scale|[qv]_bias|gamma_.+)"


def path_name(path) -> str:
    """Return a jax key path as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def paths(tree: PyTree) -> list[str]:
    """Return the path of every leaf, in jax's leaf order."""
    return [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def match(rules: Rules, tree: PyTree, key: str = "rules") -> PyTree:
    """Return a tree like `tree` that holds, for each leaf, the value of the rule that matches it.

    Args:
      key: names the rules in errors.

    Raises:
      ConfigError: no rule matches a leaf, a rule (other than ".*") matches none or is no regex.
    """
    names, used = paths(tree), set()
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{key}: {pattern!r} is no regular expression ({error}); allowed: one that "
                "matches whole paths, like '.*/bias'"
            ) from None

    def value(name: str):
        for i, (pattern, result) in enumerate(rules):
            if re.fullmatch(pattern, name):
                used.add(i)
                return result
        raise ConfigError(f"{key}: no rule matches the parameter {name!r}")

    values = [value(n) for n in names]
    idle = [r[0] for i, r in enumerate(rules) if i not in used and r[0] != ".*"]
    if idle:
        raise ConfigError(
            f"{key}: these rules match no parameter (or stand after a rule that takes all of "
            f"theirs): {', '.join(idle)}"
        )
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def inherit(params: PyTree, values: PyTree, state: PyTree, default: Any) -> PyTree:
    """Return a tree like `state` with the values that its leaves inherit from their parameters.

    A leaf, as of the EMA or of an optimizer slot, takes the value of the parameter whose path is
    the longest suffix of its own (".../mu/encoder/norm/scale" that of "encoder/norm/scale").

    Args:
      params: the parameters.
      values: a tree like `params` with a value per parameter.
      default: value of leaves that belong to no parameter.
    """
    table = dict(zip(paths(params), jax.tree.leaves(values), strict=True))

    def find(name: str):
        parts = name.split("/")
        suffixes = ("/".join(parts[i:]) for i in range(len(parts)))  # the longest comes first
        return next((table[s] for s in suffixes if s in table), default)

    return jax.tree.unflatten(jax.tree.structure(state), [find(n) for n in paths(state)])
