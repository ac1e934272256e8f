"""Files that transformers writes here, read by `mimjax.load`: features, logits and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch_io.live import show

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import published
from mimjax.models.vit import sincos_table
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD
from mimjax.targets.clip import CLIP_MEAN, CLIP_STD
from mimjax.task import TrainState

SIDE, PATCH, WIDTH = 16, 4, 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "image_size": SIDE, "patch_size": PATCH}
ViT = SIZES | {"layer_norm_eps": 1e-6}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def live(model, folder):
    """The model with random parameters, and the path of its file."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fixed = "mae" in type(model).__name__.lower() and "position_embeddings" in name
            if not fixed and "decoder_pos_embed" not in name:
                p.copy_(0.2 * torch.randn(p.shape) + (1.0 if "norm.weight" in name else 0.0))
    model.eval().save_pretrained(folder)
    return model, folder / "model.safetensors"


def pixels(mean=IMAGENET_MEAN, std=IMAGENET_STD):
    x = (IMAGES / 255.0 - np.asarray(mean)) / np.asarray(std)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


FOUND = {}  # test -> the largest difference


@pytest.fixture(scope="module", autouse=True)
def show_table(request):
    """Show the largest difference of each kind of file."""
    yield
    show(request, f"read by mimjax, written by transformers {transformers.__version__}", FOUND)


@pytest.fixture
def near(request):
    """Assert that ours is theirs, and keep the difference for the table."""

    def check(ours, theirs, atol=1e-4):
        theirs, name = theirs.detach().numpy(), request.node.name
        FOUND[name] = max(FOUND.get(name, 0.0), float(np.abs(ours - theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)

    return check


def test_vit(tmp_path, near):
    config = transformers.ViTConfig(**ViT)
    theirs, path = live(transformers.ViTModel(config, add_pooling_layer=False), tmp_path)
    model = mimjax.load(path, heads=4)
    assert model.config.method.encoder.mlp_ratio == 1.5
    out = theirs(pixels(), output_hidden_states=True)
    near(model.encode(IMAGES, pool="all"), out.last_hidden_state)
    near(model.encode(IMAGES, pool="all", layer=0), out.hidden_states[1])
    assert "num_attention_heads" in (tmp_path / "config.json").read_text()  # which says the heads
    near(mimjax.load(path).encode(IMAGES, pool="all"), out.last_hidden_state)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="--heads=12"):
        mimjax.load(path)


def test_vit_with_a_classifier(tmp_path, near):
    config = transformers.ViTConfig(**ViT, num_labels=5)
    theirs, path = live(transformers.ViTForImageClassification(config), tmp_path)
    model = mimjax.load(path, heads=4)
    assert model.num_classes == 5
    near(model.classify(IMAGES), theirs(pixels()).logits)


@pytest.mark.parametrize("version", [4, 5])
def test_vit_mae(tmp_path, near, version):
    """Both generations of names: features, and the loss with the same noise."""
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2}
    sizes |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    # MAE's decoder has MLPs of four times its width, as all published ones
    config = transformers.ViTMAEConfig(**ViT, **sizes, norm_pix_loss=True, mask_ratio=0.75)
    theirs = transformers.ViTMAEForPreTraining(config)
    if not theirs.decoder.decoder_pos_embed.any():  # 5.23 leaves them zero in a new model
        _, path = live(theirs, tmp_path / "zeros")
        with pytest.raises(ConfigError, match="decoder_pos_embed is not the fixed sine-cosine"):
            mimjax.load(path, heads=4, decoder_heads=2)
        table = torch.tensor(sincos_table((4, 4), 16, "xy"))
        theirs.decoder.decoder_pos_embed.data[0, 1:] = table
    theirs, path = live(theirs, tmp_path)
    state = load_file(path)
    assert any(k.startswith("decoder.decoder_encoder.layer.") for k in state)  # version 5
    if version == 4:
        old = lambda k: k.replace("decoder_encoder.layer", "decoder_layers")
        save_file({old(k): v for k, v in state.items()}, path)
    model = mimjax.load(path, heads=4, decoder_heads=2)
    assert model.config.task.endswith(":MAE")
    theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.0
    noise = torch.arange(16.0).expand(3, 16)  # nothing is masked and the order stays
    near(model.encode(IMAGES, pool="all"), theirs.vit(pixels(), noise=noise).last_hidden_state)
    theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.75
    noise = np.random.default_rng(1).random((3, 16)).astype(np.float32)
    mask = noise.argsort(1).argsort(1) >= 4
    held, _ = published.open_file(str(path), "auto", "path")
    c = mimjax.load(path, heads=4, decoder_heads=2).config.copy_and_resolve_references()
    found = published.fit(c, held, None, published.Choice())
    key = jax.random.key(0)

    @jax.jit
    def loss(params, batch):
        state = TrainState(jnp.int32(0), params, {}, {}, ())
        prepared, _ = found.task.prepare(state, {}, batch, key, False)
        return found.task.loss(params, {}, prepared, key, 0, False).total

    ours = loss(found.params, {"image": IMAGES, "mask": mask})
    near(ours, theirs(pixels(), noise=torch.tensor(noise)).loss, 1e-5)


def test_beit_with_a_classifier(tmp_path, near):
    """Relative positions show the heads; features as the head reads them."""
    config = transformers.BeitConfig(
        **SIZES, layer_norm_eps=1e-6, num_labels=5, use_relative_position_bias=True
    )
    theirs, path = live(transformers.BeitForImageClassification(config), tmp_path)
    model = mimjax.load(path)
    assert model.config.method.encoder.rel_pos == "per_block"
    near(model.classify(IMAGES), theirs(pixels()).logits)
    near(model.encode(IMAGES), theirs.beit(pixels()).pooler_output)


def test_clip(tmp_path, near):
    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=24)
    theirs, path = live(transformers.CLIPVisionModelWithProjection(config), tmp_path)
    model = mimjax.load(path, heads=4)
    out = theirs(pixels(CLIP_MEAN, CLIP_STD), output_hidden_states=True)
    near(model.encode(IMAGES, pool="cls"), out.image_embeds)
    near(model.encode(IMAGES, pool="all", layer=0), out.hidden_states[1])
    assert model.config.method.mean == CLIP_MEAN
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"number of heads cannot be told .* --heads=12"):
        mimjax.load(path)
