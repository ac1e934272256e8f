"""The encoder's contract: both encoders keep it, and no other file asks which one it has."""

import ast
import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.methods.mae import MAE
from mimjax.methods.mcmae import MCMAE
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT
from mimjax.task import Encoder, Pretraining, pretraining

PACKAGE = helpers.ROOT / "mimjax"
OWN_FILES = {"models/vit.py", "models/conv_vit.py"}
PROPERTIES = {name for name, value in vars(Encoder).items() if isinstance(value, property)}
# settings of one encoder or the other, beside the properties of both
SETTINGS = {"strides", "pos_embed", "rel_pos", "layer_scale", "fuse_layers", "fuse_stages"}
ENCODERS = {
    "vit": ViT(width=16, depth=2, heads=2, patch=4, image_size=(8, 12), fuse_layers=(0, 1)),
    "conv": ConvViT(16, 2, 2, (8, 8), (1, 1), strides=(2, 2, 1), image_size=(8, 12)),
}


def questions(path):
    """Yield what a file asks to find out which encoder it has, with the line."""
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\btokens\[:, 1:\]|\b(task|encoder): Any\b", line):
            yield number, line.strip()
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        last = node.args[1] if len(node.args) > 1 else None
        if node.func.id == "isinstance" and re.search(r"\bViT|ConvViT", ast.unparse(last)):
            yield node.lineno, ast.unparse(node)
        names = PROPERTIES - {"notes"} | SETTINGS | {"encoder"}  # data sources have notes too
        if node.func.id in ("hasattr", "getattr") and getattr(last, "value", "") in names:
            yield node.lineno, ast.unparse(node)


def test_no_file_asks_which_encoder_it_has(tmp_path):
    files = [p for p in PACKAGE.rglob("*.py") if str(p.relative_to(PACKAGE)) not in OWN_FILES]
    wrong = [f"{p.relative_to(PACKAGE)}:{n}: {text}" for p in files for n, text in questions(p)]
    assert not wrong, "\n".join(wrong)
    asked = "isinstance(e, ConvViT)\nhasattr(e, 'strides')\ntokens[:, 1:]\ntask: Any = e\n"
    (tmp_path / "asks.py").write_text(asked)
    assert len(list(questions(tmp_path / "asks.py"))) == 4


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_what_its_properties_say(name):
    encoder: Encoder = ENCODERS[name]
    images = jnp.ones((2, *encoder.image_size, encoder.channels))
    f, variables = jax.jit(encoder.init_with_output)(jax.random.key(0), images)
    tokens = encoder.num_prefix + encoder.num_patches
    assert f.tokens.shape == (2, tokens, encoder.width)
    assert (len(f.blocks), f.prefix) == (encoder.depth, encoder.num_prefix)
    assert encoder.num_patches == encoder.grid[0] * encoder.grid[1] == 6
    assert [g * encoder.patch for g in encoder.grid] == list(encoder.image_size)
    assert encoder.positions == "xy"
    assert encoder.clone(pos_embed="learned").positions == ""
    mean = np.asarray(f.blocks[0])[:, f.prefix :].mean(1)
    np.testing.assert_allclose(f.read("mean", 0), mean, atol=1e-6)
    if f.prefix:
        np.testing.assert_array_equal(f.read("cls"), f.tokens[:, 0])
    else:
        with pytest.raises(ValueError, match="pool=cls: this encoder has no CLS token"):
            f.read("cls")
    # without fused blocks and stages the norm reads the last block
    plain = encoder.plain()
    assert encoder.fuses
    assert not plain.fuses
    params = {k: v for k, v in variables["params"].items() if not k.endswith("_fuse")}
    last = plain.apply({"params": params}, images)
    assert np.abs(np.asarray(last.tokens - f.tokens)).max() > 1e-3
    np.testing.assert_allclose(last.blocks[-1], f.blocks[-1], atol=1e-6)
    with pytest.raises(ValueError, match="images have 2 channels, this encoder reads 3"):
        jax.eval_shape(encoder.init, jax.random.key(0), images[..., :2])


def test_a_task_tells_its_encoder_the_channels():
    five = {"mean": (0.5,) * 5, "std": (0.5,) * 5}
    for task in (MAE(**five), MCMAE(**five)):
        assert isinstance(task, Pretraining)
        assert pretraining(task) is task
        assert task.encoder.channels == 5 == task.views["image"].channels
    tokenizer = helpers.make(helpers.small("dvae"))[0]
    assert not isinstance(tokenizer, Pretraining)
    with pytest.raises(TypeError, match="DiscreteVAE has no encoder of images"):
        pretraining(tokenizer)
