"""Exported key sets and shapes against those of the official classes and files."""

import json
import pathlib

import jax
import numpy as np
import pytest
from golden_checks import beit as golden_beit
from golden_checks import bootmae as golden_bootmae
from golden_checks import cae as golden_cae
from golden_checks import common
from golden_checks import mae as golden_mae

from mimjax import schema
from mimjax.run.config_files import import_config
from mimjax.task import Clock
from mimjax.torch_io.read import load
from mimjax.torch_io.write.export import Export

beit, cae, mae, mcmae = map(import_config, ("beit", "cae", "mae", "mcmae"))

HERE = pathlib.Path(__file__).parent
MODELS = json.loads((HERE / "manifests.json").read_text())["models"]


DEPTH = 2  # of the 11 or 12 blocks of a transformer, which are alike


def manifest(name):
    """{key: shape} of a class at Base; None = a shape that differs between blocks."""
    m = MODELS[name]
    out = dict(m["once"])
    for key, shape in m["block"].items():
        depth = m["depth"][key.split(".N.")[0]]
        depth = DEPTH if depth > 8 else depth
        out |= {key.replace(".N.", f".{i}.", 1): shape for i in range(depth)}
    return {k: tuple(v) if v else None for k, v in out.items()}


def exported(config, *args, **options):
    """{key: shape} of an export of the published model; its numbers are zeros."""
    c = config.get_config().unlock()
    c.method.encoder.depth = DEPTH
    task = schema.make_task(c, Clock(1, 1))
    like = jax.eval_shape(task.init, jax.random.key(0))[0]
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), like)
    return {k: v.shape for k, v in Export(task, zeros, *args, **options).tensors.items()}


MM_AVG = ("mmpretrain", "avg")
BUFFERS = "relative_position_index"
FRESH = ("gamma_1", "gamma_2", "relative_position_bias_table", BUFFERS)


@pytest.mark.parametrize(
    ("name", "config", "args", "options", "prefix", "fresh"),
    [
        ("mmpretrain.VisionTransformer", mae, ("mmpretrain",), {}, "backbone.", ()),
        ("mmpretrain.VisionTransformer avg_featmap", mae, MM_AVG, {}, "backbone.", ()),
        ("mmpretrain.BEiTViT avg_featmap", beit, MM_AVG, {}, "backbone.", (BUFFERS,)),
        ("mmseg.MAE 512", mae, ("mmseg",), {"image_size": (512, 512)}, "", FRESH),
        ("mmseg.BEiT 512", beit, ("mmseg",), {"image_size": (512, 512)}, "", (BUFFERS,)),
        ("detectron2.ViTDet", cae, ("detectron2",), {}, "", ("rel_pos_h", "rel_pos_w")),
        ("convmae pretrain", mcmae, ("convmae",), {"decoder": True}, "", ()),
    ],
)
def test_every_key_fits_and_every_key_is_filled(name, config, args, options, prefix, fresh):
    """What is written fits a tensor of the class; what stays fresh there is known by name."""
    ours, theirs = exported(config, *args, **options), manifest(name)
    ours = {k.removeprefix(prefix): v for k, v in ours.items()}
    assert all(theirs[k] == v for k, v in ours.items())
    left = theirs.keys() - ours.keys()
    assert {k for k in left if not k.endswith(fresh or ("\0",))} == set()
    assert bool(fresh) == bool(left)


def test_fine_tuning_of_convmae_finds_all_but_its_head():
    """ConvMAE's script asserts that only the head is missing; the norm before it is not used."""
    ours, theirs = exported(mcmae, "convmae"), manifest("convmae fine-tune")
    assert {k.split(".")[0] for k in theirs.keys() - ours.keys()} == {"fc_norm", "head"}
    assert ours.keys() - theirs.keys() == {"norm.weight", "norm.bias"}
    assert all(ours[k] == theirs[k] for k in ours.keys() & theirs.keys())


MAKE = {
    "mae": lambda c, z: golden_mae.build(c, Clock(1, 1)),
    "bootmae": lambda c, z: golden_bootmae.build(c, Clock(1, 800), int(z["in/mask"][0].sum())),
    "cae": lambda c, z: golden_cae.either(c),
    "beit": lambda c, z: golden_beit.build(c),
}


@pytest.mark.parametrize(
    ("file", "layout", "absent"),
    [
        ("mae_base", "mae", ()),
        ("bootmae_ramp", "bootmae", ()),
        # a copy of the encoder
        ("cae_proj_oddheads", "cae", ("alignment_encoder.",)),
        # a norm that version 2 skips: its code leaves it in the file, where nothing reads it
        ("caev2_proj_tiny", "cae", ("regresser.norm.",)),
        ("beit_default_sharedrel", "beit", ("rel_pos_bias.relative_position_index",)),
    ],
)
def test_official_files_come_out_as_they_went_in(file, layout, absent):
    """A state dict of the official code, read and written: the same keys and the same numbers."""
    z = np.load(HERE.parent / "golden" / f"{file}.npz")
    task = MAKE[layout](json.loads(str(z["meta"]))["config"], z)
    state = common.arrays(z, "sd")
    params = load.from_torch(state, common.shapes(task), layout)
    out = Export(task, params, layout, decoder=True).tensors
    left = state.keys() - out.keys()
    assert out.keys() <= state.keys()
    assert all(k.startswith(absent or "\0") for k in left), sorted(left)
    assert bool(left) == bool(absent)
    for key, x in out.items():
        table = "pos_embed" in key  # ours is computed
        np.testing.assert_allclose(x, state[key], rtol=0, atol=1e-6 if table else 0, err_msg=key)
