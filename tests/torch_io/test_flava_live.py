"""DALL-E's encoder against transformers' FlavaImageCodebook, and files that are refused."""

import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.models.dalle import DallEEncoder
from mimjax.models.vit import ViT
from mimjax.targets.dalle import DallE
from mimjax.torch_io.read import detect, load


@pytest.fixture(scope="module")
def codebook():
    """A small codebook of transformers with random biases, and its state dict."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.FlavaImageCodebookConfig(
        hidden_size=12, vocab_size=40, num_groups=4, num_blocks_per_group=3
    )
    model = transformers.FlavaImageCodebook(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model, {k: v.numpy() for k, v in model.state_dict().items()}


def target(blocks=3):
    return DallE(network=DallEEncoder(n_hid=12, n_blk=blocks, vocab=40))


def frozen(state, target):
    like = jax.eval_shape(lambda k: target.init_frozen(k, ViT()), jax.random.key(0))
    return load.from_torch(state, like)


@pytest.mark.parametrize("prefix", ["", "image_codebook."])
@pytest.mark.parametrize("size", [(24, 40), helpers.gate((16, 16))], ids=str)
def test_logits_and_codes_equal_transformers(codebook, size, prefix):
    import torch

    model, state = codebook
    ours = target()
    weights = frozen({prefix + k: v for k, v in state.items()}, ours)
    images = 3 * np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    hidden = ours.encode(weights, jnp.asarray(images), ViT(patch=8, image_size=size))
    logits = ours.network.apply({"params": weights["dalle"]}, hidden, method="logits")
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    theirs = model.blocks(x).flatten(2).transpose(1, 2).detach().numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))
    ids = model.get_codebook_indices(x).flatten(1)
    np.testing.assert_array_equal(ours.read(weights, hidden), ids)
    assert len(np.unique(ids)) > 2


def test_the_way_back_is_exact(codebook):
    _, state = codebook
    back = load.to_torch(frozen(state, target()), "flava")
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_openais_names_hold_the_same_numbers(codebook):
    """`dall_e` names a tensor without the levels `.group` and `.path`, and calls it w or b."""
    state, like = codebook[1], target()
    short = lambda k: re.sub(r"\.(group|path)(?=\.)", "", k)
    openai = {re.sub(r"\.(w|b)\w+$", r".\1", short(k)): v for k, v in state.items()}
    assert "blocks.group_2.block_1.res_path.conv_4.w" in openai
    assert detect.detect(openai) == "dalle"
    both = frozen(state, like), frozen(openai, like)
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_file_with_more_blocks_than_configured_is_refused(codebook):
    with pytest.raises(ConfigError, match=r"no place in the configured network.*block_3"):
        frozen(codebook[1], target(blocks=2))


def test_openais_pickled_module_gets_one_clear_line(tmp_path):
    path = tmp_path / "encoder.pkl"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(ConfigError) as error:
        load.read_file(str(path))
    text = str(error.value)
    assert "encoder.pkl" in text
    assert "facebook/flava-image-codebook" in text
    assert "\n" not in text


def test_detection():
    marks = {
        "dalle": "blocks.input.w",
        "flava": "blocks.input.weight",
        "flava_full": "image_codebook.blocks.input.weight",
        "dvae": "encoder.0.0.weight",
        "vqkd": "encode_task_layer.0.weight",
    }
    for layout, key in marks.items():
        assert detect.detect([key]) == layout
