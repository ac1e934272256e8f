"""DINOv2, DINOv3, I-JEPA, Pixio and data2vec, whose files transformers and timm write here.

Features are compared at a size that is not that of the positions; names that a file may have
besides are compared by their tensors.
"""

import functools
import json
import shutil

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
import stubs
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file, save_file
from torch_io.live import show

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import published, weights
from mimjax.models.attention_maps import attention_maps
from mimjax.models.vit import sincos_table
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD
from mimjax.torch_io.read import load

stubs.replace("torchvision")
timm = pytest.importorskip("timm")

NATIVE, OTHER = (16, 16), (12, 24)
WIDTH, HEADS = 32, 4
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS}
SIZES |= {"image_size": 16, "patch_size": 4}
HIDDEN = {"intermediate_size": 48}
ViT = SIZES | HIDDEN | {"layer_norm_eps": 1e-6}
IMAGES, SQUARE = (
    np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8) for size in (OTHER, NATIVE)
)
FOUND = {}  # test -> the largest difference


@pytest.fixture(scope="module", autouse=True)
def show_table(request):
    """Show the largest difference of each kind of file."""
    yield
    show(request, f"timm {timm.__version__}, transformers {transformers.__version__}", FOUND)


def pixels(images=IMAGES):
    x = (images / 255.0 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def drawn(model, fixed=()):
    """The model with random parameters: none is zero, and no norm is without effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in fixed:
                p.copy_(0.2 * torch.randn(p.shape) + (1.0 if "norm" in name else 0.0))
    return model.eval()


def near(name, ours, theirs):
    theirs = theirs.detach().numpy()
    FOUND[name] = float(np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ transformers
T = transformers
REGISTERS = {"num_register_tokens": 4}
FAR = {"layer_norm_eps": 0.05}  # from what any code has
MODELS = {
    "Dinov2": lambda: T.Dinov2Model(T.Dinov2Config(**SIZES)),
    "Dinov2, SwiGLU": lambda: T.Dinov2Model(T.Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "Dinov2WithRegisters": lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**SIZES)),
    "DINOv3ViT": lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(**SIZES, **HIDDEN, **REGISTERS)),
    "DINOv3ViT, SwiGLU": lambda: T.DINOv3ViTModel(
        T.DINOv3ViTConfig(**SIZES, **HIDDEN, **REGISTERS, use_gated_mlp=True, hidden_act="silu")
    ),
    "IJepa": lambda: T.IJepaModel(T.IJepaConfig(**ViT | FAR)),
    "Pixio": lambda: T.PixioModel(T.PixioConfig(**SIZES | FAR, n_cls_tokens=3)),
}
# settings that the files say beside them alone
SAID = {
    "Dinov2, said": lambda: T.Dinov2Model(T.Dinov2Config(**SIZES | FAR)),
    "DINOv3ViT, said": lambda: T.DINOv3ViTModel(
        T.DINOv3ViTConfig(**SIZES | HIDDEN | REGISTERS | FAR, rope_theta=30.0)
    ),
}


@functools.cache
def written(name, folder):
    """The model, and the path of its file."""
    model = drawn((MODELS | SAID)[name]())
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    return lambda name: written(name, root / name.replace(", ", "_"))


def hidden(model):
    """Tokens after the final norm and the first block's of IMAGES."""
    resize = {"interpolate_pos_encoding": True} if "IJepa" in type(model).__name__ else {}
    out = model(pixels(), output_hidden_states=True, **resize)
    return out.last_hidden_state, out.hidden_states[1], out.pooler_output


@pytest.mark.parametrize("name", helpers.gated(MODELS | SAID, ("Dinov2", "DINOv3ViT, SwiGLU")))
def test_transformers(name, file_of):
    """Heads, epsilon of norms and rope_theta are those of the config.json beside the file."""
    theirs, path = file_of(name)
    model = mimjax.load(path, image_size=OTHER)
    eps, report = theirs.config.layer_norm_eps, "; ".join(model.report)
    assert model.module.eps == eps
    assert f"config.json: heads={HEADS}, activation=" in report
    assert f"epsilon of norms {eps:g}" in report
    assert "computed with" not in report
    assert ("rope_theta 30" in report) == (name == "DINOv3ViT, said")
    if name.startswith("DINOv3"):  # no tensor shows the size of its images
        side = theirs.config.image_size
        assert mimjax.load(path).image_size == (side, side)
    tokens, block, pooled = hidden(theirs)
    near(f"transformers {name}", model.encode(IMAGES, pool="all"), tokens)
    near(f"transformers {name}, block", model.encode(IMAGES, pool="all", layer=0), block)
    if name == "IJepa":
        with pytest.raises(ConfigError, match="no CLS token; allowed: mean, all"):
            model.encode(IMAGES, pool="cls")
    else:  # Pixio's is the mean of its class tokens
        near(f"transformers {name}, cls", model.encode(IMAGES, pool="cls"), pooled)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("Dinov2", {"hidden_act": "relu"}, "activation 'relu'; allowed: gelu"),
        ("IJepa", {"hidden_act": "gelu_new"}, "activation 'gelu_new'; allowed: gelu"),
        ("Pixio", {"model_args": {"act_layer": "gelu_tanh"}}, "activation 'gelu_tanh'"),
        ("DINOv3ViT, SwiGLU", {"hidden_act": "gelu"}, "activation 'gelu'; allowed: silu"),
        ("DINOv3ViT", {"layer_norm_eps": 0.0}, "eps: 0.0; allowed: numbers above 0"),
        ("DINOv3ViT", {"rope_theta": -1.0}, "rope_theta: -1.0; allowed: numbers above 0"),
        ("Dinov2", {"num_attention_heads": 8}, "heads: 4; allowed: 8, as .*config.json has"),
    ],
)
def test_what_stands_beside_is_computed_or_refused(name, settings, match, file_of, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(file_of(name)[1], path)
    images = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    if name == "Dinov2":  # timm's config, and transformers' images
        (tmp_path / "config.json").write_text(json.dumps({"model_args": {"num_heads": HEADS}}))
        model = mimjax.load(path)
        assert (model.module.heads, model.statistics) == (HEADS, ((0.5,) * 3, (0.25,) * 3))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=match) as error:
        mimjax.load(path, heads=HEADS)
    assert "\n" not in str(error.value)


@pytest.mark.gate
@pytest.mark.parametrize("name", MODELS)
def test_names_in_memory(name, file_of, tmp_path):
    """`torch.save(model.state_dict())` is read as the file that transformers writes."""
    theirs, path = file_of(name)
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    same(load.read_file(str(tmp_path / "memory.pth")), load.read_file(str(path)))


def test_attention_of_positions_that_turn(file_of):
    theirs, path = file_of("DINOv3ViT")
    theirs.set_attn_implementation("eager")
    model = mimjax.load(path, heads=HEADS, image_size=OTHER)
    images = jnp.asarray(pixels().numpy().transpose(0, 2, 3, 1))
    found = attention_maps(model.module, model.params["encoder"], images, [0])[0]
    near("DINOv3ViT, attention", found, theirs(pixels(), output_attentions=True).attentions[0])
    theirs.set_attn_implementation("sdpa")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, x in theirs.items():
        np.testing.assert_array_equal(ours[key], x, key)


TASKS = {
    "ViT": lambda: T.ViTForImageClassification(T.ViTConfig(**ViT)),
    "ViTMAE": lambda: T.ViTMAEForPreTraining(
        T.ViTMAEConfig(**ViT, decoder_num_hidden_layers=1, decoder_hidden_size=16)
    ),
    "BeiT": lambda: T.BeitForImageClassification(
        T.BeitConfig(**ViT, use_relative_position_bias=True, use_absolute_position_embeddings=True)
    ),
    "BeiT, shared": lambda: T.BeitForMaskedImageModeling(
        T.BeitConfig(**ViT, use_shared_relative_position_bias=True, use_mask_token=True)
    ),
}


@pytest.mark.gate
@pytest.mark.parametrize("name", TASKS)
def test_names_in_memory_of_task_models(name, tmp_path):
    theirs = TASKS[name]()
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    ours, file = (load.read_file(str(tmp_path / n)) for n in ("memory.pth", "model.safetensors"))
    # 5.x writes another name of the decoder's blocks than it has in memory; both are read
    file = {k.replace("decoder_encoder.layer.", "decoder_layers."): v for k, v in file.items()}
    same(ours, file)


@pytest.mark.parametrize("pools", [False, True])
def test_data2vec(pools, tmp_path):
    """BEiT's network under another name; without a pooler it has no norm at all."""
    config = T.Data2VecVisionConfig(**ViT, use_relative_position_bias=True)
    if pools:
        theirs = drawn(T.Data2VecVisionForImageClassification(config))
        bare = theirs.data2vec_vision
    else:
        theirs = bare = drawn(T.Data2VecVisionModel(config, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path)
    model = mimjax.load(tmp_path / "model.safetensors")
    x = pixels(SQUARE)
    near(f"transformers Data2VecVision, {pools}", model.encode(SQUARE, "all", -1), bare(x)[0])
    if pools:
        near("transformers Data2VecVision, logits", model.classify(SQUARE), theirs(x).logits)
    else:
        with pytest.raises(ConfigError, match="layer=None: the file has no norm for tokens"):
            model.encode(SQUARE)


# ------------------------------------------------------------------ timm
V, PLAIN = timm.models.vision_transformer, {"patch_size": 4, "embed_dim": WIDTH, "depth": 1}
PLAIN |= {"num_heads": HEADS, "num_classes": 0}
GATED = {"mlp_layer": V.SwiGLUPacked, "act_layer": torch.nn.SiLU}
DINOV2 = PLAIN | {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
IJEPA = PLAIN | {"class_token": False, "global_pool": "avg", "fc_norm": False}
DINOV3 = PLAIN | {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
DINOV3 |= {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "num_reg_tokens": 4}
DINOV3 |= {"init_values": 1e-5, "use_fc_norm": False, "dynamic_img_size": True}
DINOV3 |= {"norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-5)}
TIMM = {
    "DINOv2": (V.VisionTransformer, PLAIN | {"init_values": 1e-5}),
    "DeiT III": (V.VisionTransformer, PLAIN | {"init_values": 1e-5, "no_embed_class": True}),
    "DINOv2 with registers": (V.VisionTransformer, DINOV2),
    "DINOv2 with registers, SwiGLU": (V.VisionTransformer, DINOV2 | GATED),
    "DINOv2, SwiGLU": (
        V.VisionTransformer,
        PLAIN | GATED | {"init_values": 1e-5},
    ),
    "I-JEPA": (V.VisionTransformer, IJEPA),
    "DINOv3": (timm.models.eva.Eva, DINOV3 | {"qkv_bias": False}),
    "DINOv3, SwiGLU": (timm.models.eva.Eva, DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8}),
}


def resized(cls, args, model):
    """Timm's model for images of OTHER, by timm's own filter."""
    if "dynamic_img_size" in args:
        return model
    other = cls(img_size=OTHER, **args)
    other.load_state_dict(V.checkpoint_filter_fn(model.state_dict(), other))
    return other.eval()


@pytest.mark.parametrize("name", helpers.gated(TIMM, ("DINOv2 with registers", "I-JEPA")))
def test_timm(name, tmp_path):
    cls, args = TIMM[name]
    model = cls(img_size=NATIVE, **args)
    fixed = ("pos_embed",) if name == "I-JEPA" else ()
    if fixed:
        table = torch.tensor(sincos_table((4, 4), WIDTH, "xy"))[None]
        model.pos_embed.data.copy_(table)
    path = tmp_path / "timm.safetensors"
    state = {k: v.numpy() for k, v in drawn(model, fixed).state_dict().items()}
    save_file(state, path)
    ours = mimjax.load(path, heads=HEADS, image_size=OTHER)
    theirs = resized(cls, args, model).forward_features(pixels())
    near(f"timm {name}", ours.encode(IMAGES, pool="all"), theirs)
    resizes = "pos_embed" in state
    assert any("antialiased bicubic" in line for line in ours.report) == resizes
    if fixed:  # SigLIP's names are the same
        save_file(state | {"pos_embed": state["pos_embed"] + 0.1}, path)
        with pytest.raises(ConfigError, match="no class token and learned positions"):
            mimjax.load(path, heads=HEADS)


@pytest.mark.parametrize("said", ["the caller", "config.json"])
def test_a_class_token_and_patches_that_fill_a_square_together(said, tmp_path):
    """15 patches and a class token have 16 positions, as 16 patches without one (DeiT III)."""
    size = (12, 20)
    model = drawn(V.VisionTransformer(img_size=size, **PLAIN, init_values=1e-5))
    save_file({k: v.numpy() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    if said == "config.json":
        told = {"architecture": "vit", "model_args": {"img_size": size, "num_heads": HEADS}}
        (tmp_path / "config.json").write_text(json.dumps(told))
    given = {"image_size": size} if said == "the caller" else {}
    ours = mimjax.load(tmp_path / "m.safetensors", heads=HEADS, **given)
    assert ours.image_size == size
    assert not any("resized" in line for line in ours.report)
    images = np.random.default_rng(3).integers(0, 256, (2, *size, 3), np.uint8)
    near(f"timm 3x5, {said}", ours.encode(images, "all"), model.forward_features(pixels(images)))


# ------------------------------------------------------------------ official names
def official(state, register):
    """Transformers' tensors of DINOv2 or DINOv3 under the names of the official code."""
    layer = "encoder.layer.0." if register == "register_tokens" else "layer.0."
    inner = f"{layer}attention." + ("attention." if "encoder" in layer else "")
    names = ("query", "key", "value") if "encoder" in layer else ("q_proj", "k_proj", "v_proj")
    out = {"cls_token": state["embeddings.cls_token"]}
    out["mask_token"] = state["embeddings.mask_token"].reshape(1, -1)
    if "embeddings.register_tokens" in state:
        out[register] = state["embeddings.register_tokens"]
    if "embeddings.position_embeddings" in state:
        out["pos_embed"] = state["embeddings.position_embeddings"]
    patch = next(k for k in state if "patch_embeddings" in k).rpartition(".")[0]
    last = next(k for k in state if k.startswith(("layernorm.", "norm."))).partition(".")[0]
    proj = "attention.output.dense" if "encoder" in layer else "attention.o_proj"
    whole = {patch: "patch_embed.proj", last: "norm", layer + proj: "blocks.0.attn.proj"}
    mlp = {"fc1": "fc1", "fc2": "fc2", "weights_in": "w12", "weights_out": "w3"}
    if "encoder" not in layer:
        is_gated = f"{layer}mlp.gate_proj.weight" in state
        mlp = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"} if is_gated else {}
        mlp = mlp or {"up_proj": "fc1", "down_proj": "fc2"}
    whole |= {f"{layer}mlp.{a}": f"blocks.0.mlp.{b}" for a, b in mlp.items()}
    whole |= {f"{layer}norm{i}": f"blocks.0.norm{i}" for i in (1, 2)}
    for theirs, name in whole.items():
        for leaf in ("weight", "bias"):
            if f"{theirs}.{leaf}" in state:
                out[f"{name}.{leaf}"] = state[f"{theirs}.{leaf}"]
    for leaf in ("weight", "bias"):
        parts = [state.get(f"{inner}{x}.{leaf}") for x in names]
        # DINOv3 has no biases of k: what stands there is masked
        parts = [np.full(WIDTH, 7, np.float32) if p is None else p for p in parts]
        out[f"blocks.0.attn.qkv.{leaf}"] = np.concatenate(parts)
    for i in (1, 2):
        out[f"blocks.0.ls{i}.gamma"] = state[f"{layer}layer_scale{i}.lambda1"]
    if register == "storage_tokens":
        mask = np.repeat(np.float32([1, 0, 1]), WIDTH)
        out["blocks.0.attn.qkv.bias_mask"] = mask
        out["rope_embed.periods"] = 100 ** (np.arange(2, dtype=np.float32) / 2)
    return out


@pytest.mark.parametrize("name", [name for name in MODELS if "DINO" in name.upper()])
def test_official_names(name, file_of, tmp_path):
    theirs, path = file_of(name)
    register = "storage_tokens" if "v3" in name else "register_tokens"
    state = official(load_file(path), register)
    save_file(state, tmp_path / "official.safetensors")
    path = tmp_path / "official.safetensors"
    if "v3" in name:  # its periods show the heads, and no positions the size
        model = mimjax.load(path, image_size=NATIVE)
        assert model.module.heads == HEADS
        near(f"official {name}", model.encode(SQUARE, "all"), theirs(pixels(SQUARE))[0])
        (tmp_path / "config.json").write_text('{"rope_theta": 30.0}')
        with pytest.raises(ConfigError, match=r"rope_theta 30, but .* holds other frequencies"):
            mimjax.load(path)
        (tmp_path / "config.json").unlink()
    else:
        model = mimjax.load(path, heads=HEADS)
        near(f"official {name}", model.encode(SQUARE, "all"), theirs(pixels(SQUARE))[0])
        # files of training: a teacher, and blocks in chunks that keep their numbers
        chunks = {k.replace("blocks.0.", "blocks.0.0."): v for k, v in state.items()}
        wrapped = {f"backbone.{k}": torch.tensor(v) for k, v in chunks.items()}
        torch.save({"teacher": wrapped | {"dino_head.x": torch.ones(1)}}, tmp_path / "teacher.pth")
        same(load.read_file(str(tmp_path / "teacher.pth")), state)
    save_file(state | {"cls_norm.weight": np.ones(WIDTH, np.float32)}, path)
    with pytest.raises(ConfigError, match=r"1 keys have no place in the encoder .*: cls_norm"):
        mimjax.load(path, heads=HEADS)


def test_official_dinov2_moves_the_points_of_its_positions(file_of, tmp_path):
    """DINOv2 without registers asks torch for grid + 0.1 rows, as DINO does."""
    _, path = file_of("Dinov2")
    state = load_file(path)
    save_file(official(state, "register_tokens"), tmp_path / "dinov2.safetensors")
    module = mimjax.load(tmp_path / "dinov2.safetensors", heads=HEADS, image_size=(24, 24))
    pos = torch.tensor(state["embeddings.position_embeddings"])
    table = pos[:, 1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
    table = F.interpolate(table, scale_factor=(6.1 / 4, 6.1 / 4), mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(1, 36, WIDTH)
    wanted = torch.cat([pos[:, :1], table], dim=1).numpy()
    found = module.params["encoder"]["pos_embed"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ no encoders of methods
CAPI = ["registers", *[f"encoder.blocks.0.residual1.fn.{x}_proj.weight" for x in "qkv"]]
OTHERS = {  # the layout and what its encoder has, by the file
    "Dinov2": ("dinov2_transformers", "layers and tokens of its own"),
    "Dinov2WithRegisters": ("dinov2_transformers", "layers and tokens of its own"),
    "DINOv3ViT": ("dinov3_transformers", "layers and tokens of its own"),
    "DINOv3ViT, SwiGLU": ("dinov3_transformers_gated", "layers and tokens of its own"),
    "IJepa": ("vit_transformers", "no class token"),
    "Pixio": ("vit_transformers", "3 class tokens"),
    "capi": ("capi", "layers and tokens of its own"),
    "I-JEPA": ("mae", "no class token"),
    "CLIP": ("clip_hf_bare", "clip"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_convert_and_init_from_name_file_and_layout(name, file_of, tmp_path):
    layout, what = OTHERS[name]
    path = tmp_path / "model.safetensors"
    if name in MODELS:
        path = file_of(name)[1]
    elif name == "capi":
        save_file({k: np.zeros((4, 4), np.float32) for k in CAPI}, path)
    elif name == "I-JEPA":
        state = V.VisionTransformer(img_size=NATIVE, **IJEPA).state_dict()
        save_file({k: v.numpy() for k, v in state.items()}, path)
    else:
        config = T.CLIPVisionConfig(**SIZES, **HIDDEN, hidden_act="quick_gelu")
        T.CLIPVisionModel(config).save_pretrained(tmp_path)
    like = {"encoder": {"cls_token": np.zeros((1, 1, WIDTH))}}
    c = helpers.small("mae")
    for key, call in {
        "init_from": lambda: weights.read_params(str(path), like, "init_from", print),
        "--model": lambda: published.fit(c, published.open_file(str(path), "auto", "--model")[0]),
    }.items():
        with pytest.raises(ConfigError) as error:
            call()
        text = str(error.value)
        assert text.startswith(f"{key}: {path} ")
        assert f"layout '{layout}'" in text
        assert what in text
        assert "\n" not in text
