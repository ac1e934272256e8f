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
from mimjax.run.config_files import import_config, load
from mimjax.task import Clock
from mimjax.torch_io.read import detect

RECIPES = ("continued", "multi_channel", "one_gpu", "small_data", "three_targets", "bootmae_conv")
continued, multi_channel, one_gpu, small_data, three_targets, bootmae_conv = (
    import_config(f"recipes/{name}") for name in RECIPES
)


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
    "recipes/three_targets": (),  # of no paper: MAE's
    "recipes/bootmae_conv": (),  # BootMAE's, without what it spares: there is neither
}
LAYOUTS = {"mrmae": "mcmae", "caev2": "cae"}  # others: a table of the method's own name
# what no official code of the method has is named as in another that has it
OTHERS = ("mae", "mcmae", "bootmae", "cae", "beit", "mmpretrain_beit")
# every option that adds parameters; those that a network lacks, or that other parts of a method do
# not go together with, are left out
OPTIONS = {
    "encoder.layer_scale": 0.1,
    "encoder.pos_embed": "learned",
    "encoder.use_mask_token": True,
    "encoder.fuse_stages": True,
    "regressor.layer_scale": 0.1,
    "encoder.project": 16,
    "decoder.layer_scale": 0.1,
}
FORMS = [  # each network has one of them
    {"encoder.bias": "qv", "encoder.rel_pos": "shared"},
    {"encoder.bias": "full", "encoder.rel_pos": "per_block", "encoder.use_mask_token": False},
]
# name of the config, argument beside "demo"; MR-MAE's two encoders
NETWORKS = [
    *[(name, "") for name in sorted(SKIP)],
    ("mrmae", ",backbone=vit"),
]


@functools.cache
def parameters(name, arg):
    """Shapes of all parameters that a small network of the config can have, by path."""
    found = {}
    for form in FORMS:
        c = load(f"{name}:demo{arg}").unlock()
        shallow = {"encoder.depth": 1, "encoder.fuse_layers": (0,), "decoder.depth": 1}
        for key, value in (shallow | OPTIONS | form).items():
            section, field = key.split(".")
            if field in (c.method.get(section) or ()):
                old, c.method[section][field] = c.method[section][field], value
                if key not in shallow and not composes(c):
                    c.method[section][field] = old
        params = jax.eval_shape(schema.make_task(c, Clock(4, 8)).init, jax.random.key(0))[0]
        found |= dict(zip(rules.paths(params), jax.tree.leaves(params), strict=True))
        if "rel_pos" not in c.method.encoder:
            break  # it has one form
    return found


def composes(c):
    try:
        return schema.make_task(c, Clock(4, 8))
    except ConfigError:
        return None


def official(name, path, shape):
    """(key, shape) of a parameter in the official code.

    Three decoders of one recipe are named as the one of MAE is.
    """
    if name == "recipes/three_targets":
        path = re.sub(r"^(pixel|feature|teacher)_decoder/", "decoder/", path)
    own = (LAYOUTS.get(name, name),) if name in helpers.CONFIGS else ()
    for layout in (*own, *OTHERS):
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
    factors = rules.match(load(name).optimizer.decay, params)
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
        ("recipes/bootmae_conv", "", ("stage2_fuse/kernel", "feature_decoder/down/kernel")),
        ("recipes/three_targets", "", ("teacher_decoder/mask_token", "encoder/mask_token")),
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
    for recipe in (small_data, multi_channel, three_targets):
        assert recipe.get_config().optimizer.decay == rule("mae")
    assert bootmae_conv.get_config().optimizer.decay == rule("mcmae")
