"""Published heads against the official code's logits; every golden state dict loads."""

import jax
import numpy as np
import pytest
from golden_checks import CHECKS
from golden_checks.files import official
from golden_checks.pending import PENDING
from safetensors.numpy import save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import encoders, published

METAS = official()
# What is read of which kind. A key: there stand the logits of its head (of trained probes those
# after the last step, with running statistics). "encoder": it stands inside a file of another
# program, or is a teacher's tower. "refused": blocks with positions of their own; as plain blocks
# they would be another function.
READ = {
    "mae.finetune": "out/logits",
    "mae.linear_probe": "out/eval_logits_after",
    "bootmae.finetune": "out/logits",
    "cae.finetune": "out/logits",
    "cae.linear_probe": "out/logits_eval_after",
    "mcmae.finetune": "out/logits",
    **dict.fromkeys(("cae.attentive_probe", "cae.fpn"), "encoder"),
    "pixio.encoder": "encoder",
    **dict.fromkeys(("teacher.dino", "teacher.dino_interp", "teacher.clip_hf"), "encoder"),
    **dict.fromkeys(("teacher.clip_openai", "clip.hf", "clip.openai"), "encoder"),
    **dict.fromkeys(("mcmae.det_backbone", "mcmae.seg_backbone"), "refused"),
}


def files(wanted):
    """Files of which `wanted` (a function of what READ says) is to be read."""
    found = [path for path, m in METAS.items() if wanted(READ.get(m["kind"], ""))]
    return pytest.mark.parametrize("path", found, ids=lambda p: p.stem)


def tensors(z):
    """The state dict; trained probes have the head that they ended with."""
    state = {k[3:]: z[k] for k in z.files if k.startswith("sd/")}
    final = {k[6:]: z[k] for k in z.files if k.startswith("final/head")}
    if any(k.startswith("head.1.") for k in final):  # a BatchNorm and a linear layer
        state = {k: v for k, v in state.items() if not k.startswith("head.")} | final
    return {k: np.ascontiguousarray(v) for k, v in state.items()}


def heads(path):
    c = METAS[path]["config"]
    return c.get("heads") or c["num_heads"]


def test_there_are_files():
    """A folder without any would prove nothing."""
    assert any(READ.get(m["kind"], "").startswith("out/") for m in METAS.values())


def test_kinds_are_known():
    assert READ.keys() <= CHECKS.keys() | PENDING


@files(lambda what: what.startswith("out/"))
def test_logits_of_published_heads(path, tmp_path):
    z, kind = np.load(path), METAS[path]["kind"]
    save_file(tensors(z), tmp_path / "tuned.safetensors")
    held, _ = published.open_file(str(tmp_path / "tuned.safetensors"), "auto", "path")
    net, params, _, lines = encoders.read(held, published.Choice(heads(path)))
    images = z["in/images"]
    images = images[0] if images.ndim == 5 else images  # of several steps
    # float images are normalized already
    logits = jax.jit(net.logits)(params, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, z[READ[kind]], rtol=0, atol=5e-5)
    unread = [line for line in lines if "not read" in line]
    assert all("relative_position_index" in line or "num_batches" in line for line in unread), lines
    if net.pooled:
        model = mimjax.load(tmp_path / "tuned.safetensors", heads=heads(path))
        with pytest.raises(ConfigError, match=r"has no norm for tokens .* allowed: pool='mean'"):
            model.encode(np.zeros((1, *model.image_size, 3), np.uint8), pool="all")


@files(lambda what: what == "encoder")
def test_encoders_of_every_other_file(path, tmp_path):
    """Sizes are derived and every tensor of the trunk fits; what is not read is said."""
    z, kind = np.load(path), METAS[path]["kind"]
    save_file(tensors(z), tmp_path / "f.safetensors")
    model = mimjax.load(tmp_path / "f.safetensors", heads=heads(path))
    c = METAS[path]["config"]
    width = c.get("embed_dim") or c.get("width") or c.get("dim") or c["dims"][-1]
    images = np.random.default_rng(0).integers(0, 256, (1, *model.image_size, 3), np.uint8)
    assert model.encode(images, layer=-1).shape == (1, width)
    assert model.num_classes == 0
    if kind.startswith("cae."):
        assert "keys not read" in model.report[-1]
    with pytest.raises(ConfigError, match="an encoder and no decoder; allowed: the workdir of"):
        model.reconstruct(images)


@files(lambda what: what == "refused")
def test_backbones_of_another_function_are_refused(path, tmp_path):
    save_file(tensors(np.load(path)), tmp_path / "f.safetensors")
    with pytest.raises(
        ConfigError, match=r"keys in blocks .* have no place .* blocks3\.0\.attn\.rel"
    ):
        mimjax.load(tmp_path / "f.safetensors", heads=heads(path))
