"""Inputs and summaries of `test_equality.py`; they know nothing of methods.

Every array is drawn with a seed made of its name, so that the order of a tree plays no part.
"""

import math
import zlib

import jax
import numpy as np

STEP, CLOCK, BATCH = 7, (2, 20), 2


def named(tree):
    """{path joined by /: leaf}."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(k.key) for k in path): x for path, x in found}


def draw(name):
    return np.random.RandomState(zlib.crc32(name.encode()))


def numbers(like, kind, rename=lambda path: path):
    """Random arrays of the shapes `like`, as large as matters in float32.

    Args:
      kind: what they are for, "params"; a part of each seed.
      rename: the path that a seed is made of.
    """

    def leaf(path, x):
        path = rename("/".join(k.key for k in path))
        name, n = path.split("/")[-1], draw(f"{kind}/{path}").standard_normal(x.shape)
        if name == "scale":
            out = 1 + 0.1 * n
        elif name.startswith("gamma"):
            out = 0.5 + 0.1 * n
        elif x.ndim < 2:
            out = 0.1 * n
        elif math.prod(x.shape[:-1]) == 1 or "embed" in name or "rel_pos" in path:
            out = 0.5 * n
        else:
            out = n / math.sqrt(math.prod(x.shape[:-1]))
        return out.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, like)


def images(views):
    """uint8 images of every view; all but the student's are the same."""
    kinds = {k: "image" if k == "image" else "other" for k in views}
    return {
        k: draw(kinds[k]).randint(0, 256, (BATCH, *v.size, v.channels)).astype(np.uint8)
        for k, v in views.items()
    }


def summary(tree, rename=lambda path: path):
    """{network/part: [norm, sum with random signs]}: what moves a number of the tree moves one."""
    out = {}
    for path, x in named(tree).items():
        path, x = rename(path), np.asarray(x, np.float64)
        sign = draw(f"sign/{path}").randint(0, 2, x.shape) * 2 - 1
        part = out.setdefault("/".join(path.split("/")[:2]), [0.0, 0.0])
        part[0] += float(np.square(x).sum())
        part[1] += float((x * sign).sum())
    return {k: [math.sqrt(square), total] for k, (square, total) in sorted(out.items())}
