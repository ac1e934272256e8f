"""The one rule of all programs that write where a user says: nothing that is not ours is lost."""

import json
import os
import re
import signal
import subprocess
import sys

import helpers
import pytest

from mimjax.errors import ConfigError
from mimjax.storage import outputs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a folder of photographs."""
    monkeypatch.chdir(tmp_path)
    for i in range(19):
        put(f"mydata/{i}.jpg", f"photograph {i}")
    put("mydata/notes.txt", "mine")
    return tmp_path


def put(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def write(path, text="1", **options):
    """A program with an output of one file, or of two where its name has no suffix."""
    with outputs.staged(path, **options) as new:
        for file in ("model", "deep/config") if "." not in os.path.basename(path) else ("",):
            put(os.path.join(new, file).rstrip("/"), text)


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else None
        for p in folder.rglob("*")
    }


def refused(here, path, match, **options):
    """Check that it is refused with and without the flag, before and after the work."""
    before = tree(here)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=match) as error:
            outputs.check(path, overwrite, hint="--overwrite", **options)
        assert "--overwrite" not in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(ConfigError, match=match):
            write(path, overwrite=overwrite, **options)
    assert tree(here) == before


def test_a_folder_of_the_user_is_never_replaced(here):
    refused(here, "mydata", r"--output: .*/mydata holds 0\.jpg, which mimjax has no record")
    refused(here, "mydata/notes.txt", r"notes\.txt exists, and mimjax has no record")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (".", "is the current folder"),
        ("..", "holds the current folder"),
        ("/", "holds the current folder"),
        ("~", "(is|holds) the home folder"),
        ("mydata/..", "is the current folder"),
        ("link", "is a link to mydata"),
        ("link/", "is a link to mydata"),
        ("nowhere", "is a link to gone"),
        ("here/work", "is the current folder"),
        ("run", "is the run"),
        ("run/checkpoints", "is where the run of .*/run keeps its files"),
        ("run/checkpoints/5/new", "is where the run of .*/run keeps its files"),
        ("run/config.json", "is where the run of .*/run keeps its files"),
        ("run/table.md", "is where the run of .*/run keeps its files"),
        ("run/pictures", "is where the run of .*/run keeps its files"),
        ("gs://bucket/out", "nothing can be written at gs:// here; allowed: a path on this machin"),
        ("gs:/bucket/out", "is no address of a store"),
    ],
)
def test_places_that_are_never_an_output(tmp_path, monkeypatch, path, match):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    put("mydata/a", "mine")
    put("run/config.json", "{}")
    put("run/checkpoints/1/a", "weights")
    os.symlink("mydata", "link")
    os.symlink("gone", "nowhere")
    os.symlink(tmp_path, "here")
    refused(tmp_path, path, f"--output: .*{match}", spare={"the run": "run", "images": None})


def test_new_files_may_lie_beside_those_of_a_run(here):
    put("run/config.json", "{}")
    put("run/checkpoints/1/a", "weights")
    for path in ("run/features.npz", "run/pictures/mine.png", "run/encoder.pth", "mydata/x.npz"):
        write(path)


@pytest.mark.parametrize("path", ["out", "out.npz", "new/deep/out"])
def test_what_is_ours_is_replaced_as_a_whole(here, path):
    write(path)
    with pytest.raises(ConfigError, match=r"exists \(an earlier output, unchanged\); .* --overwri"):
        outputs.check(path, hint="--overwrite")
    with pytest.raises(ConfigError, match=r"unchanged\); allowed: a path where nothing is yet"):
        write(path, "2")
    write(path, "3", overwrite=True)
    files = tree(here / path).values() if "." not in path else [(here / path).read_text()]
    assert set(files) - {None} == {"3"}
    folder = os.path.dirname(path) or "."
    assert sorted(n for n in os.listdir(folder) if "out" in n) == sorted(
        [os.path.basename(path), f".{os.path.basename(path)}.mimjax.json"]
    )


def test_a_file_of_the_user_in_our_folder_stays(here):
    for spoil, match in {
        "out/notes.txt": r"out holds notes\.txt, which mimjax has no record",
        "out/deep/x": r"out holds deep/x, which",
        "out/model": r"out/model was changed after mimjax wrote it",
    }.items():
        write("out")
        put(spoil, "3")  # as long as what was there
        refused(here, "out", match)
        os.rename("out", f"kept of {os.path.basename(spoil)}")
    write("out")
    os.mkdir("out/empty")
    refused(here, "out", "out holds empty, which")
    os.rmdir("out/empty")
    os.symlink("model", "out/link")
    refused(here, "out", "out holds link, which")
    os.unlink("out/link")
    os.unlink("out/model")  # what is missing is not lost by replacing the rest
    write("out", overwrite=True)


def test_a_list_that_belongs_to_another_output_proves_nothing(here):
    write("out.npz")
    put("out.npz", "x")
    refused(here, "out.npz", r"out\.npz was changed after mimjax wrote it")
    os.unlink("out.npz")
    write("out.npz")
    for text in ("", "[]", '{"contents": [{"": [1]}]}', '{"contents": {"": 5}}'):
        put(".out.npz.mimjax.json", text)
        refused(here, "out.npz", r"out\.npz exists, and mimjax has no record")


def test_an_empty_folder_may_become_an_output(here):
    os.mkdir("out")
    write("out")
    assert (here / "out/model").exists()


def fail(path, error, foreign=""):
    """A program that fails in mid-work, or at whose end a file of the user is there."""
    with outputs.staged(path, overwrite=True) as new:
        put(os.path.join(new, "half"), "") if "." not in path else put(new, "half")
        if foreign:
            put(foreign, "came meanwhile")
        if error:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), ConfigError("wrong")])
@pytest.mark.parametrize("path", ["out", "out.npz", "deep/er/out"])
def test_a_failure_leaves_all_as_it_was(here, path, error):
    expected = ConfigError if isinstance(error, OSError) else error
    expected = expected if isinstance(expected, type) else type(expected)
    for _ in range(2):
        before = tree(here)
        with pytest.raises(expected):
            fail(path, error)
        assert tree(here) == before
        write(path, overwrite=True)


@pytest.mark.parametrize("path", ["out", "out.npz"])
@pytest.mark.parametrize("number", range(5))
def test_a_failure_at_any_rename(here, monkeypatch, path, number):
    """A replacement that is interrupted anywhere leaves the old output or the new one, listed."""
    write(path, "1")
    left = [number]

    def fail(real):
        def rename(*args):
            if left[0] == 0:
                left[0] -= 1
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args)

        return rename

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail(os.rename))
        patch.setattr(os, "replace", fail(os.replace))
        try:
            write(path, "2", overwrite=True)
            happened = False
        except KeyboardInterrupt:
            happened = True
    assert happened or number > 2
    outputs.check(path, overwrite=True)
    assert (here / path / ("model" if path == "out" else "")).read_text() in ("1", "2")
    assert not [name for name in os.listdir() if name.endswith(".mimjax")]
    write(path, "3", overwrite=True)


KILLED = """
import os, signal, sys
from mimjax.storage import outputs
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "swap":
    real = os.rename
    os.rename = lambda a, b: kill() if a.endswith("new/out") else real(a, b)
with outputs.staged("out", overwrite=True) as new:
    os.mkdir(new)
    open(new + "/model", "w").write("2")
    if sys.argv[1] == "body":
        kill()
"""


@pytest.mark.parametrize("when", ["body", "swap"])
def test_what_a_kill_leaves_is_cleared_by_the_next_program(here, when):
    write("out")
    env = helpers.environment() | {"PYTHONPATH": str(helpers.ROOT)}
    out = subprocess.run([sys.executable, "-c", KILLED, when], env=env, check=False)
    assert out.returncode == -signal.SIGKILL
    assert (here / "out").exists() == (when == "body")
    if when == "swap":  # it comes back, so without the flag it still is not replaced
        with pytest.raises(ConfigError, match="unchanged"):
            write("out", "3")
        assert (here / "out/model").read_text() == "1"
    write("out", "3", overwrite=True)
    assert (here / "out/model").read_text() == "3"
    assert sorted(os.listdir()) == [".out.mimjax.json", "mydata", "out"]


def test_two_programs_do_not_mix(here):
    with outputs.staged("out") as new:
        os.mkdir(new)
        with pytest.raises(ConfigError, match=r"another program is writing .*/out; allowed: to"):
            write("out", overwrite=True)
        put("out/notes.txt", "came meanwhile")
        put(f"{new}/model", "1")
        with pytest.raises(ConfigError, match="out holds notes"):
            outputs.check("out", overwrite=True)
        os.unlink("out/notes.txt")
        os.rmdir("out")
    assert os.listdir("out") == ["model"]
    with pytest.raises(ConfigError, match="out holds notes"):
        fail("out", None, foreign="out/notes.txt")
    assert (here / "out/model").read_text() == "1"


def test_a_folder_that_looks_like_a_stage_is_left_alone(here):
    put(".out.mimjax/mine", "mine")
    with pytest.raises(ConfigError, match=r"\.out\.mimjax holds mine; allowed: no such folder"):
        write("out")
    assert (here / ".out.mimjax/mine").read_text() == "mine"


def test_pictures_are_drawn_again_and_again(here):
    for data in (b"1", b"2"):
        outputs.check_bytes("a.png")
        outputs.write_bytes("a.png", data)
    assert json.loads((here / ".a.png.mimjax.json").read_text())["contents"][0][""][0] == 1
    put("a.png", "drawn by hand")
    for call in (outputs.check_bytes, lambda path: outputs.write_bytes(path, b"3")):
        with pytest.raises(ConfigError, match=r"a\.png was changed after mimjax wrote it"):
            call("a.png")
    assert (here / "a.png").read_text() == "drawn by hand"


# Who may delete, replace or rename files, each for files of its own; who opens files to write,
# in a stage of `outputs.staged` or in a workdir.
DELETES = {
    "storage/outputs.py",
    "storage/files.py",
    "storage/checkpoints.py",
    "storage/compile_cache.py",
    "data/preparation.py",
}
OPENS = {
    "run/native.py",
    "storage/outputs.py",
    "storage/tables.py",
    "torch_io/write/files.py",
    "storage/files.py",
    "data/bad_files.py",
}


def test_nobody_else_deletes_or_writes():
    package = helpers.ROOT / "mimjax"
    for words, allowed in (
        (r"rmtree|\.unlink\(|os\.(remove|rename|replace|truncate)\(", DELETES),
        (r"""open\([^()]*["']([wxa]|[wxa]b|w\+b)["']""", OPENS),
    ):
        found = [p for p in package.rglob("*.py") if re.search(words, p.read_text())]
        assert {str(p.relative_to(package)) for p in found} <= allowed, words
