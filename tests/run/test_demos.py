"""The data sets of the demos: every method finds its sizes, and what a source and labels allow."""

import helpers
import pytest

from mimjax.errors import ConfigError
from mimjax.run.demos import DATA, DEMOS, find_demo
from mimjax.schema import make_task
from mimjax.task import Clock


@pytest.mark.parametrize("name", sorted(helpers.CONFIGS))
def test_all_methods_see_shifted_digits_as_one_grid(name):
    """Gray images, unmirrored, all labels for the probes; students and tokenizers have 6x6 tokens.

    A tokenizer and a teacher of random weights, as those that are trained, see gray images too.
    """
    path = "'random' = noise" in helpers.CONFIGS[name].__doc__
    c = helpers.CONFIGS[name].get_config(f"demo,data=shifted_digits{',path=random' * path}")
    task = make_task(c, Clock(1500, 12))
    side = getattr(task.encoder, "patch", None) or task.encoder.step
    assert [length // side for length in task.views["image"].size] == [6, 6]
    assert {view.channels for view in task.views.values()} == {c.data.channels} == {1}
    assert (task.mean, task.std) == ((0.5,), (0.25,))
    assert (c.data.augment.flip, c.steps, c.batch_size, c.eval.max_images) == (0, 1500, 64, 8000)
    assert c.optimizer.lr == 2e-3
    assert (c.eval.probes is None) == (name == "dvae")  # it has no encoder of images


def test_what_suits_a_data_set_follows_from_it():
    assert [DEMOS[data].few_patches for data in DATA] == [True, True, False]
    assert [DEMOS[data].decoder_width for data in DATA] == [48, 48, 96]
    assert [DEMOS[data].probes for data in DATA] == [True, True, False]
    with pytest.raises(ConfigError, match=r"^config argument data='cats'; allowed: digits, shifte"):
        find_demo("cats")
