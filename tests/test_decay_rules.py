"""The configs' weight decay, compared with the parameter groups that the official codes make.

Each official rule is written down here over the official name and shape of a parameter, which the
exporter's tables give. All parameters that an option can add are switched on.
"""

import functools
import re

import helpers
import jax
import numpy as np
import pytest

from mimjax import rules, schema
from mimjax.errors import ConfigError
from mimjax.run.config_files import import_config
from mimjax.task import Clock
from mimjax.torch_io.read import detect

RECIPES = ("continued", "multi_channel", "one_gpu", "small_data")
continued, multi_channel, one_gpu, small_data = (import_config(f"recipes/{r}") for r in RECIPES)


def spared(name, shape, skip=()):
    """Timm's `add_weight_decay` and BEiT's `get_parameter_groups`: what has no decay."""
    return len(shape) == 1 or name.endswith(".bias") or name in skip


# What each official pretraining script gives as names to skip.
SKIP = {
    "mae": (),  # main_pretrain.py: add_weight_decay(model, weight_decay), no list
    "mcmae": (),  # the same script
    "mrmae": (),  # no code: MCMAE's
    "beit": ("pos_embed", "cls_token"),  # no_weight_decay of the pretraining model
    "bootmae": ("pos_embed", "cls_token"),  # the same
    "cae": (),  # its top-level model has no no_weight_decay
    "caev2": (),
    "dvae": (),  # no code of the training: as all others
}
LAYOUTS = {"mrmae": "mcmae", "caev2": "cae"}  # others: a table of the method's own name
# what no official code of the method has is named as in another that has it
OTHERS = ("mae", "beit", "mmpretrain_beit")
# every option that adds parameters; those that a network lacks are left out
OPTIONS = {
    "encoder.layer_scale": 0.1,
    "encoder.pos_embed": "learned",
    "encoder.use_mask_token": True,
    "encoder.fuse_stages": True,
    "regressor.layer_scale": 0.1,
    "regressor.width": 16,
    "decoder.layer_scale": 0.1,
}
ATTENTION = [
    {"encoder.bias": "qv", "encoder.rel_pos": "shared"},
    {"encoder.bias": "full", "encoder.rel_pos": "per_block"},
]
# name of the config, argument beside "demo"; MR-MAE's two encoders
NETWORKS = [(name, "") for name in sorted(helpers.CONFIGS)] + [("mrmae", ",backbone=vit")]


@functools.cache
def parameters(name, arg):
    """Shapes of all parameters that a small network of the config can have, by path."""
    found = {}
    for attention in ATTENTION:
        c = helpers.CONFIGS[name].get_config("demo" + arg).unlock()
        shallow = {"encoder.depth": 1, "encoder.fuse_layers": (0,), "decoder.depth": 1}
        for key, value in (OPTIONS | attention | shallow).items():
            section, field = key.split(".")
            if section in c.method and field in c.method[section]:
                c.method[section][field] = value
        params = jax.eval_shape(schema.make_task(c, Clock(4, 8)).init, jax.random.key(0))[0]
        found |= dict(zip(rules.paths(params), jax.tree.leaves(params), strict=True))
        if "rel_pos" not in c.method.encoder:
            break  # its attention has no options
    return found


def official(name, path, shape):
    """(key, shape) of a parameter in the official code."""
    for layout in (LAYOUTS.get(name, name), *OTHERS):
        try:
            row = detect.rows_for(layout, [path])[0]
        except ConfigError:
            continue
        theirs = detect.LAYOUTS[row.layout].to_theirs(np.zeros(shape, np.float32), 3)
        return row.keys[0], theirs.shape
    raise AssertionError(f"no official name for {path}")


@pytest.mark.parametrize(("name", "arg"), NETWORKS, ids="".join)
def test_decay_is_that_of_the_official_groups(name, arg):
    params = parameters(name, arg)
    factors = rules.match(helpers.CONFIGS[name].get_config().optimizer.decay, params)
    expected = {
        path: 0.0 if spared(*official(name, path, x.shape), SKIP[name]) else 1.0
        for path, x in params.items()
    }
    assert factors == expected
    assert 0 < sum(factors.values()) < len(factors)


@pytest.mark.parametrize(("name", "arg"), NETWORKS, ids="".join)
def test_vectors_are_what_has_one_dimension(name, arg):
    for path, x in parameters(name, arg).items():
        assert (x.ndim == 1) == bool(re.fullmatch(rules.VECTORS, path)), path


def test_the_options_add_what_they_should():
    """The comparison above sees every kind of parameter that it was written for."""
    for name, arg, parts in (
        (
            "mae",
            "",
            ("q_bias", "qkv/bias", "block_00/gamma_2", "rel_pos/table", "rel_pos_00/table"),
        ),
        ("mrmae", ",backbone=vit", ("v_bias", "gamma_1", "encoder/pos_embed", "mimic_head")),
        ("mcmae", "", ("stage1_fuse/kernel", "depthwise/bias", "encoder/pos_embed")),
        ("beit", "", ("encoder/pos_embed", "encoder/mask_token", "encoder/cls_token")),
        ("cae", "", ("gamma_2_cross", "decoder/block_00/gamma_1", "projection/norm/scale")),
    ):
        seen = " ".join(parameters(name, arg))
        assert [part for part in parts if part not in seen] == [], name


@pytest.mark.parametrize("name", sorted(helpers.CONFIGS))
def test_other_sizes_and_the_demo_decay_alike(name):
    config = helpers.CONFIGS[name]
    rule = config.get_config().optimizer.decay
    sizes = () if name == "dvae" else ("size=s", "size=l")
    for arg in (*sizes, "demo"):
        assert config.get_config(arg).optimizer.decay == rule


def test_recipes_decay_as_their_methods():
    rule = lambda name: helpers.CONFIGS[name].get_config().optimizer.decay
    for name in one_gpu.METHODS:
        assert one_gpu.get_config(f"method={name}").optimizer.decay == rule(name)
    for name in continued.METHODS:
        assert continued.get_config(f"path=a,method={name}").optimizer.decay == rule(name)
    for recipe in (small_data, multi_channel):
        assert recipe.get_config().optimizer.decay == rule("mae")
