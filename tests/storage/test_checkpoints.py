"""What is wrong with a checkpoint is noticed, told apart, and nothing is moved by mistake."""

import json
import shutil

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import inside

from mimjax.errors import ConfigError
from mimjax.evaluators.probes import Probes
from mimjax.run.open import kept_index
from mimjax.schema import section
from mimjax.storage import digests
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.task import initial

# a name of every kind of file that a restore reads, and what is done to it
FILES = ("data/metadata", "meta/metadata", "params/_METADATA", "rest/_METADATA")
FILES += ("params/manifest.ocdbt", "rest/manifest.ocdbt", "params/d/*", "rest/d/*")
FILES += ("params/ocdbt.process_0/d/*", "rest/ocdbt.process_0/d/*", "params/array_metadatas/*")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


def config(**overrides):
    settings = {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 2, "optimizer.lr": 1e-3}
    return helpers.small("mae", **inside.TINY, **settings | overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps, of which the checkpoints 2 and 3 are left."""
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        workdir = tmp_path_factory.mktemp("finished")
        inside.go(config(), workdir)
        return workdir


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        return helpers.make(config())[1]


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def content(folder):
    """Every file but the log and its bytes."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def survey(workdir, program):
    reader = Checkpoints(Workdir(str(workdir), writer=False), read_only=True)
    return reader.survey(program.abstract_state, print)


def spoil(folder, pattern, how):
    """Damage the largest file of a pattern; the byte that is flipped is in its middle."""
    file = max(folder.glob(pattern), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
        return
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("pattern", FILES)
def test_no_damage_is_silent(finished, program, tmp_path, pattern):
    """A file that is cut or has one bit flipped is noticed; a missing one too, where it is read."""
    for how in ("missing", "cut", "flipped"):
        work = tmp_path / how
        (work / "checkpoints").mkdir(parents=True)
        shutil.copytree(finished / "checkpoints/3", work / "checkpoints/3")
        spoil(work / "checkpoints/3", pattern, how)
        (outcome,), restored = survey(work, program)
        if outcome.problem:
            assert outcome.reason
            assert outcome.problem in ("damaged", "unreadable")
        else:  # nothing that counts was lost
            before = survey(finished, program)[1]
            inside.assert_same(restored.state, before.state)
            assert restored.data == before.data
            assert how == "missing", pattern
            assert pattern == "params/array_metadatas/*"


def test_a_digest_knows_every_bit_and_every_place():
    """Host and devices, whole or sharded, and all dtypes are alike in it."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_):
        x = np.arange(24).astype(dtype).reshape(8, 3)
        value = digests.on_host(x)
        assert int(digests.on_device(jax.device_put(x, spread))) == value
        raw = x.tobytes()
        for bit in range(8 * len(raw)) if dtype != jnp.bool_ else range(0, 8 * len(raw), 8):
            other = bytearray(raw)
            other[bit // 8] ^= 1 << (bit % 8)
            assert digests.on_host(np.frombuffer(bytes(other), x.dtype).reshape(x.shape)) != value
    swapped = np.asarray([2.0, 1.0], np.float32)
    assert digests.on_host(swapped) != digests.on_host(swapped[::-1])


def test_a_damaged_one_is_set_aside_and_never_deleted(copy, finished):
    """The run goes on from the one before. Two damaged ones are kept under names of their own."""
    for count in (1, 2):
        spoil(copy / "checkpoints/3", "params/ocdbt.process_0/d/*", "flipped")
        _, state = inside.go(config(), copy)
        assert int(state.step) == 3
        assert len(list((copy / "broken").iterdir())) == count
    said = (copy / "train.log").read_text()
    assert "checkpoint 3 cannot be read: it is damaged (params: " in said
    assert "checkpoint 3: damaged, and moved to broken/3\n" in said
    assert "checkpoint 3: damaged, and moved to broken/3_2\n" in said
    assert said.count("weights: continued from step 2") == 2
    assert helpers.losses(copy) == helpers.losses(finished)


REFUSED = {
    "all damaged": (None, r"its checkpoints cannot be read: 3 .*2 are damaged in all"),
    "none left": (None, r"it holds no checkpoint, but metrics.jsonl speaks of step 3"),
    "folder gone": (None, r"it holds no checkpoint, but metrics.jsonl speaks of step 3"),
    "log alone": (None, r"it holds no checkpoint, but train.log speaks of step 3"),
    "memory": (MemoryError("out of memory"), r"3 cannot be read, .*MemoryError: out of memory"),
    "network": (OSError(5, "Input/output error"), r"3 cannot be read, .*Input/output error"),
    "device": (RuntimeError("RESOURCE_EXHAUSTED: 1 GB"), r"3 cannot be read, .*RESOURCE_EXH"),
    "newer": (None, r"3 was written by a newer mimjax \(its config_version is 99"),
    "structure": (None, r"3 does not fit this run \(.*holds no encoder/extra"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_failed_restore_never_starts_anew(copy, case, monkeypatch, request):
    """An error that names the cause; no file is changed, moved or made."""
    error, words = REFUSED[case]
    if case == "all damaged":
        for step in ("2", "3"):
            spoil(copy / "checkpoints" / step, "rest/manifest.ocdbt", "missing")
    elif case == "none left":
        for step in ("2", "3"):
            shutil.rmtree(copy / "checkpoints" / step)
    elif case in ("folder gone", "log alone"):
        shutil.rmtree(copy / "checkpoints")
    elif case == "newer":
        reseal(copy / "checkpoints/3/meta/metadata", {"config": {"config_version": 99}})
    elif case == "structure":
        add_a_parameter(monkeypatch, request)
    elif error is not None:
        monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", raiser(error))
    if case == "log alone":
        (copy / "metrics.jsonl").unlink()
    before = content(copy)
    with pytest.raises(ConfigError, match=words) as found:
        helpers.begun(config(), copy)
    assert "nothing was changed; allowed: " in str(found.value)
    assert content(copy) == before


def raiser(error):
    def fail(*_, **__):
        raise error

    return fail


def reseal(file, change):
    """A `meta` item with other content and a digest that fits it."""
    meta = json.loads(file.read_text()) | change
    known = {k: v for k, v in meta["digests"].items() if k != "meta"}
    known["meta"] = digests.of_json(meta | {"digests": known})
    file.write_text(json.dumps(meta | {"digests": known}))


def add_a_parameter(monkeypatch, request):
    """Add a parameter, as a later version of the code may do."""
    from mimjax.methods.mae import MAE

    init = MAE.init

    def more(self, key):
        params, state = init(self, key)
        return {**params, "encoder": {**params["encoder"], "extra": jnp.zeros(3)}}, state

    monkeypatch.setattr(MAE, "init", more)
    monkeypatch.setattr(inside, "PROGRAMS", {})
    initial.cache_clear()
    request.addfinalizer(initial.cache_clear)


def test_a_new_start_is_asked_for_and_keeps_what_is_there(copy):
    shutil.rmtree(copy / "checkpoints")
    metrics, settings = (copy / "metrics.jsonl").read_bytes(), (copy / "config.json").read_bytes()
    (copy / "tables").mkdir()
    (copy / "tables/accuracy_0000003.json").write_text("{}")
    _, state = inside.go(config(restart=True), copy)
    assert (copy / "broken/tables/accuracy_0000003.json").exists()  # no report shows it as new
    assert not (copy / "tables").exists()
    assert int(state.step) == 3
    assert (copy / "broken/metrics.jsonl").read_bytes() == metrics
    assert (copy / "broken/config.json").read_bytes() == settings
    assert "weights: random" in (copy / "train.log").read_text()
    # the same command continues: it does not begin anew a second time
    inside.go(config(restart=True), copy)
    assert "restart: True has no effect" in (copy / "train.log").read_text()
    assert not (copy / "broken/metrics.jsonl_2").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_by_itself(tmp_path):
    """A checkpoint of step 0 is whole before the first line is written."""

    def stop(run):
        write = run.log.write

        def fail(step, values):
            write(step, values)
            raise KeyboardInterrupt

        run.log.write = fail

    with pytest.raises(KeyboardInterrupt):
        inside.go(config(checkpoint_every=100), tmp_path, stop)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0"]
    _, state = inside.go(config(checkpoint_every=100), tmp_path)
    assert int(state.step) == 3


def test_a_refused_setting_writes_nothing(copy):
    """An evaluator's setting is no exception, nor a folder that did not exist."""
    before = content(copy)
    for c in (config(**{"eval.probes": section(Probes(ks=(5000,)))}), config(steps=2)):
        with pytest.raises(ConfigError):
            helpers.begun(c, copy)
        assert content(copy) == before
    new = copy.parent / "new"
    with pytest.raises(ConfigError, match=r"eval\.probes\.ks: 5000 or more, but only"):
        helpers.begun(config(**{"eval.probes": section(Probes(ks=(5000,)))}), new)
    assert not new.exists()


@pytest.mark.parametrize("name", ["config.json", "report.html", "table.md"])
def test_a_folder_of_the_user_is_no_workdir(tmp_path, name):
    """Files that a run would replace, and that no run made."""
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=rf"--workdir: .* holds {name}, and no run made it"):
        helpers.begun(config(), tmp_path)
    assert content(tmp_path) == {name: b'{"mine": 1}'}


def test_settings_are_found_in_the_checkpoint(copy, capsys):
    """config.json is gone, damaged, or of a newer mimjax."""
    for text in (None, "{broken"):
        file = copy / "config.json"
        file.unlink() if text is None else file.write_text(text)
        inside.go(config(), copy)
        assert "the settings are read from checkpoint 3" in capsys.readouterr().out
        assert json.loads(file.read_text())["config_version"]
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"method.encoder.width"):
        helpers.begun(config(**{"method.encoder.width": 64}), copy)
    (copy / "config.json").write_text(json.dumps({"config_version": 99}))
    with pytest.raises(ConfigError, match=r"config_version 99; allowed: 1 to"):
        helpers.begun(config(), copy)


def test_damaged_records_are_left_out_and_kept(copy, capsys):
    """Lines without a step, of another kind, in another encoding."""
    file = copy / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b'{"loss": 1}\n[1]\n"\xff\xfe"\n' + whole + b'{"step": 4, "lo')
    damaged = file.read_bytes()
    inside.go(config(), copy)
    assert "metrics.jsonl: 3 damaged lines are left out; the file is kept in" in (
        capsys.readouterr().out
    )
    assert (copy / "broken/metrics.jsonl").read_bytes() == damaged
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    (copy / "data_index.npz").write_bytes(b"no index")
    kept_index(str(copy))
    assert "data_index.npz is damaged: all files are listed anew" in capsys.readouterr().out


def test_another_dtype_is_said(finished, program, capsys):
    like = program.abstract_state
    half = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding)
    reader = Checkpoints(Workdir(str(finished), writer=False), read_only=True)
    reader.survey(like.replace(params=jax.tree.map(half, like.params)), print)
    assert "arrays of params are stored in another type than they are read in" in (
        capsys.readouterr().out
    )
