"""A trained encoder for the tests of transfer."""

import helpers
import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The workdir of a small MAE, with statistics and heads of its own."""
    place = tmp_path_factory.mktemp("mae")
    c = helpers.small("mae", **{"method.encoder.heads": 2, "steps": 1, "method.encoder.width": 16})
    words = [*helpers.flags(c), "--config.method.mean=(0.4,0.4,0.4)"]
    helpers.answer("train", *words, f"--workdir={place}", check=True, devices=1)
    return place
