"""What tests of exports share: small tasks with the heads of no preset, and random weights."""

import functools

import helpers
import jax
import numpy as np
from ml_collections import ConfigDict

from mimjax import plugs, schema
from mimjax.inference import own_files, teachers
from mimjax.rules import paths
from mimjax.run.config_files import import_config
from mimjax.task import Clock
from mimjax.torch_io.write import formats
from mimjax.torch_io.write.export import Export, kind_of

mrmae = import_config("mrmae")

ABOUT = {"step": "7", "weights": "online", "config_sha256": "0" * 64}
# heads: no preset of a library has so few channels per head
HEADS = {"method.encoder.heads": 2}
# as published, where the demo differs
PUBLISHED = {"beit": {"method.encoder.pos_embed": "none", "method.encoder.layer_scale": 0.1}}


# Each in the formats that its encoder and its networks fit; mrmae_vit has a plain encoder.
METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae", "mrmae_vit", "discretevae")


@functools.cache
def task(method):
    """A method's small task."""
    if method == "mrmae_vit":
        c = mrmae.get_config("demo,backbone=vit").unlock()
        c.method.mimic_target.path = "random"
        c.method.encoder.update({"width": 32, "depth": 2, "heads": 2, "fuse_layers": (0, 1)})
    elif method == "discretevae":
        c = helpers.small("dvae")
    else:
        c = helpers.small(method, **HEADS, **PUBLISHED.get(method, {}))
    return schema.make_task(teachers.fill(c), Clock(4, 8))


@functools.cache
def params(method):
    """Random weights: biases, norms, layer scales and tables are none of them trivial."""
    rng = np.random.default_rng(0)
    center = {"scale": 1.0, "gamma_1": 0.5, "gamma_2": 0.5}

    def draw(path, x):
        values = center.get(path[-1].key, 0.0) + 0.15 * rng.normal(size=x.shape)
        return values.astype(np.float32)

    like = jax.eval_shape(task(method).init, jax.random.key(0))[0]
    return jax.tree_util.tree_map_with_path(draw, like)


def export(method, name, pool="token", decoder=False, image_size=None, made=None):
    made = made or task(method)
    about = ABOUT | ({"settings": own_files.describe(described(made))} if decoder else {})
    return Export(made, params(method), name, pool, decoder, image_size, about)


def described(made):
    """The settings of a task as those of a run."""
    return ConfigDict({"task": plugs.class_path(type(made)), "method": schema.section(made)})


def variants(name=None):
    """Every (method, format, pool, decoder) that the matrix supports, or those of one format."""
    for method in METHODS:
        kind = kind_of(task(method))
        whole = formats.whole(kind, paths(params(method)))
        for found, place in formats.places_of(kind).items():
            if name in (None, found):
                yield method, found, "token", False
                if place.pooled:
                    yield method, found, "avg", False
                if found in whole:
                    yield method, found, "token", True
