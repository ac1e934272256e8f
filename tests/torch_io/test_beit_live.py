"""BEiT against transformers, run here: a random model's file gives the same logits."""

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.masking.block import Block
from mimjax.methods.beit import BEiT
from mimjax.models.dalle import DallEEncoder
from mimjax.models.vit import ViT
from mimjax.targets.dalle import DallE
from mimjax.torch_io.read import detect, load

WIDTH, HEADS, VOCAB, PATCH, SIDE = 36, 3, 50, 4, 16


def live(folder, eps=1e-6, spread=0.3, **options):
    """A small model whose every parameter is random, and the path of its file."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BeitConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        use_mask_token=True,
        layer_norm_eps=eps,
        drop_path_rate=0.1,
        **options,
    )
    model = transformers.BeitForMaskedImageModeling(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(spread * torch.randn(p.shape) + (0.5 if "norm" in name else 0.0))
    model.save_pretrained(folder)
    return model, str(folder / "model.safetensors")


def ours(**options):
    encoder = ViT(
        width=WIDTH,
        depth=2,
        heads=HEADS,
        patch=PATCH,
        image_size=(SIDE, SIDE),
        bias="qv",
        init_scheme="beit",
        use_mask_token=True,
        **options,
    )
    target = DallE(network=DallEEncoder(vocab=VOCAB))
    return BEiT(encoder=encoder, masking=Block(0.4), code_target=target)


def gap(model, path, task):
    """The largest difference of the logits of all patches, and the size of these."""
    import torch

    state = load.read_file(path)
    assert detect.detect(state) == "beit_transformers"
    params = load.from_torch(state, jax.eval_shape(task.init, jax.random.key(0))[0])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    mask = rng.random((2, (SIDE // PATCH) ** 2)) < 0.4

    @jax.jit
    def run(params, images, mask):
        f = task.encoder.apply({"params": params["encoder"]}, images, None, mask)
        head = {"params": params["head"]}
        return task.network("head").apply(head, {"all": f.tokens[:, 1:]})["all"]

    logits = run(params, jnp.asarray(images), jnp.asarray(mask))
    with torch.no_grad():
        theirs = model(
            torch.tensor(images.transpose(0, 3, 1, 2)), bool_masked_pos=torch.tensor(mask)
        ).logits.numpy()
    return np.abs(np.asarray(logits) - theirs).max(), np.abs(theirs).max()


def test_shared_relative_bias_and_absolute_positions(tmp_path):
    model, path = live(
        tmp_path,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.1,
    )
    error, size = gap(model, path, ours(pos_embed="learned", rel_pos="shared", layer_scale=0.1))
    assert error < 1e-4 < size


def test_relative_bias_of_each_block(tmp_path):
    model, path = live(tmp_path, use_relative_position_bias=True, layer_scale_init_value=0.1)
    error, size = gap(model, path, ours(pos_embed="none", rel_pos="per_block", layer_scale=0.1))
    assert error < 1e-4 < size


def test_without_layer_scale(tmp_path):
    model, path = live(tmp_path, use_relative_position_bias=True, layer_scale_init_value=0.0)
    error, size = gap(model, path, ours(pos_embed="none", rel_pos="per_block"))
    assert error < 1e-4 < size


def test_the_published_epsilon_of_norms_does_not_matter(tmp_path):
    """Published configs say 1e-12, mimjax has 1e-6: the same to 1e-4 unless tokens are tiny."""
    model, path = live(
        tmp_path, eps=1e-12, use_shared_relative_position_bias=True, layer_scale_init_value=0.1
    )
    error, _ = gap(model, path, ours(pos_embed="none", rel_pos="shared", layer_scale=0.1))
    assert error < 1e-4
