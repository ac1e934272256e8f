"""Published files in and out: exact round trips, safe loading, clear errors."""

import json

import helpers
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from train import inside

from mimjax.errors import ConfigError
from mimjax.models.vit import sincos_table
from mimjax.schema import section
from mimjax.targets.encoder import EncoderFeatures
from mimjax.torch_io.read import detect, load


def random_params(name):
    task, program = helpers.make(helpers.small(name))
    params = program.abstract_state.params
    rng = np.random.default_rng(0)
    return task, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def trained(c, workdir):
    """What the trainer says, from the command line on; equal programs are made once."""
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        return helpers.answer("train", *helpers.flags(c), f"--workdir={workdir}", check=True).stdout


@pytest.mark.parametrize("name", ["mae", "bootmae"])
def test_round_trip_is_exact(name):
    _, params = random_params(name)
    state = load.to_torch(params, name)
    assert detect.detect(state | {"pos_embed": np.zeros(1)}) == name
    back = load.from_torch(state, params, name)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_pixel_layouts_mean_what_torch_means():
    """A patch convolution and a transposed one, computed by torch, equal our matrix products."""
    import torch

    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    kernel = rng.normal(size=(4 * 4 * 3, 10)).astype(np.float32)
    weight = detect.LAYOUTS["patch_conv"].to_theirs(kernel, 3)
    ours = images.reshape(2, 3, 2, 4, 2, 4).transpose(0, 2, 4, 3, 5, 1).reshape(2, 4, 48) @ kernel
    theirs = torch.conv2d(torch.tensor(images), torch.tensor(weight), stride=4)
    theirs = theirs.flatten(2).transpose(1, 2).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    tokens = rng.normal(size=(2, 4, 10)).astype(np.float32)
    kernel = rng.normal(size=(10, 48)).astype(np.float32)
    weight = detect.LAYOUTS["patch_deconv"].to_theirs(kernel, 3)
    grid = torch.tensor(tokens).transpose(1, 2).reshape(2, 10, 2, 2)
    theirs = torch.conv_transpose2d(grid, torch.tensor(weight), stride=4).numpy()
    ours = (tokens @ kernel).reshape(2, 2, 2, 4, 4, 3).transpose(0, 5, 1, 3, 2, 4)
    np.testing.assert_allclose(ours.reshape(2, 3, 8, 8), theirs, atol=1e-4)


def test_missing_keys_and_shapes_are_named():
    _, params = random_params("mae")
    state = load.to_torch(params, "mae")
    short = {k: v for k, v in state.items() if k != "blocks.1.norm1.weight"}
    with pytest.raises(ConfigError, match=r"1 keys .* missing: blocks\.1\.norm1\.weight"):
        load.from_torch(short, params, "mae", "init_from: f.pth")
    wrong = state | {"norm.weight": np.zeros(7, np.float32)}
    with pytest.raises(ConfigError, match=r"norm\.weight has shape \[7\], encoder/norm/scale"):
        load.from_torch(wrong, params, "mae")


def test_the_other_method_s_positions_are_refused():
    """MAE's table is BootMAE's transposed: without this check a file would load and be wrong."""
    _, params = random_params("mae")
    state = load.to_torch(params, "mae")
    for order, fits in (("xy", True), ("yx", False)):
        table = sincos_table((4, 4), 32, order)
        state["pos_embed"] = np.concatenate([np.zeros((1, 32), np.float32), table])[None]
        if fits:
            load.from_torch(state, params, "mae")
        else:
            with pytest.raises(ConfigError, match="pos_embed is not the fixed sine-cosine table"):
                load.from_torch(state, params, "mae")


def test_a_place_for_learned_positions_may_hold_the_fixed_ones_alone():
    """Fine-tuned files of CAE do; a table that was learned is another network's."""
    _, params = random_params("cae")
    encoder = {k: v for k, v in params["encoder"].items() if k not in ("mask_token", "projection")}
    state = load.to_torch({"encoder": encoder}, "beit")
    for rows, fits in ((sincos_table((4, 4), 32, "yx"), True), (np.ones((16, 32)), False)):
        state["pos_embed"] = np.concatenate([np.zeros((1, 32)), rows])[None].astype(np.float32)
        read = lambda: load.from_torch(state, {"encoder": encoder}, "beit", "f", (4, 4), "yx")
        if fits:
            read()
        else:
            with pytest.raises(ConfigError, match=r"pos_embed is not .* \(it is 'learned'\)"):
                read()


def test_files(tmp_path):
    """.pth with a wrapper, half precision, .safetensors; pickled objects are refused."""
    import torch

    class Evil:
        def __reduce__(self):
            return print, ("this must never run",)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    torch.save({"model": {"a": torch.tensor(x).half()}, "epoch": 3}, tmp_path / "a.pth")
    out = load.read_file(str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(out["a"], x)
    assert out["a"].dtype == np.float32
    save_file({"a": x}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(load.read_file(str(tmp_path / "a.safetensors"))["a"], x)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="pickled objects, which mimjax never loads"):
        load.read_file(str(tmp_path / "evil.pth"))
    with pytest.raises(ConfigError, match="no such file"):
        load.read_file(str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match=r"allowed: \.safetensors"):
        load.read_file(str(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    "name", [pytest.param("mae", marks=pytest.mark.slow), helpers.gate("bootmae")]
)
def test_init_from_a_published_file_and_from_a_workdir(name, tmp_path):
    """A file with the encoder alone leaves the decoder random, which is said."""
    _, params = random_params(name)
    save_file(load.to_torch(params, name), tmp_path / "full.safetensors")
    encoder = load.to_torch({"encoder": params["encoder"]}, name)
    table = sincos_table((4, 4), 32, "xy" if name == "mae" else "yx")
    encoder["pos_embed"] = np.concatenate([np.zeros((1, 32), np.float32), table])[None]
    save_file(encoder, tmp_path / "encoder.safetensors")
    # No learning: what the checkpoint holds after a step is what was read.
    c = helpers.small(
        name, **{"steps": 1, "optimizer.base_lr": 0.0, "optimizer.schedule.min_lr": 0.0}
    )

    def run(source, folder):
        c.init_from = str(source)
        out = trained(c, tmp_path / folder)
        return out, helpers.final_params(tmp_path / folder, c)

    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    out, full = run(tmp_path / "full.safetensors", "one")
    same(full, params)
    out, again = run(tmp_path / "one", "two")
    assert f"from {tmp_path / 'one'}" in out
    same(again, params)
    c.method.encoder.image_size = (12, 8)
    out, larger = run(tmp_path / "encoder.safetensors", "larger")
    assert "positions resized from 4x4 to 6x4 patches" in out
    same(larger["encoder"], params["encoder"])
    c.init_from = None
    assert "continued from step 1 of this workdir" in trained(c, tmp_path / "larger")
    c.method.encoder.image_size = (8, 8)
    out, partial = run(tmp_path / "encoder.safetensors", "three")
    assert "not in the file: random" in out
    same(partial["encoder"], params["encoder"])
    others = [k for k in params if k != "encoder"]
    assert all(np.any(partial[k]["norm"]["scale"] != params[k]["norm"]["scale"]) for k in others)
    copied = "moving average of encoder: begins as a copy of these weights"
    assert (copied in out) == (name == "bootmae")


@pytest.mark.gate
def test_features_of_a_frozen_checkpoint_as_target(tmp_path):
    """MAE on the features of an encoder that an earlier run of ours made (BootMAE Table 9)."""
    c = helpers.small("mae", steps=1)
    trained(c, tmp_path / "teacher")
    del c.method["pixel_target"]
    c.method.pixel_target = section(EncoderFeatures(layer=-1, path=str(tmp_path / "teacher")))
    out = trained(c, tmp_path / "student")
    assert f"weights: all of encoder from {tmp_path / 'teacher'}" in out
    kept = json.loads((tmp_path / "student/config.json").read_text())["method"]["pixel_target"]
    assert kept["network"]["width"] == c.method.encoder.width  # brought by the workdir
    c.method.pixel_target.path = "random"
    out = trained(c, tmp_path / "noise")
    assert "WARNING: method.pixel_target.path=random" in out
