"""A data source in a file of the user's, named by the config."""

import os

import helpers
import numpy as np
import pytest

from mimjax import plugs, schema
from mimjax.data import Augment, Pipeline, configured, make_source
from mimjax.data.sources import find_source
from mimjax.errors import ConfigError
from mimjax.methods.mae import MAE
from mimjax.models.vit import ViT
from mimjax.task import Clock

USERS = """
import dataclasses

import numpy as np
from PIL import Image

from mimjax.data.images import fingerprint
from mimjax.data.sources import SourceConfig
from mimjax.values import Count


@dataclasses.dataclass(frozen=True)
class Tiles(SourceConfig):
    READS = ("path",)

    size: Count = 16

    def open(self, split, files):
        return TilesSplit(split, self.size, files.path or "")


@dataclasses.dataclass
class TilesSplit:
    split: str
    size: int
    path: str

    name = "tiles"
    num_classes = 2
    label_name = "shade"

    @property
    def fingerprint(self):
        return fingerprint([self.split, self.size, self.path])

    def __len__(self):
        return 24

    def image(self, index):
        return Image.new("RGB", (self.size, self.size), (10 * index, 0, 0))

    def label(self, index):
        return index % 2
"""


@pytest.fixture
def users_file(tmp_path):
    (tmp_path / "my.py").write_text(USERS)
    return str(tmp_path / "my.py")


def config_with(users_file, **settings):
    c = helpers.small("mae", **{"data.source": find_source(f"{users_file}:Tiles")(), **settings})
    c.data.source.size = 12
    return c


def test_a_source_of_a_user_s_own_file(users_file, monkeypatch):
    """The path is relative to where the program runs; the section keeps the absolute one."""
    c = config_with(users_file)
    assert c.data.source.type == f"{users_file}:Tiles"
    assert c.data.source.digest == plugs.digest_of(find_source(f"{users_file}:Tiles"))
    monkeypatch.chdir(os.path.dirname(users_file))
    assert find_source("my.py:Tiles") is find_source(f"{users_file}:Tiles")
    train, test = (configured.make_split(c, split) for split in ("train", "test"))
    assert (train.image(3).size, train.label(3), len(train)) == ((12, 12), 1, 24)
    assert train.fingerprint != test.fingerprint
    c.data.path = "/tiles"  # which this one reads
    assert configured.make_split(c, "train").fingerprint != train.fingerprint
    c.data.max_pixels = 9
    with pytest.raises(ConfigError, match=r"^data.max_pixels: 9, but source 'tiles' does not read"):
        configured.make_split(c, "train")
    c.data.source.size = 0
    with pytest.raises(ConfigError, match=r"^data.source.size: 0; allowed: 1 or more$"):
        configured.make_split(c, "train")


@pytest.mark.gate
def test_a_worker_process_reads_a_user_s_own_source(users_file):
    """The worker starts anew, and imports the file before it unpickles what the file defines."""
    c = config_with(users_file, batch_size=8)
    data = configured.make_data(c, schema.make_task(c, Clock(1, 1)), "train")
    with data.iterate(0, 2, workers=1) as batches:
        made = list(batches)
    for step, batch in enumerate(made):
        np.testing.assert_array_equal(batch["image"], data.batch(step)["image"])
        np.testing.assert_array_equal(batch["label"], data.batch(step)["label"])
    assert len(made) == 2
    assert np.unique(made[0]["image"]).size > 4  # the tiles' shades


PARTS = """
import dataclasses

import numpy as np

from mimjax.masking.base import Random
from mimjax.methods.mae import MAE


@dataclasses.dataclass(frozen=True)
class Later(Random):
    def sample(self, rng, grid, epoch):
        later = {"later": np.arange(3, dtype=np.int16) + 10 * epoch}
        return super().sample(rng, grid, epoch) | later


@dataclasses.dataclass(frozen=True)
class Mine(MAE):
    pass
"""


@pytest.mark.gate
@pytest.mark.parametrize("cls", ["Mine", None])
def test_a_worker_process_draws_a_user_s_own_masks(tmp_path, cls):
    """The worker calls the task itself, whose classes it imports before it unpickles them."""
    (tmp_path / "parts.py").write_text(PARTS)
    own = plugs.import_file(str(tmp_path / "parts.py"))
    encoder = ViT(16, 1, 2, patch=8, image_size=(32, 32))
    task = (getattr(own, cls) if cls else MAE)(encoder=encoder, masking=own.Later(ratio=0.5))
    source = make_source("synthetic", "train", length=8, side=20)
    data = Pipeline(source, task.views, Augment(), task.sample, 8, 0)
    with data.iterate(0, 2, workers=1) as batches:
        made = list(batches)
    for step, batch in enumerate(made):
        assert (batch["mask"].sum(1) == 8).all()
        np.testing.assert_array_equal(batch["mask"], data.batch(step)["mask"])
        np.testing.assert_array_equal(batch["later"], [np.arange(3) + 10 * step] * 8)


def test_what_is_no_source_is_named(users_file):
    with pytest.raises(ConfigError, match=r"^data.source: .*my.py:TilesSplit' is no SourceConfig;"):
        find_source(f"{users_file}:TilesSplit")
    with pytest.raises(ConfigError, match=r"^data.source: .*my.py:Nothing' not found"):
        find_source(f"{users_file}:Nothing")
