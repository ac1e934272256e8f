"""Batches as a pure function of (seed, step): whatever the hosts, workers, threads or restarts."""

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers
import numpy as np
import pytest
import stubs
from PIL import Image

from mimjax.data import Augment, Pipeline, eval_batches, make_source
from mimjax.data import prefetch as prefetch_module
from mimjax.errors import RunError
from mimjax.rng import example_seed
from mimjax.task import ConfigError, View

VIEWS = {"image": View((16, 24)), "target_image": View((8, 12), "lanczos")}
ROOT = Path(__file__).parents[2]


def half_masked(source, epoch):
    """Eight patches, four of them masked."""
    mask = np.zeros(8, bool)
    mask[source.sample(range(8), 4)] = True
    return {"mask": mask}


def make(length=50, batch_size=12, seed=3, views=VIEWS, sample=half_masked, repeats=1, **augment):
    source = make_source("synthetic", "train", length=length, side=20)
    augment = Augment(**augment)
    return Pipeline(source, views, augment, sample, batch_size, seed, repeats=repeats)


def assert_same(a, b):
    assert list(a) == list(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert a[key].dtype == b[key].dtype


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of 5 rows: batches of 12 are put together from unequal parts."""
    monkeypatch.setattr(prefetch_module, "PIECE_ROWS", 5)


def test_keys_shapes_and_types():
    batch = make().batch(0)
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (12, 16, 24, 3)),
        "target_image": ("uint8", (12, 8, 12, 3)),
        "label": ("int32", (12,)),
        "index": ("int32", (12,)),
        "mask": ("bool", (12, 8)),
    }
    assert (batch["mask"].sum(1) == 4).all()
    assert (batch["label"] == batch["index"] % 10).all()
    assert "mask" not in make(sample=None).batch(0)


def several(source, epoch):
    """Arrays of several kinds and shapes, one of them with a whole number as its epoch."""
    ids = np.asarray(source.sample(range(8), 3), np.int32)
    return {"ids_v": ids, "masks": np.eye(2, 8, dtype=bool), "epoch": np.int32(epoch)}


@pytest.mark.parametrize("workers", [0, helpers.gate(1)])
def test_all_that_the_sampler_makes_enters_the_batch(workers):
    """Arrays keep their types and shapes; the sampler knows the epoch, which is 0 in evaluation."""
    pipeline = make(sample=several)
    with pipeline.iterate(3, 5, workers=workers) as iterator:
        last, first = list(iterator)
    made = {key: (last[key].dtype.name, last[key].shape) for key in ("ids_v", "masks", "epoch")}
    assert made == {
        "ids_v": ("int32", (12, 3)),
        "masks": ("bool", (12, 2, 8)),
        "epoch": ("int32", (12,)),
    }
    assert last["epoch"].tolist() == [0] * 12
    assert first["epoch"].tolist() == [1] * 12
    seed = example_seed(3, 1, int(first["index"][5]), "mask")
    np.testing.assert_array_equal(first["ids_v"][5], several(random.Random(seed), 1)["ids_v"])
    with eval_batches(pipeline.source, VIEWS, 50, several, 3, workers=workers) as iterator:
        (whole,) = iterator
    assert set(whole["epoch"]) == {0}
    seed = example_seed(3, 0, 7, "eval_mask")
    np.testing.assert_array_equal(whole["ids_v"][7], several(random.Random(seed), 0)["ids_v"])


@pytest.mark.parametrize("name", ["image", "label", "index", "weight"])
def test_a_sampler_cannot_replace_what_the_batch_has(name):
    pipeline = make(sample=lambda source, epoch: {name: np.zeros(2)})
    line = f"(?m)^sample: it makes {name}, and the batch has .*; allowed: other names$"
    with pytest.raises(ConfigError, match=line):
        pipeline.batch(0)
    with pytest.raises(ConfigError, match=line):
        next(eval_batches(pipeline.source, VIEWS, 6, pipeline.sample, 3))


def test_batch_is_pure_and_depends_on_seed_and_epoch():
    assert_same(make().batch(5), make().batch(5))
    pipeline = make()
    later = pipeline.batch(9)
    pipeline.batch(0)
    assert_same(later, pipeline.batch(9))
    other = make(seed=4).batch(5)
    assert (other["index"] != make().batch(5)["index"]).any()
    # The same example in another epoch has another crop and mask.
    whole = make(length=12)
    first, second = whole.batch(0), whole.batch(1)
    a, b = np.argsort(first["index"]), np.argsort(second["index"])
    assert (a != b).any()
    differs = [(first["image"][i] != second["image"][j]).any() for i, j in zip(a, b)]
    assert all(differs)
    assert (first["mask"][a] != second["mask"][b]).any()


def test_an_epoch_has_every_example_at_most_once():
    pipeline = make()
    assert pipeline.steps_per_epoch == 4
    for epoch in range(2):
        seen = np.concatenate([pipeline.batch(4 * epoch + s)["index"] for s in range(4)])
        assert len(set(seen)) == 48
    left_out = [
        set(range(50)) - set(np.concatenate([pipeline.batch(4 * e + s)["index"] for s in range(4)]))
        for e in range(3)
    ]
    assert len({tuple(sorted(x)) for x in left_out}) > 1


def test_examples_do_not_depend_on_the_batch_size():
    """An example's crop and mask depend on (seed, epoch, index) alone."""
    small, large = make(batch_size=12).batch(0), make(batch_size=48).batch(0)
    np.testing.assert_array_equal(large["index"][:12], small["index"])
    np.testing.assert_array_equal(large["image"][:12], small["image"])
    np.testing.assert_array_equal(large["mask"][:12], small["mask"])


def test_repeats_are_new_crops_and_masks_of_one_image():
    """The first of them is the example as it is without repeats; an epoch keeps its length."""
    plain, pipeline = make(batch_size=48), make(repeats=3)
    assert pipeline.steps_per_epoch == 4
    batches = [pipeline.batch(step) for step in range(4)]
    seen = np.stack([b["index"] for b in batches]).reshape(4, 3, 4)
    # rows that are next to each other, as a host's, are different images
    np.testing.assert_array_equal(seen, np.repeat(seen[:, :1], 3, 1))
    np.testing.assert_array_equal(seen[:, 0].ravel(), plain.batch(0)["index"][:16])
    once = plain.batch(0)
    for name in ("image", "target_image", "mask"):
        made = np.stack([b[name] for b in batches]).reshape(4, 3, 4, *once[name].shape[1:])
        first = once[name][:16].reshape(made[:, 0].shape)
        np.testing.assert_array_equal(made[:, 0], first)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            differs = (made[:, a] != made[:, b]).reshape(16, -1).any(1)
            assert differs.mean() > 0.9  # two masks may agree
    later = pipeline.batch(5)
    assert (later["image"] != batches[1]["image"]).any()


@pytest.mark.parametrize("batch_size", [12, 16, 20])
def test_repeats_are_those_of_timms_sampler(batch_size, monkeypatch):
    """A batch has what its four processes read together, whether or not 3 divides it."""
    import torch  # not above: worker processes, which import this file, need none

    sampler = stubs.alone("timm.data.distributed_sampler")
    pipeline = make(length=100, batch_size=batch_size, repeats=3)
    for epoch in (0, 2):
        order = make(length=100, batch_size=100).indices(epoch)
        monkeypatch.setattr(
            sampler.torch, "randperm", lambda n, order=order, **_: torch.tensor(order)
        )
        ranks = [
            list(sampler.RepeatAugSampler(range(100), 4, rank, selected_round=0))
            for rank in range(4)
        ]
        share = batch_size // 4
        for step in range(pipeline.steps_per_epoch):
            read = [i for rank in ranks for i in rank[step * share : (step + 1) * share]]
            ours = pipeline.indices(epoch * pipeline.steps_per_epoch + step)
            assert sorted(ours) == sorted(read)


def test_evaluation_repeats_nothing():
    pipeline = make(repeats=3)
    pipeline.train = False
    assert pipeline.batch(1)["index"].tolist() == list(range(12, 24))


@pytest.mark.parametrize(("hosts", "repeats"), [(2, 1), (3, 1), (4, 1), (3, 5)])
def test_host_slices_make_the_global_batch(hosts, repeats):
    pipeline = make(repeats=repeats)
    share = 12 // hosts
    for step in (2, 5):
        parts = [pipeline.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        whole = pipeline.batch(step)
        assert_same(whole, {key: np.concatenate([p[key] for p in parts]) for key in whole})


def test_the_views_and_the_mask_do_not_change_the_crop():
    """Adding a tokenizer's view or a mask leaves the pixels of "image" alone."""
    plain = make(views={"image": VIEWS["image"]}, sample=None).batch(1)
    np.testing.assert_array_equal(plain["image"], make().batch(1)["image"])


@pytest.mark.parametrize(("threads", "repeats"), [(1, 1), (3, 1), (3, 3)])
def test_iterate_equals_batch_from_any_step(threads, repeats):
    pipeline = make(repeats=repeats)
    for start in (0, 3, 7):
        with pipeline.iterate(start, 9, threads=threads) as iterator:
            got = list(iterator)
        assert len(got) == 9 - start
        for step, batch in zip(range(start, 9), got):
            assert_same(batch, pipeline.batch(step))
            assert type(batch["image"]) is np.ndarray
    assert list(pipeline.iterate(4, 4)) == []


@pytest.mark.gate
@pytest.mark.parametrize("workers", [1, helpers.gate(2)])
def test_workers_change_nothing(workers):
    pipeline = make(color_jitter=0.4)
    rows = slice(3, 12)  # two pieces per step and seven steps: workers get unequal shares
    with pipeline.iterate(2, 9, rows=rows, workers=workers) as iterator:
        got = list(iterator)
    assert len(got) == 7
    for step, batch in zip(range(2, 9), got):
        assert_same(batch, pipeline.batch(step, rows))
        assert type(batch["image"]) is np.ndarray


@pytest.mark.gate
def test_a_closure_as_sampler_reaches_workers():
    count = 3
    pipeline = make(sample=lambda source, epoch: {"mask": np.arange(8) < count})
    with pipeline.iterate(0, 1, workers=1) as iterator:
        assert_same(next(iterator), pipeline.batch(0))


@pytest.mark.gate
def test_close_ends_worker_processes():
    pipeline = make(length=5000)
    iterator = pipeline.iterate(0, 400, workers=1)
    next(iterator)
    assert multiprocessing.active_children()
    iterator.close()
    iterator.close()
    assert not multiprocessing.active_children()
    assert list(iterator) == []


@pytest.mark.gate
def test_errors_in_workers_and_threads_reach_the_caller(tmp_path):
    for n in range(8):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{n}.png")
    (tmp_path / "5.png").write_bytes(b"broken")
    source = make_source("folder", "train", path=str(tmp_path), test_fraction=0)
    pipeline = Pipeline(source, VIEWS, Augment(), None, 8, 0)
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"5.png: not a readable image"):
            next(pipeline.iterate(0, 1, workers=workers))


KILLED = """
import os, sys, time
from mimjax.data import Augment, Pipeline, make_source
from mimjax.task import View

if __name__ == "__main__":
    source = make_source("synthetic", "train", length=100000, side=8)
    pipeline = Pipeline(source, {"image": View((8, 8))}, Augment(), None, 8, 0)
    iterator = pipeline.iterate(0, 10000, workers=2)
    next(iterator), next(iterator)  # one from each worker
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def alive(pid):
    try:
        # A zombie is dead; in a container nobody may collect it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.gate
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    )
    try:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.time() + 10
    while any(alive(pid) for pid in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def test_pickled_pipeline_is_small():
    pipeline = make(length=5000)
    before = pipeline.batch(0)
    packed = pickle.dumps(pipeline)
    assert len(packed) < 2000  # the permutation stays behind
    assert_same(pickle.loads(packed).batch(0), before)


def test_fingerprint():
    base = make().fingerprint
    assert make().fingerprint == base
    assert make(seed=9).fingerprint == base  # the seed is the run's own
    named = {"image": VIEWS["image"], "image_8x12_lanczos": VIEWS["target_image"]}
    assert make(views=named).fingerprint == base  # a name decides no pixel
    assert base == "965df8497bb1b5b9"  # of checkpoints that exist
    others = [
        make(length=51),
        make(batch_size=10),
        make(views={"image": View((16, 16))}),
        make(views={**VIEWS, "image": View((16, 24), "bilinear")}),
        make(views={**VIEWS, "target_image": View((8, 12), "lanczos", crop="other")}),
        make(flip=0.0),
        make(repeats=2),
        make(repeats=3),
    ]
    assert len({base, *[other.fingerprint for other in others]}) == 9


def test_not_training_means_source_order_and_center_crops():
    pipeline = make()
    pipeline.train = False
    batch = pipeline.batch(5)
    assert batch["index"].tolist() == list(range(12, 24))
    expected = Augment()(pipeline.source.image(12), VIEWS, np.random.default_rng(0), train=False)
    np.testing.assert_array_equal(batch["image"][0], expected["image"])


def test_errors():
    with pytest.raises(ConfigError, match=r"^batch_size: found 60, but .* 50 images; allowed: 1 "):
        make(batch_size=60).iterate(0, 1, workers=1)
    with pytest.raises(ConfigError, match=r"^batch_size: found 0; allowed: 1 or more"):
        make(batch_size=0)
    for repeats in (0, 13):
        line = f"^data.repeats: {repeats} with batch_size 12; allowed: 1 to 12$"
        with pytest.raises(ConfigError, match=line):
            make(repeats=repeats)
    for rows in (slice(4, 4), slice(0, 8, 2), slice(12, 20)):
        with pytest.raises(ValueError, match="rows"):
            make().batch(0, rows)


@pytest.mark.parametrize("workers", [0, helpers.gate(1)])
def test_eval_batches_cover_the_source_once(workers):
    source = make_source("synthetic", "test", length=17, side=20)
    with eval_batches(source, VIEWS, 6, half_masked, 3, workers=workers) as iterator:
        batches = list(iterator)
    assert [len(b["index"]) for b in batches] == [6, 6, 6]
    joined = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    assert joined["weight"].dtype == np.float32
    assert joined["weight"].tolist() == [1.0] * 17 + [0.0]
    assert joined["index"].tolist() == [*range(17), 16]
    np.testing.assert_array_equal(joined["image"][16], joined["image"][17])
    np.testing.assert_array_equal(joined["mask"][16], joined["mask"][17])
    assert (joined["mask"][0] != joined["mask"][1]).any()
    assert (joined["label"] == joined["index"] % 10).all()
    expected = Augment()(source.image(4), VIEWS, np.random.default_rng(0), train=False)
    np.testing.assert_array_equal(joined["target_image"][4], expected["target_image"])


def test_eval_batches_do_not_depend_on_batch_size_or_hosts():
    source = make_source("synthetic", "test", length=10, side=20)
    (whole,) = eval_batches(source, VIEWS, 10, half_masked, 3)
    parts = [
        list(eval_batches(source, VIEWS, 4, half_masked, 3, rows=rows))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    rows = [{k: np.concatenate([p[s][k] for p in parts]) for k in whole} for s in range(3)]
    joined = {k: np.concatenate([r[k] for r in rows])[:10] for k in whole}
    assert_same(joined, whole)
    (zoomed,) = eval_batches(source, VIEWS, 10, None, 3, augment=Augment(eval_crop=0.5))
    assert (zoomed["image"] != whole["image"]).any()
    assert "mask" not in zoomed


@pytest.mark.parametrize(
    ("code", "name"), [(-7, "SIGBUS: /dev/shm"), (-9, "SIGKILL, as the system"), (3, "exit code 3")]
)
def test_a_worker_that_dies_is_named_with_the_ways_out(code, name):
    """Grain's error has the signal alone, which tells nobody of /dev/shm; ours says what to do."""

    def grain():
        yield {"x": np.zeros(1)}
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. ...")

    class Iterator:
        def __init__(self):
            self.next = grain()

        def __next__(self):
            return next(self.next)

        def close(self):
            pass

    batches = prefetch_module.Prefetched(Iterator())
    next(batches)
    with pytest.raises(
        RunError, match=f"data.workers: a worker process died of {name}.*0 .threads"
    ):
        next(batches)


def test_no_space_for_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(prefetch_module, "SHM", str(tmp_path))
    prefetch_module.check_shm(2)
    monkeypatch.setattr(prefetch_module, "SHM_MIN_FREE", 1 << 60)
    with pytest.raises(RunError, match="2 worker processes pass batches through"):
        prefetch_module.check_shm(2)
