"""PyTorch's peers of the benchmarks compute the methods: golden losses, and those of mimjax."""

import json
import re
import subprocess
import sys

import helpers
import numpy as np
import pytest
from golden_checks import beit, bootmae, cae, common, files, mae, mcmae, mrmae

from mimjax.task import Clock

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.peers import __main__ as program  # noqa: E402
from benchmarks.peers import exchange, runner  # noqa: E402
from benchmarks.peers.layers import standardize  # noqa: E402

ONCE = Clock(1, 1)
# what the files of CAE and CAE v2 hold and the code does not compute
UNREAD = {"cae": r"alignment_encoder\.", "caev2": r"regresser\.norm\."}


def at_masked(z, name):
    return z[name][z["in/mask"]].reshape(len(z["in/mask"]), -1)


def hidden(z, task):
    visible = task.encoder.num_patches - task.num_masked
    return {"mask": common.mask_from_noise(z["in/noise"], visible)}


def teacher(z):
    features = standardize(torch.from_numpy(z["out/teacher_features"])).numpy()  # the case's norm
    return {"features": features, "looks": z["out/teacher_cls_attn"]}


# {file: (method, its task, what the file gives beside images and mask)}
CASES = {
    "mae_base": ("mae", lambda c: mae.build(c, ONCE), lambda z, t: {}),
    "bootmae_ramp": (
        "bootmae", lambda c: bootmae.build(c, ONCE, c["mask_num"]), lambda z, t: {}
    ),
    "beit_default_sharedrel": (
        "beit", lambda c: beit.build(c), lambda z, t: {"codes": at_masked(z, "in/token_targets")}
    ),
    "cae_proj_oddheads": (
        "cae", lambda c: cae.build(c, ONCE),
        lambda z, t: {"codes": at_masked(z, "in/token_targets")},
    ),
    "caev2_proj_tiny": (
        "caev2", lambda c: cae.build_v2(c, ONCE, False),
        lambda z, t: {"features": z["in/clip_features"]},
    ),
    "pinned/mcmae.pretrain": ("mcmae", lambda c: mcmae.build(c, ONCE), hidden),
    "pinned/mrmae.pretrain_clip": (
        "mrmae", lambda c: mrmae.build(c, ONCE), lambda z, t: teacher(z)
    ),
}  # fmt: skip


def peer_of(name, cls, sdpa=True):
    """A peer with a file's weights, its batch, and the file's loss."""
    z = np.load(files.HERE / f"{name}.npz")
    meta = json.loads(str(z["meta"]))
    method, build, more = CASES[name]
    unread = UNREAD.get(method, "$")
    task = build(meta["config"])
    weights = {k: t.weight for k, t in task.terms.items()}
    if "effective_feature_weight" in meta:
        weights["feature"] = meta["effective_feature_weight"]
    settings = {"method": exchange.settings(task), "weights": weights, "masked": task.num_masked}
    for part in settings["method"].values():  # the file says what they give
        if isinstance(part, dict) and isinstance(part.get("network"), dict):
            net = part["network"]
            net.update({k: v for k, v in {"n_hid": 4, "depth": 1}.items() if k in net})
    model = runner.build(cls, settings, sdpa)
    model.fill({k: v for k, v in runner.tensors(z, "sd").items() if not re.match(unread, k)})
    if average := runner.tensors(z, "ema"):
        model.average.load_state_dict(average, strict=False)
    batch = {"image": z["in/images"]} | ({"mask": z["in/mask"]} if "in/mask" in z.files else {})
    batch |= more(z, task)
    return model, {k: torch.from_numpy(v) for k, v in batch.items()}, float(z["loss/total"])


# transformers' MAE has other names: it is compared with mimjax's loss below
PAIRS = [(k, kind) for k in CASES for kind in runner.METHODS[CASES[k][0]] if kind != "transformers"]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("sdpa", [True, False])
def test_a_peer_has_the_golden_loss(name, kind, sdpa):
    model, batch, loss = peer_of(name, runner.METHODS[CASES[name][0]][kind], sdpa)
    runner.check(model, batch, loss)


def test_a_peer_of_another_function_is_refused():
    model, batch, loss = peer_of("mae_base", runner.METHODS["mae"]["torch"])
    with pytest.raises(AssertionError, match="loss"):
        runner.check(model, batch, loss * 1.001)
    weights = {k: v for k, v in model.state_dict().items() if k != "norm.bias"}
    with pytest.raises(AssertionError, match=r"missing: \['norm.bias'\]"):
        model.fill(weights)


@pytest.mark.parametrize("shape", program.SHAPES)
@pytest.mark.parametrize("method", program.PEERS)
def test_every_method_has_settings_at_every_shape(method, shape):
    c = exchange.config(method, shape, 4)
    assert (c.batch_size, c.dtype, c.method.encoder.get("drop_path", 0.0)) == (4, "float32", 0.0)
    small = method == "mae" and shape == "ti"
    if "decoder" in c.method and "width" in c.method.decoder and shape != "tiny":
        assert c.method.decoder.width == (256 if small else 512)


def test_the_program_knows_the_peers():
    assert {k: tuple(v) for k, v in runner.METHODS.items()} == program.PEERS
    assert tuple(runner.VARIANTS) == program.VARIANTS


@pytest.mark.parametrize("method", helpers.gated(program.PEERS, []))
def test_a_peer_has_mimjax_s_loss_and_gradient(method, tmp_path):
    """With frozen networks and averages, from weights that mimjax drew."""
    case = str(tmp_path / "case.npz")
    exchange.prepare(method, "tiny", 2, case)
    for cls in runner.METHODS[method].values():
        model, batch, _, z = runner.read(case, cls)
        runner.check(model, batch, float(z["loss/total"]), float(z["grad_norm"]))
        assert np.isfinite(runner.prepare(case, cls, runner.Variant())())


@pytest.mark.gate
def test_a_duel_is_played(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.peers", "--methods=bootmae", "--shape=tiny"]
    command += ["--batch=2", "--rounds=2", "--variants=fused", f"--json={out}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = json.loads(out.read_text())
    assert row["fastest_peer"] == "torch-fused"
    assert set(row["contenders"]) == {"mimjax", "torch-fused"}
    assert len(row["contenders"]["mimjax"]["cpu"]) == 2
    losses = [c["loss"] for c in row["contenders"].values()]
    assert abs(losses[0] / losses[1] - 1) < 1e-3
    assert "mimjax / torch-fused" in text


@pytest.mark.gate
def test_the_program_of_an_accelerator_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--methods=mae", "--shape=tiny", "--batch=2"]
    command += ["--steps=2", "--against=eager", f"--output={tmp_path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = json.loads((tmp_path / "gpu.jsonl").read_text())
    assert set(row["seconds"]) == {"mimjax", "eager"}
    assert row["mfu"] > 0
    assert "times as fast as eager PyTorch" in text
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
