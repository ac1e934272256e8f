"""Workdirs of version 3: CAE's projection stood beside the encoder, and is a part of it now."""

import json
import shutil

import helpers
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from train import inside

from mimjax.inference.workdir import read_run
from mimjax.run import restore
from mimjax.storage import config_version
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.torch_io.read import load

STEPS = 4
OLD = json.loads((helpers.ROOT / "tests/golden/configs_version_3.json").read_text())


def settings_of_3(**method):
    """CAE's demo as version 3 wrote it into config.json, small, with a projection and an average.

    Args:
      method: other settings of the method.
    """
    c = json.loads(json.dumps(OLD["cae:demo"]))
    c |= {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": 2}
    c["eval"] |= {"error": None, "health": None, "pictures": None, "probes": None, "every": 0}
    c["optimizer"]["schedule"]["warmup_steps"] = None
    c["teacher"]["path"] = "random"
    m = c["method"]
    m |= {"align_target": "ema", "ema_decay": 0.5} | method
    m["encoder"] |= {"width": 32, "depth": 1}
    m["regressor"] |= {"width": 16, "depth": 1}
    m["target"]["encoder"] |= {"vocab": 16, "hidden": 16}
    m["target"]["decoder"] |= {"codebook_dim": 8}
    return c | {config_version.KEY: 3}


def today(old):
    """The config that says the same today."""
    return ConfigDict(config_version.upgrade(old, "config.json"))


def apart(networks):
    """Parameters or their slots as version 3 had them."""
    encoder = dict(networks["encoder"])
    return {**networks, "projection": encoder.pop("projection"), "encoder": encoder}


def as_version_3(state):
    """A state as version 3 had it; its average was that of the encoder without the projection."""
    adam = next(i for i, x in enumerate(state.opt_state) if hasattr(x, "mu"))
    slots = list(state.opt_state)
    slots[adam] = slots[adam]._replace(mu=apart(slots[adam].mu), nu=apart(slots[adam].nu))
    ema = {k: v for k, v in apart(state.ema).items() if k != "projection"}
    return state.replace(params=apart(state.params), ema=ema, opt_state=tuple(slots))


@pytest.fixture(scope="module", params=["average", helpers.gate("current")])
def runs(request, tmp_path_factory):
    """Settings of version 3, a whole run, a workdir of version 3 of its first half, and more.

    The state of the first half as it is today, and the program.
    """
    old = settings_of_3(align_target="ema" if request.param == "average" else "current")
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        whole = tmp_path_factory.mktemp("whole")
        run, _ = inside.go(today(old), whole)
        half = Workdir(str(tmp_path_factory.mktemp("half")))
        mine = Checkpoints(Workdir(str(whole), writer=False), read_only=True)
        like = run.setup.program.abstract_state
        restored = mine._restore(2, like, print)
        state = restored.state
        if old["method"]["align_target"] == "current":
            assert state.ema == {}
            state = state.replace(ema={"encoder": {"projection": {}}})
        state = as_version_3(state)
        if old["method"]["align_target"] == "current":
            state = state.replace(ema={})
        assert "projection" in state.params
        writer = Checkpoints(half)
        writer.save(state, restored.data, restored.meta | {"config": old})
        writer.close()
        half.write_text("config.json", json.dumps(old))
        shutil.copy(whole / "teacher.json", half.path / "teacher.json")
        lines = (whole / "metrics.jsonl").read_text().splitlines(True)
        half.write_text("metrics.jsonl", "".join(lines[:2]))
    return old, whole, str(half.path), restored.state, run.setup.program


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


def test_the_whole_state_is_restored(runs):
    """Every array at its path of today; the projection's average is a copy of its parameters."""
    _, _, half, expected, program = runs
    reader = Checkpoints(Workdir(half, writer=False), read_only=True)
    (outcome,), restored = reader.survey(program.abstract_state, print)
    assert not outcome.problem
    state = restored.state
    for name in ("step", "params", "opt_state", "model_state"):
        inside.assert_same(getattr(state, name), getattr(expected, name))
    if state.ema:
        found, projection = dict(state.ema["encoder"]), state.params["encoder"]["projection"]
        inside.assert_same(found.pop("projection"), projection)
        kept = {k: v for k, v in expected.ema["encoder"].items() if k != "projection"}
        inside.assert_same(found, kept)
        copied, own = jax.tree.leaves(state.ema)[0], jax.tree.leaves(state.params)[0]
        assert copied is not own  # the step donates its state


def test_the_run_is_continued(runs, tmp_path):
    """The losses are those of the uninterrupted run."""
    old, whole, half, *_ = runs
    copy = shutil.copytree(half, tmp_path / "run")
    inside.go(today(old), copy)
    log = (copy / "train.log").read_text()
    assert "weights: continued from step 2 of this workdir" in log
    assert "changed since the last start" not in log
    assert helpers.losses(copy) == helpers.losses(whole)
    written = json.loads((copy / "config.json").read_text())
    assert written[config_version.KEY] == config_version.VERSION
    # what is saved now has the paths of today, and is continued as well
    newest = Checkpoints(Workdir(str(copy), writer=False), read_only=True)
    params = newest.read_json(STEPS, "meta")["digests"]["params"]
    assert "encoder/projection/linear/kernel" in params


def test_resume_and_init_from(runs, tmp_path):
    old, whole, half, expected, program = runs
    c = today(old)
    c.resume = half
    inside.go(c, tmp_path / "resumed")
    assert helpers.losses(tmp_path / "resumed")[STEPS] == helpers.losses(whole)[STEPS]
    c = today(old | {"init_from": half})
    state = restore.with_weights(program.init(), c, program, print)
    inside.assert_same(state.params, expected.params)
    if state.ema:
        inside.assert_same(state.ema["encoder"], expected.params["encoder"])


def test_programs_read_its_weights(runs):
    """The whole state, and the encoder alone, which exports write without the projection."""
    _, _, half, expected, _ = runs
    run = read_run(half)
    state = run.state()
    inside.assert_same(state.params, expected.params)
    inside.assert_same(run.encoder(ema=False), expected.params["encoder"])
    if state.ema:
        assert run.encoder(ema=True).keys() == expected.params["encoder"].keys()
    plain = {k: v for k, v in expected.params["encoder"].items() if k != "projection"}
    like = jax.eval_shape(lambda: plain)
    like = jax.tree.map(
        lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), like, plain
    )
    found = run.checkpoints.params({"encoder": like}, 2)["encoder"]
    inside.assert_same(found, plain)


def test_files_of_before_are_read():
    """Files that mimjax exported had the projection beside the encoder, too."""
    from mimjax.torch_io.tables.imports import own_names

    kernel = np.ones((4, 2), np.float32)
    old = {"encoder/norm/scale": np.ones(4), "projection/linear/kernel": kernel}
    assert own_names(old).keys() == {"encoder/norm/scale", "encoder/projection/linear/kernel"}
    assert own_names({"projection/a": kernel}).keys() == {"projection/a"}
    like = {"encoder": {"projection": {"linear": {"kernel": kernel}}}}
    inside.assert_same(load.from_torch(own_names(old), like, "mimjax"), like)
    # a file of the encoder alone, of another layout too: the projection begins at random
    state = {"cls_token": np.ones((1, 1, 4), np.float32)}
    like = {"encoder": {"cls_token": state["cls_token"], "projection": {"linear": kernel}}}
    params, absent = load.take(state, like, "mae", "file")
    assert params["encoder"]["projection"] == {"linear": None}
    assert absent == ["encoder/projection"]
