"""`mimjax export` on a run's workdir, what it refuses, and the page's example."""

import dataclasses
import importlib.metadata
import os
import re
import shlex
import sys
import types

import exports
import helpers
import jax
import numpy as np
import pytest
import stubs

import mimjax
from mimjax.errors import ConfigError
from mimjax.methods.parts import Average
from mimjax.programs import export as program
from mimjax.schema import section
from mimjax.storage import outputs, settings
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.torch_io.read import load

STEPS = (3, 5)

PLACE = "runs/bootmae_shifted_digits_0"  # what docs/export.md names
MODEL = f"--model={PLACE}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a workdir of BootMAE's demo, as the trainer leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("exports")
    c = helpers.CONFIGS["bootmae"].get_config("demo")
    _, trained = helpers.make(c)
    workdir = Workdir(str(folder / PLACE))
    workdir.write_text("config.json", settings.config_json(c))
    checkpoints = Checkpoints(workdir)
    state = trained.init()
    for step in STEPS:
        move = lambda x, by=step: x + 0.01 * by if x.ndim else x
        state = state.replace(
            step=np.int32(step),
            params=jax.tree.map(move, state.params),
            ema={"encoder": jax.tree.map(lambda x: 0.5 * x, state.params["encoder"])},
        )
        checkpoints.save(jax.device_put(state), {"step": step, "fingerprint": ""}, {})
    checkpoints.close()
    return folder


def call(*args):
    """The program in this process."""
    helpers.program("export", *args)


def real_torchvision():
    """Whether there is one, and no empty package in its place."""
    return any(importlib.metadata.packages_distributions().get("torchvision", []))


@pytest.mark.gate
def test_as_a_real_process(run):
    """Transformers verify the file; that timm is missing is said, with the remedy."""
    workdir = f"--model={run / PLACE}"
    out = helpers.run("export", workdir, "--format=hf", f"--output={run / 'real'}")
    assert re.search(r"\nverified: max \|difference\| [\d.e-]+ \(bound .* transformers", out.stdout)
    assert out.stdout.endswith(f'transformers.AutoModel.from_pretrained("{run / "real"}")\n')
    assert sorted(os.listdir(run / "real")) == [
        *("config.json", "model.safetensors", "preprocessor_config.json"),
    ]
    output = f"--output={run / 'one.safetensors'}"
    out = helpers.run("export", workdir, "--format=timm", output, "--overwrite")
    missing = "written, not verified: pip install 'mimjax[timm]' to "
    said = "verified: " if real_torchvision() else missing
    assert f"\n{said}" in out.stdout


def test_a_library_that_fails_while_it_is_imported(run, tmp_path, monkeypatch, capsys):
    """Timm fails so where torchvision is of another build than torch: the file is kept."""
    (tmp_path / "timm.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.chdir(run)
    call(MODEL, "--format=timm", f"--output={tmp_path / 'a.safetensors'}")
    said = "not verified: timm cannot be imported here: torchvision::nms does not exist (read back"
    assert said in capsys.readouterr().out
    assert (tmp_path / "a.safetensors").exists()


@pytest.mark.gate
def test_page(run, monkeypatch, capsys):
    """The first commands and the script of the page on exports, as they stand there."""
    stubs.replace("torchvision")
    text = (helpers.ROOT / "docs/export.md").read_text()
    commands = re.search(r"```\n(.*?)```", text, re.S)[1].strip().splitlines()
    script = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(run)
    for command in commands:
        command, name, *args = shlex.split(command)
        assert (command, name) == ("mimjax", "export")
        call(*args)
        assert "verified: " in capsys.readouterr().out
    exec(script, {})
    said = capsys.readouterr().out
    assert "pooled features torch.Size([4, 96]) tokens torch.Size([4, 17, 96])" in said


@pytest.mark.gate
def test_the_printed_line_is_the_next_step(run, monkeypatch, capsys):
    """What is printed after `next:` runs as it is, and the sizes in it are the run's."""
    stubs.replace("torchvision")
    monkeypatch.chdir(run)
    for output in ("next.pth", "next_folder"):
        call(MODEL, "--format=timm", f"--output={output}")
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2] == "next:"
        scope = {}
        exec(f"import timm\n{lines[-1]}", scope)
        assert scope["model"].blocks[0].attn.num_heads == 4
        assert output == "next.pth" or scope["model"].pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
        assert "4 heads" in " ".join(lines)
        assert any("timm drops this file's norm" in line for line in lines)


def test_fine_tuning_from_a_folder_keeps_the_norm(run, monkeypatch):
    """Timm with a new head: the norm after mean pooling is that of pretraining, which token's is
    not (timm would drop it without an error).
    """
    stubs.replace("torchvision")  # before timm is imported
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(run)
    call(MODEL, "--format=timm", "--pool=avg", "--output=avg_folder")
    model = timm.create_model("local-dir:avg_folder", pretrained=True, num_classes=10)
    want = load.read_file("avg_folder/model.safetensors")["fc_norm.bias"]
    assert np.abs(want).min() > 0.01
    np.testing.assert_array_equal(model.fc_norm.bias.detach(), want)


def test_a_diverged_run_is_refused(tmp_path):
    job = exports.export("mae", "mae")
    weights = job.params["encoder"] | {"cls_token": np.full((1, 1, 32), np.nan, np.float32)}
    job = dataclasses.replace(job, params={"encoder": weights})
    with pytest.raises(
        ConfigError, match="--format: mae: cls_token holds numbers that are not finite"
    ):
        program.write(job, str(tmp_path / "out.safetensors"))
    assert os.listdir(tmp_path) == []


def test_step_weights_and_overwrite(run, monkeypatch):
    monkeypatch.chdir(run)
    base = [MODEL, "--format=bootmae", "--output=w.safetensors"]
    read = lambda: load.read_file("w.safetensors")["norm.weight"]
    call(*base)
    new = read()
    call(*base, "--step=3", "--overwrite")
    np.testing.assert_allclose(new - read(), 0.05, atol=1e-6)
    call(*base, "--weights=ema", "--overwrite")
    np.testing.assert_array_equal(read(), 0.5 * (new - np.float32(0.05)).round(3))
    call(*base, "--decoder", "--overwrite")
    assert "decode_blocks.0.norm4.weight" in load.read_file("w.safetensors")
    assert [name for name in os.listdir() if "w.safe" in name and name.startswith(".")] == [
        ".w.safetensors.mimjax.json"
    ]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--format=timm2"], "--format: 'timm2'; allowed: timm, hf, "),
        (["--format=cae"], "--format: cae for a ViT with biases of q and v: not supported"),
        (["--format=mmseg", "--output=x.safetensors"], r"--output: .* ends in \.pth or \.pt"),
        (["--format=hf", "--output=x.pth"], "--output: 'x.pth' for --format=hf; allowed: a folder"),
        (["--image_size=31"], "--image_size: 31x31; allowed: multiples of 2"),
        (["--image_size=big"], "--image_size: 'big'; allowed: pixels, as 512 or 384x640"),
        (["--image_size=16", "--decoder"], "--image_size: .* allowed: without --decoder"),
        (["--step=4"], "--step: 4; allowed: 3, 5"),
        (["--weights=ema", "--decoder"], "--weights: ema with --decoder"),
        (["--output=runs"], "--output: .*/runs holds the run; allowed: a path wh"),
        (["--output=."], "--output: .* is the current folder; allowed: a path where nothing"),
        (["--output=mine"], "--output: .*/mine holds a.jpg, which mimjax has no record"),
        ([f"--output={PLACE}/config.json/x"], r"--output: cannot write .*/x \("),
        (["--model=none"], "--model: none is no folder"),
    ],
)
def test_refused_on_the_command_line(run, monkeypatch, args, text):
    """One line, and nothing is written."""
    monkeypatch.chdir(run)
    (run / "mine").mkdir(exist_ok=True)
    (run / "mine/a.jpg").write_text("photograph")
    folder = args[0] in ("--output=runs", "--output=.", "--output=mine")
    formats = ["--format=timm", "--overwrite"] if folder else ["--format=bootmae"]
    output = [] if folder else ["--output=x.pth"]
    if "config.json" in args[0]:
        output, formats = [], ["--format=timm"]
    before = sorted(run.rglob("*"))
    with pytest.raises(ConfigError, match=text):
        call(MODEL, *formats, *output, *args)
    assert sorted(run.rglob("*")) == before


def test_the_table_is_printed(capsys):
    call("--format=list")
    assert capsys.readouterr().out.count("exact") > 25


def test_methods_without_an_average():
    c = helpers.small("mae")
    program_ = helpers.make(c)[1]
    mae = types.SimpleNamespace(
        config=c, task=program_.task, abstract_state=program_.abstract_state
    )
    with pytest.raises(ConfigError, match=r"--weights: ema, but .* keeps no average"):
        program.parameters(mae, True, False)


def test_weights_that_the_evaluators_read_are_the_default(tmp_path, capsys):
    """A method of any kind may keep an average to be evaluated; what was taken is said."""
    c = helpers.small("mae")
    c.method.average = section(Average(("encoder",), evaluate=True))
    workdir = Workdir(str(tmp_path / "run"))
    workdir.write_text("config.json", settings.config_json(c))
    state = helpers.make(c)[1].init()
    state = state.replace(ema=jax.tree.map(lambda x: x + 1.0, state.ema))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, {"step": 0, "fingerprint": ""}, {})
    checkpoints.close()
    online = np.asarray(state.params["encoder"]["norm"]["scale"])
    for words, taken, more in (
        ([], "ema", 1.0),
        (["--weights=online"], "online", 0.0),
        (["--weights=ema"], "ema", 1.0),
        (["--decoder"], "online", 0.0),  # nothing else is averaged
    ):
        output = f"{tmp_path / taken}_{len(words)}{'d' * ('--decoder' in words)}.safetensors"
        call(f"--model={tmp_path / 'run'}", "--format=mae", f"--output={output}", *words)
        np.testing.assert_allclose(load.read_file(output)["norm.weight"], online + more)
        assert f"{taken} weights)" in capsys.readouterr().out
        assert load.read(output).about["weights"] == taken
    read = lambda **options: mimjax.load(tmp_path / "run", **options)
    for options, more in (({}, 1.0), ({"ema": False}, 0.0), ({"ema": True}, 1.0)):
        scale = read(**options).params["encoder"]["norm"]["scale"]
        np.testing.assert_allclose(scale, online + more)
        assert ("moving average" in read(**options).report[0]) == bool(more)


@pytest.mark.parametrize("output", ["deep/out.pth", "deep/out.safetensors", "folder"])
def test_a_full_disk_leaves_nothing(tmp_path, output):
    """Files may grow to 20 kB here: the system refuses the rest, as a full disk does."""
    import resource

    job = exports.export("mae", "timm")
    if output == "folder":
        with outputs.staged(str(tmp_path / output)) as new:
            os.mkdir(new)
            open(f"{new}/earlier", "w").close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"--output: cannot write .*"):
            program.write(job, str(tmp_path / output), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    earlier = [".folder.mimjax.json", "folder", "folder/earlier"]
    assert left == (earlier if output == "folder" else [])


def test_a_folder_takes_the_place_of_another(tmp_path):
    """Two formats into one folder do not mix; a file of the user in it ends that."""
    place = str(tmp_path / "out")
    program.write(exports.export("mae", "timm"), place)
    timm = set(os.listdir(place))
    job = exports.export("mae", "hf")
    with pytest.raises(ConfigError, match=r"out exists \(an earlier output, unchanged\)"):
        program.write(job, place)
    assert set(os.listdir(place)) == timm
    program.write(job, place, overwrite=True)
    assert "preprocessor_config.json" in os.listdir(place)
    assert not {"README.md"} & set(os.listdir(place))
    assert sorted(os.listdir(tmp_path)) == [".out.mimjax.json", "out"]
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out holds notes\.txt, which mimjax has no record"):
        program.write(exports.export("mae", "timm"), place, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
