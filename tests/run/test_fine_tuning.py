"""`mimjax evaluate --protocols=fine_tune`: which recipe, how it is scaled, and what it gives."""

import json
import shutil
import types
from typing import Any

import helpers
import jax
import numpy as np
import pytest

import mimjax
from mimjax.data import make_source
from mimjax.errors import ConfigError
from mimjax.inference.encoders import Network, settings_of
from mimjax.inference.samples import Subset
from mimjax.models.vit import ViT
from mimjax.run import fine_tuning
from mimjax.run.cells import Cell
from mimjax.run.fine_tuning import FineTuned
from mimjax.sharding import make_mesh

ENCODER = ViT(width=16, depth=2, heads=2, patch=2, image_size=(8, 8))
CELL = Cell("pretrained", "fine_tune", "all", 3)


def evaluation(task="", images=1000, name="folder", module=ENCODER, layout="", devices=1) -> Any:
    """What the protocol asks of an evaluation, without a data set."""
    network = Network(module, (0.5,) * 3, (0.25,) * 3, layout=layout)
    config = settings_of(network.mean, network.std, module).unlock()
    config.task = task
    model = types.SimpleNamespace(config=config, network=network, module=module)
    row = types.SimpleNamespace(name="pretrained", network=network, model=model)
    mesh = types.SimpleNamespace(size=devices)
    return types.SimpleNamespace(
        model=model,
        rows=[row],
        row=lambda _: row,
        labels=("all",),
        seeds=(3,),
        train=types.SimpleNamespace(name=name),
        places=lambda _: (np.arange(images), np.arange(0)),
        mesh_for=lambda _: mesh,
        about={"model": "a/run"},
    )


def config(protocol=None, images=1000, **asked: Any):
    return (protocol or FineTuned()).config(evaluation(images=images, **asked), CELL, images)


@pytest.mark.parametrize(
    ("asked", "method", "said"),
    [
        ({"task": "mimjax.methods.bootmae:BootMAE"}, "bootmae", ""),
        ({"task": "mimjax.methods.caev2:CAEv2"}, "caev2", ""),
        ({"layout": "cae_older"}, "cae", ""),
        ({"task": "my.py:Own"}, "mae", "my.py:Own".partition(":")[2]),
        ({"layout": "dinov2"}, "mae", "dinov2"),
    ],
)
def test_the_recipe_is_that_of_the_method_or_is_said_to_be_another_s(asked, method, said):
    chosen = fine_tuning.choice(evaluation(**asked))
    assert chosen == (f"fine_tune:method={method},size=ti", method, said)
    wide = fine_tuning.choice(evaluation(**asked, module=ENCODER.clone(width=800)))
    assert wide.text.endswith("size=l")
    demo = fine_tuning.choice(evaluation(**asked, name="shifted_digits"))
    assert demo.text.endswith("size=ti,demo,data=shifted_digits")


def test_batch_rate_and_warm_up_follow_the_images():
    boot: dict[str, Any] = {"task": "mimjax.methods.bootmae:BootMAE"}
    c = config(**boot)  # 5e-3 for 2048 images, 20 of 100 epochs of warm-up
    assert (c.batch_size, c.epochs) == (56, 100)
    assert c.optimizer.lr == pytest.approx(5e-3 * 56 / 2048)
    assert c.optimizer.schedule.warmup_epochs == 20
    assert config(images=10**6, **boot).batch_size == 1024
    assert config(images=40, **boot).batch_size == 32
    short = config(FineTuned(epochs=10), **boot)
    assert (short.epochs, short.optimizer.schedule.warmup_epochs) == (10, 2)
    demo = config(FineTuned(epochs=10), name="digits", images=160)  # 600 steps, 60 of warm-up
    assert (demo.steps, demo.optimizer.schedule.warmup_steps) == (None, 5)
    three = config(images=1000, devices=3, **boot)
    assert three.batch_size % 6 == 0  # pairs on three devices
    # what is given stays as it is
    words = "batch_size=64", "optimizer.lr=1e-3", "optimizer.schedule.warmup_epochs=3"
    given = config(FineTuned(epochs=10, fine_tune=words), **boot)
    assert (given.batch_size, given.optimizer.lr) == (64, 1e-3)
    assert given.optimizer.schedule.warmup_epochs == 3
    # no test image is read beside training, and the model's network and images are the run's
    assert not [k for k, x in c.eval.items() if hasattr(x, "items")]
    assert (c.seed, c.init_from, c.method.mean) == (3, "a/run", (0.5,) * 3)
    assert (c.method.encoder.width, c.method.encoder.heads) == (16, 2)


def test_a_layer_decay_needs_numbered_blocks(monkeypatch):
    monkeypatch.setattr(type(ENCODER), "layer_of", lambda *_: None)
    asked = evaluation()
    asked.mesh_for = lambda _: make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"^--fine_tune: method.layer_decay: 0.65, but ViT has n"):
        FineTuned().check(asked)
    FineTuned(fine_tune=("method.layer_decay=None",)).check(asked)


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run


def test_cells_are_those_of_their_runs_and_are_kept(run, tmp_path):
    """Two rates are tried, and the number is what the chosen run's model classifies."""
    out = tmp_path / "out"
    words = [f"--model={run}", f"--output={out}", "--labels=5", "--count=150", "--epochs=2"]
    words += ["--protocols=knn,fine_tune", "--rates=1,3", "--ks=1", "--rows=pretrained,raw_pixels"]
    made = helpers.answer("evaluate", *words, check=True, devices=1)
    content = json.loads((out / "evaluation.json").read_text())
    cell = next(c for c in content["cells"] if c["protocol"] == "fine_tune")
    assert [c["protocol"] for c in content["cells"]] == ["knn", "fine_tune", "knn"]
    assert (cell["learned"], cell["chosen_on"], cell["tested"]) == (40, 10, 150)
    assert "| raw pixels " in made.stdout
    (table_row,) = [x for x in made.stdout.splitlines() if x.startswith("| raw pixels ")][:1]
    assert table_row.rstrip(" |").endswith("-")
    rate = cell["setting"].split(",")[0].replace(" ", "_")
    place = out / "fine_tune" / cell["key"] / rate
    assert "weights: loaded: 16 arrays" in (place / "train.log").read_text()
    assert not (place / "table.md").exists()
    # the run as a model
    rows = json.loads((place / "config.json").read_text())
    assert (rows["seed"], rows["batch_size"], rows["epochs"]) == (0, 32, 2)
    model, test = mimjax.load(place), make_source("digits", "test")
    part = Subset(test, 150)
    images = [np.asarray(part.image(i)) for i in range(150)]
    right = model.classify(images).argmax(1) == part.labels()
    assert cell["top1"] == pytest.approx(100 * right.mean())
    # a lost cell is computed again from where its run is
    shutil.copytree(out, tmp_path / "copy")
    content["cells"].remove(cell)
    (out / "evaluation.json").write_text(json.dumps(content))
    again = helpers.answer("evaluate", *words, check=True, devices=1)
    assert "2 of 3 results are kept" in again.stdout
    later = json.loads((out / "evaluation.json").read_text())["cells"]
    without = lambda c: {k: v for k, v in c.items() if k != "seconds"}
    assert without(next(c for c in later if c["protocol"] == "fine_tune")) == without(cell)
    assert "continued from step 2 of this workdir" in (place / "train.log").read_text()
