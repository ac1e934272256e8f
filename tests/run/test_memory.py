"""Out of memory ends a program in one line that names what can be changed."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from mimjax.programs import cli, parser
from mimjax.run import memory
from mimjax.train import loop
from mimjax.train.run import Evaluation

HUGE = 1 << 45  # numbers; no machine has so much, so nothing is allocated
TRAIN = ["--config=configs/mae.py:size=l", "--config.accum=4", "--config.mesh.data=1"]


def a_step():
    """A compiled step that needs more than there is: the error is XLA's own."""
    jax.jit(lambda: jnp.ones(HUGE) * 2)()


def an_evaluation():
    evaluator = Evaluation("error", lambda *_: a_step(), every=500)
    run = mock.Mock(frozen=None)
    run.setup.evaluators = [evaluator]
    loop.evaluate(run, None, 500)


def a_feature_table():
    np.zeros(HUGE)


def end(main, words, monkeypatch, capsys):
    """What a program of these flags says on stderr; it ends with exit code 1."""
    # overrides of a config become flags when it is parsed, found in sys.argv
    monkeypatch.setattr(memory.sys, "argv", ["program", "--workdir=x", *words])
    flags = absl_flags.FlagValues()
    if any(word.startswith("--config") for word in words):
        parser.define(flags)
    absl_flags.DEFINE_bool("debug", False, "", flag_values=flags)
    absl_flags.DEFINE_integer("batch_size", 64, "", flag_values=flags)
    parser.read(["program", *words], flags)
    monkeypatch.setattr(cli, "FLAGS", flags)
    with pytest.raises(SystemExit) as ended:
        cli.guard(main)
    assert ended.value.code == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("main", [a_step, an_evaluation, a_feature_table])
def test_a_run_names_its_settings_and_the_planner(main, monkeypatch, capsys):
    text = end(main, TRAIN, monkeypatch, capsys)
    for part in ("accum above 4", "method.encoder.remat=full", "mesh.fsdp above 1"):
        assert part in text, text
    assert f"mimjax plan {' '.join(TRAIN)} --topology=cpu:{jax.device_count()} " in text
    assert ("in the evaluator 'error' at step 500" in text) == (main is an_evaluation)
    assert ("eval.batch_size" in text) == (main is an_evaluation)
    said = "error: out of device memory: Out of memory allocating 140737488355328 bytes"
    if main is a_feature_table:
        said = "error: out of memory of the host: Unable to allocate 256. TiB for an array"
    assert text.startswith(said), text


def test_a_method_without_remat_is_not_told_to_use_it(monkeypatch, capsys):
    text = end(a_step, ["--config=configs/dvae.py"], monkeypatch, capsys)
    assert "accum above 1" in text
    assert "remat" not in text


def test_a_program_without_a_config_names_its_own_flags(monkeypatch, capsys):
    text = end(a_step, ["--batch_size=32"], monkeypatch, capsys)
    assert text.endswith("; allowed: --batch_size below 32\n"), text
    assert not re.search("accum|fsdp|plan", text)


def test_the_other_errors_of_jax_stay_as_they_are():
    flags = absl_flags.FlagValues()
    error = jax.errors.JaxRuntimeError
    assert memory.explain(error("INTERNAL: a bug"), flags) == ""
    assert memory.explain(RuntimeError("RESOURCE_EXHAUSTED: no error of XLA"), flags) == ""
    gpu = "INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory\nbuffers:\n  1: 3 GiB"
    wrapped = ValueError("cannot restore")
    wrapped.__cause__ = error(gpu)
    text = memory.explain(wrapped, flags)
    assert "CUDA_ERROR_OUT_OF_MEMORY" in text
    assert "\n" not in text


def test_a_config_that_was_given_as_two_words_is_passed_on():
    words = ["--config", "configs/a b.py", "--workdir", "x", "-config.accum=2", "--configs=3"]
    assert memory.typed_config(words) == "--config 'configs/a b.py' -config.accum=2"
