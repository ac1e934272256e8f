"""CLIP's visual tower against transformers, run here, and against files that do not fit."""

import jax
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.models.clip import CLIP_SIZES, CLIPVision, resize_positions
from mimjax.models.vit import ViT
from mimjax.rules import paths
from mimjax.targets.clip import CLIP
from mimjax.torch_io.read import detect, load

NETWORK = CLIPVision(width=40, depth=2, heads=2, patch=4, pos_grid=(3, 3), proj_dim=24)
ENCODER = ViT(patch=4, image_size=(12, 12))


def live(name="CLIPVisionModelWithProjection"):
    """A small model of transformers whose every parameter is random, and its state dict."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=40,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        projection_dim=24,
    )
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (p.ndim == 1) * 0.5)
    return model, {k: v.numpy() for k, v in model.state_dict().items()}


def shapes(target):
    return jax.eval_shape(lambda key: target.init_frozen(key, ENCODER), jax.random.key(0))


def both(target, state):
    """Hidden and read tokens of two random pictures, and these as torch wants them."""
    import torch

    frozen = load.from_torch(state, shapes(target))
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    hidden = jax.jit(lambda f, x: target.encode(f, x, ENCODER))(frozen, images)
    return frozen, hidden, torch.tensor(images.transpose(0, 3, 1, 2))


def test_all_tokens_equal_transformers():
    model, state = live()
    target = CLIP(NETWORK)
    frozen, hidden, images = both(target, state | {"logit_scale": np.ones(())})
    theirs = model.vision_model(images).last_hidden_state
    np.testing.assert_allclose(hidden, theirs.detach(), atol=1e-4)
    theirs = model.visual_projection(model.vision_model.post_layernorm(theirs)).detach().numpy()
    ours = target.read(frozen, hidden)
    assert ours.shape == (2, 10, target.width(ENCODER))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    ids = np.array([0, 7, 2])  # what is read of some tokens is what they have among all
    np.testing.assert_allclose(target.read(frozen, hidden[:, ids]), ours[:, ids], atol=1e-6)


def test_without_projection():
    """The tower of a file that has none, with or without the prefix of its keys."""
    model, state = live("CLIPVisionModel")
    target = CLIP(NETWORK, project=False)
    assert target.width(ENCODER) == 40
    assert detect.detect(state) == "clip_hf_bare"
    frozen, hidden, images = both(target, state)
    theirs = model.post_layernorm(model(images).last_hidden_state).detach()
    np.testing.assert_allclose(target.read(frozen, hidden), theirs, atol=1e-4)
    again = load.from_torch({f"vision_model.{k}": v for k, v in state.items()}, shapes(target))
    jax.tree.map(np.testing.assert_array_equal, frozen, again)
    with pytest.raises(ConfigError, match=r"1 keys .* missing: visual_projection\.weight$"):
        load.from_torch(state, shapes(CLIP(NETWORK)))


def test_positions_of_another_grid():
    """Torch's interpolate (without antialiasing) gives the same, up, down and to a rectangle."""
    import torch

    table = np.random.default_rng(0).normal(size=(1 + 16, 5)).astype(np.float32)
    for grid in ((4, 4), (7, 7), (3, 3), (2, 6)):
        ours = resize_positions(jax.numpy.asarray(table), (4, 4), grid)
        image = torch.tensor(table[1:].T.reshape(1, 5, 4, 4))
        theirs = torch.nn.functional.interpolate(
            image, size=grid, mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(ours[1:], theirs[0].flatten(1).T, atol=1e-6)
        np.testing.assert_array_equal(ours[0], table[0])


def test_files_that_do_not_fit():
    _, state = live()
    like, key = shapes(CLIP(NETWORK)), "vision_model.encoder.layers.1.self_attn.v_proj.weight"
    short = {k: v for k, v in state.items() if k != key} | {"text_model.x": np.zeros(1)}
    with pytest.raises(ConfigError, match=r"^f: 1 keys .*\.1\.self_attn\.v_proj\.weight; .* fit"):
        load.from_torch(short, like, where="f")
    for shape in ((40,), (39, 40)):
        wrong = state | {"visual_projection.weight": np.zeros(shape, np.float32)}
        with pytest.raises(ConfigError, match=r"projection\.weight has shape .* needs \[40, 24\]"):
            load.from_torch(wrong, like)
    deeper = state | {key.replace("layers.1", "layers.2"): state[key]}
    with pytest.raises(ConfigError, match=r"1 keys .* have no place .*layers\.2\.self_attn\.v"):
        load.from_torch(deeper, like)
    other = shapes(CLIP(NETWORK.clone(pos_grid=(2, 2))))
    with pytest.raises(ConfigError, match=r"position_embedding\.weight has shape \[10, 40\]"):
        load.from_torch(state, other)


def test_torchscript_archives_are_refused(tmp_path):
    """OpenAI publishes CLIP as one; half precision, saved as tensors, is read."""
    import torch

    path = str(tmp_path / "ViT-B-16.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ConfigError, match=r"a TorchScript archive .*model\.state_dict\(\)"):
        load.read_file(path)
    _, state = live()
    torch.save({k: torch.tensor(v).half() for k, v in state.items()}, path)
    params = load.from_torch(load.read_file(path), shapes(CLIP(NETWORK)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


# Keys of the visual towers that openai/CLIP publishes, and the parameters that these hold.
@pytest.mark.parametrize(
    ("name", "keys", "count"), [("b16", 152, 86_192_640), ("l14", 296, 303_966_208)]
)
def test_published_sizes(name, keys, count):
    like = shapes(CLIP(CLIPVision(**CLIP_SIZES[name])))
    rows = detect.rows_for("clip_openai", paths(like))
    assert len({k for row in rows for k in row.keys}) == keys
    assert sum(x.size for x in jax.tree.leaves(like)) == count
