"""What the border makes of settings that hang together."""

from unittest import mock

import helpers
import pytest

from mimjax.evaluators.error import MaskedError
from mimjax.run import setup
from mimjax.run.sections import base, load
from mimjax.schema import section


@pytest.mark.parametrize(("accum", "given", "rows"), [(1, None, 16), (4, None, 4), (4, 12, 12)])
def test_evaluations_take_the_micro_batch(accum, given, rows, monkeypatch):
    """Accumulation is asked for where a whole batch does not fit; it would not fit here either."""
    c = helpers.small("mae", **{"accum": accum, "eval.error": section(MaskedError())})
    c.eval.batch_size = given or base().eval.batch_size
    asked = mock.Mock()
    monkeypatch.setattr(setup, "Bench", asked)
    monkeypatch.setattr(setup, "Subset", mock.Mock())
    monkeypatch.setattr(setup, "make_evaluators", mock.Mock(return_value=[]))
    monkeypatch.setattr(setup, "check_test", mock.Mock())
    setup.make_evals(c, mock.Mock(), mock.Mock(), None)
    assert asked.call_args.kwargs["batch_size"] == rows


def test_one_gpu_evaluates_what_it_trains_on_at_once():
    c = load("recipes/one_gpu:images=128")
    assert c.eval.batch_size == base().eval.batch_size
    assert c.batch_size // c.accum == 128
