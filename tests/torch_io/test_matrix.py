"""Every supported pair of method and format: written to disk, read back, equal bit for bit."""

import collections
import dataclasses
import json
from contextlib import nullcontext

import exports
import flax.linen as nn
import jax
import numpy as np
import pytest

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference import weights
from mimjax.methods.mim import MIM
from mimjax.methods.parts import Term
from mimjax.models.heads import LinearHead
from mimjax.models.vit import ViT, sincos_table
from mimjax.rules import paths
from mimjax.run.config_files import import_config
from mimjax.targets.base import Target
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock, EncoderNetwork, Predictor
from mimjax.torch_io.read import detect, load
from mimjax.torch_io.write import export, formats, settings, tensors

cae = import_config("cae")


def flat(tree):
    return dict(zip(paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def meant(method, name, decoder):
    """What the file must hold by our paths, worked out here from the run's parameters."""
    params = exports.params(method)
    if method == "discretevae":
        return flat(params)
    encoder = exports.task(method).encoder
    full = params if decoder else {"encoder": params["encoder"]}
    out = flat(full)
    table = out.pop("encoder/rel_pos/table", None)
    if table is not None and name in ("timm", "mmpretrain", "mmseg"):
        out |= {f"encoder/rel_pos_{i:02d}/table": table for i in range(2)}
    elif table is not None:
        out["encoder/rel_pos/table"] = table
    if name == "detectron2":
        for path in [p for p in out if p.endswith(("gamma_1", "gamma_2"))]:
            block, gamma = path.rsplit("/", 1)
            layer = f"{block}/{'attn/proj' if gamma == 'gamma_1' else 'mlp/fc2'}"
            scale = out.pop(path)
            out[f"{layer}/kernel"] = out[f"{layer}/kernel"] * scale[None, :]
            out[f"{layer}/bias"] = out[f"{layer}/bias"] * scale
        del out["encoder/cls_token"]
    if name in ("detectron2", "mmseg"):
        out = {p: x for p, x in out.items() if not p.startswith("encoder/norm")}
    if not decoder:
        out = {p: x for p, x in out.items() if "mask_token" not in p and "_fuse" not in p}
    order = getattr(encoder, "pos_embed", "sincos_xy")
    if order.startswith("sincos") and name != "safetensors":
        table = sincos_table(encoder.grid, encoder.width, order.removeprefix("sincos_"))
        prefix = 0 if hasattr(encoder, "strides") else 1
        out["encoder/pos_embed"] = np.pad(table, ((prefix, 0), (0, 0)))[None]
    return out


def unflat(values):
    tree = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@pytest.mark.parametrize(("method", "name", "pool", "decoder"), list(exports.variants()))
def test_round_trip(tmp_path, method, name, pool, decoder):
    """import(export(x)) == x, where x is worked out in this file."""
    job = exports.export(method, name, pool, decoder)
    path = tmp_path / f"out{(*formats.FORMATS[name].suffixes, '')[0]}"
    job.write(str(path))
    state = load.read_file(job.weights_file(str(path)))
    want = meant(method, name, decoder)
    read = load.from_torch(state, unflat(want), job.layout)
    for where, x in flat(read).items():
        np.testing.assert_array_equal(x, want[where], err_msg=where)
    # nothing else is there but the fixed tables of decoders
    known = {k for row in detect.rows_for(job.layout, want) for k in row.keys}
    fixed = set() if job.layout == detect.OWN else set(detect.TABLES[job.layout][1])
    assert state.keys() - known <= fixed
    if decoder:
        assert fixed <= state.keys()
    elif method != "discretevae":
        assert not [k for k in state if "mask_token" in k or "decode" in k]


def test_the_matrix_is_the_known_one():
    """A pair that falls out of the table, or into it, changes these numbers."""
    count = collections.Counter(f for _, f, _, _ in exports.variants())
    count = [count[name] for name in formats.FORMATS]
    assert count == [12, 12, 5, 2, 5, 4, 4, 12, 6, 5, 18]
    row = "a ViT with biases of q and v, layer scales, relative positions, no absolute positions"
    (line,) = (line for line in formats.table().splitlines() if line.startswith(f"{row}  "))
    cells = dict(zip(formats.FORMATS, line.removeprefix(row).split(), strict=True))
    assert {cells[name] for name in ("timm", "mmpretrain", "mmseg")} == {"copied"}
    assert {cells[name] for name in ("hf", "beit", "safetensors")} == {"exact"}


@pytest.mark.parametrize(
    ("method", "name", "pool", "decoder", "text"),
    [
        (
            "mcmae",
            "hf",
            "token",
            False,
            "hf for convolutional stages .*: not supported .*convmae_module.*: convmae, safetens",
        ),
        ("beit", "detectron2", "token", False, "takes an encoder without relative positions"),
        (
            "mae",
            "bootmae",
            "token",
            False,
            "bootmae for a ViT .*not supported .*without biases of keys",
        ),
        ("mae", "hf", "avg", False, "--pool: avg .* allowed: token, or the formats timm"),
        ("cae", "timm", "token", True, "--decoder: timm has no place .* allowed: cae, safetensors"),
        ("mcmae", "convmae", "avg", False, "--pool: avg .*allowed: token$"),
        (
            "mrmae_vit",
            "hf",
            "token",
            True,
            "--decoder: hf has no place .* allowed: mae, safetensors",
        ),
        ("cae", "hf", "token", True, "--decoder: hf has no place .* allowed: cae, safetensors"),
    ],
)
def test_what_is_refused(method, name, pool, decoder, text):
    with pytest.raises(ConfigError, match=text):
        exports.export(method, name, pool, decoder)


@pytest.mark.parametrize(
    ("properties", "name", "text"),
    [
        (
            {"scale": True, "key_bias": True},
            "hf",
            "an encoder without layer scales, or one without",
        ),
        ({"scale": True}, "mae", "an encoder without layer scales"),
        ({"prefix": 5, "key_bias": True}, "hf", "with 1 tokens before patches, or one without bia"),
        ({"absolute": False, "key_bias": True}, "mmseg", "with absolute positions, or one without"),
        ({"relative": True, "key_bias": True}, "timm", "without relative positions, or one with"),
    ],
)
def test_what_a_format_takes_is_said(properties, name, text):
    """An option without a place is refused by its property, before any tensor is made."""
    kind = formats.Kind(**properties)
    with pytest.raises(ConfigError, match=f"not supported .it takes {text}|{text}"):
        formats.choose_layout(kind, name, "token", False)
    assert "safetensors" in formats.places_of(kind)


def test_a_subclass_is_exported_by_what_it_has():
    """A class that no line of the package names; a parameter more has a place in our format."""

    class Narrow(ViT):
        pass

    class Wider(ViT):
        @nn.compact
        def __call__(self, images, ids=None, mask=None, train=False):
            out = super().__call__(images, ids, mask, train)
            return out._replace(tokens=out.tokens * self.param("gain", nn.initializers.ones, (32,)))

    for cls, fits in ((Narrow, True), (Wider, False)):
        settings = tensors.settings(SMALL) | {"use_mask_token": True}
        task = Simple(encoder=cls(**settings))
        shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
        blank = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
        export.Export(task, blank, "safetensors").check()
        with nullcontext() if fits else pytest.raises(ConfigError, match="'encoder/gain'"):
            export.Export(task, blank, "timm").check()


SMALL = ViT(32, 2, 2, 2, (8, 8), pos_embed="none", rel_pos="shared", layer_scale=0.1, bias="qv")


@dataclasses.dataclass(frozen=True)
class Simple(MIM):
    """A user's method: an encoder as BEiT's, a linear head, pixels."""

    encoder: EncoderNetwork = SMALL.clone(use_mask_token=True)
    pixel_target: Target = Pixels()
    head: Predictor = LinearHead()
    pixel: Term = Term("pixel_target", "head")


def test_a_users_method_has_the_formats_of_its_encoder(tmp_path):
    """The method's name stands in no table."""
    task = Simple()
    params = jax.tree.map(np.asarray, task.init(jax.random.key(0))[0])
    assert formats.whole(export.kind_of(task), paths(params)).keys() == {
        "hf",
        "beit",
        "safetensors",
    }
    for decoder in (False, True):
        job = export.Export(task, params, "timm" if not decoder else "beit", decoder=decoder)
        path = str(tmp_path / f"{decoder}.safetensors")
        job.write(path)
        like = params if decoder else {"encoder": job.written[1]}
        read = load.from_torch(load.read_file(path), like, job.layout)
        jax.tree.map(np.testing.assert_array_equal, read, like)


def test_an_encoder_of_its_own_has_our_format_alone():
    class Own(EncoderNetwork):
        width: int = 8

    assert list(formats.places_of(formats.kind_of(Own()))) == ["safetensors"]
    assert "safetensors" in formats.table().splitlines()[0]


def test_metadata_and_files_of_ours_are_a_start(tmp_path):
    """A .safetensors file says what it is, and `init_from` reads it."""
    from safetensors import safe_open

    path = str(tmp_path / "out.safetensors")
    exports.export("cae", "safetensors").write(path)
    with safe_open(path, "np") as file:
        about = file.metadata()
    assert about["format"] == "pt"
    assert (about["method"], about["step"], about["weights"]) == ("cae", "7", "online")
    assert (about["heads"], about["pool"], about["mean"]) == ("2", "token", "0.485,0.456,0.406")
    assert json.loads(about["encoder"])["width"] == 32
    like = {k: exports.params("cae")[k] for k in ("encoder", "decoder")}
    said = []
    read = weights.read_params(path, like, "init_from", said.append)
    jax.tree.map(np.testing.assert_array_equal, read["encoder"], like["encoder"])
    assert all(x is None for x in jax.tree.leaves(read["decoder"], is_leaf=lambda x: x is None))
    assert "decoder not in the file: random" in said[0]


def test_key_biases_have_no_place_in_an_encoder_without():
    """A published qkv.bias goes into q_bias and v_bias only if that of the keys is zero."""
    job = exports.export("bootmae", "mae")
    like, bias = job.trees, job.tensors["blocks.1.attn.qkv.bias"].copy()
    load.from_torch(job.tensors, like, "mae")
    bias[40] = 1e-3
    state = job.tensors | {"blocks.1.attn.qkv.bias": bias}
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.qkv\.bias has biases of keys"):
        load.from_torch(state, like, "mae")


def test_heads_that_no_preset_has():
    """CAE's Ti has 12 heads, timm's 3: keys would match, so the number is in what is printed."""
    c = cae.get_config("size=ti,tokenizer=pixels")
    task = schema.make_task(c, Clock(1, 1))
    name, args = settings.timm_model(task.encoder, False, "token", 3)
    assert (name, args["num_heads"]) == ("vit_base_patch16_224", 12)
    assert settings.unlike_preset(name, args) == {"embed_dim": 192, "init_values": 0.1}
    assert (
        settings.hf_config(task.encoder, "beit_transformers_bare", 3)["num_attention_heads"] == 12
    )
