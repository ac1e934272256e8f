"""Compiled programs are kept and read again; a folder that cannot be used is named, and no more."""

import logging
import os
import shutil
import subprocess
import sys
import warnings

import helpers
import jax
import jax.numpy as jnp
import pytest

from mimjax.storage import compile_cache


@pytest.fixture
def quiet(monkeypatch):
    """No folder of the tests' own, and afterwards that folder again."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(compile_cache, "SHORTEST", 0.0)
    kept = jax.config.jax_persistent_cache_min_compile_time_secs
    with warnings.catch_warnings():
        yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)
    compile_cache._use(before)


def compiled(number):
    """Compile a small program that no other test compiles."""
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    return jax.jit(lambda x: x * number + number).lower(shape).compile()


def entries(folder):
    return sorted(p.name for p in folder.rglob("*-cache"))


def test_the_cache_begins_without_a_line_of_jax(tmp_path, quiet, caplog):
    caplog.set_level(logging.INFO)  # as absl sets it in programs
    compile_cache.enable(str(tmp_path), print)
    assert not [r for r in caplog.records if r.name.startswith("jax")]


def test_programs_are_kept_in_a_folder_of_this_processor(tmp_path, quiet):
    compiled(0.125)  # before the folder is known
    said = []
    place = compile_cache.enable(str(tmp_path / "here"), said.append)
    assert place == str(tmp_path / "here" / compile_cache.processor())
    compiled(0.375)
    first = entries(tmp_path)
    assert first
    jax.clear_caches()
    compiled(0.375)
    assert entries(tmp_path) == first
    assert compile_cache.enable(None, said.append) is None
    compiled(0.625)
    assert entries(tmp_path) == first
    assert not said


def test_a_damaged_program_is_compiled_again(tmp_path, quiet):
    compile_cache.enable(str(tmp_path), print)
    compiled(0.875)
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as seen:
        compile_cache.enable(str(tmp_path), print)
        assert float(compiled(0.875)(jnp.ones(3))[0]) == 1.75
    assert not seen


def test_a_folder_that_cannot_be_used_is_said_once(tmp_path, quiet, monkeypatch):
    said = []
    (tmp_path / "file").write_text("")
    assert compile_cache.enable(str(tmp_path / "file"), said.append) is None
    assert said == [
        f"compile_cache_dir: {tmp_path}/file: Not a directory; compiled programs are not kept"
    ]
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert compile_cache.enable(str(tmp_path / "full"), said.append) is None
    assert "1 MiB free of 512 needed" in said[1]
    compiled(1.125)
    assert not entries(tmp_path)
    assert len(said) == 2


def test_what_was_read_longest_ago_goes_first(tmp_path, quiet, monkeypatch):
    folder = tmp_path / compile_cache.processor()
    folder.mkdir()
    name = lambda i: f"jit_step-{i:064x}-cache"
    (folder / "my-cache").write_bytes(bytes(1000))  # a name that JAX does not give
    for i in range(4):
        path = folder / name(i)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + i, 1000 + i))
    monkeypatch.setattr(compile_cache, "LIMIT", 250)
    compile_cache.enable(str(tmp_path), print)
    assert entries(tmp_path) == [name(2), name(3), "my-cache"]


def test_the_folder_of_jax_wins(tmp_path, quiet, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert compile_cache.enable("auto", print) == str(tmp_path / "jax")
    assert not (tmp_path / "jax").exists()


def test_the_user_s_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.default() == str(tmp_path / "mimjax" / "compiled")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.default() == str(tmp_path / ".cache" / "mimjax" / "compiled")


@pytest.mark.gate
def test_two_runs_at_once_share_a_folder(tmp_path):
    """Two processes that start together both end, and a third compiles no train step."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(helpers.ROOT)}

    def start(name):
        words = ["-m", "mimjax", "train", "--config=mae:demo", f"--workdir={tmp_path / name}"]
        words += ["--config.steps=2", "--config.optimizer.schedule.warmup_steps=1"]
        words += ["--config.eval.every=0", "--config.eval.probes=None"]
        return subprocess.Popen([sys.executable, *words], env=env, cwd=tmp_path)

    both = [start("one"), start("two")]
    assert [p.wait() for p in both] == [0, 0]
    kept = entries(tmp_path / "cache")
    assert any("train_step" in name for name in kept)
    assert start("three").wait() == 0
    assert entries(tmp_path / "cache") == kept
