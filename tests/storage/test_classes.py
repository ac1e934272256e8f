"""The classes of a workdir: what changed in them, and files that no run wrote."""

import json

import pytest

from mimjax.errors import ConfigError
from mimjax.storage.classes import FILE, Classes
from mimjax.storage.files import Workdir

THREE = Classes(3, ("ant", "bee", "cat"), "class folder")


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (("ant", "bee", "cat"), ""),
        (("ant", "bee", "cow"), "a class of another name: class 2 is 'cow', it was 'cat'"),
        (("bee", "ant", "cat"), "classes in another order: class 0 is 'bee', it was 'ant'"),
        (("ant", "Bee", "cat"), "a class of another name: class 1 is 'Bee', it was 'bee'"),
        (("ant", "ape", "bee", "cat"), "4 classes, they were 3: class 1 is 'ape', it was 'bee'"),
        (("ant", "bee", "cat", "dog"), "4 classes, they were 3: class 3 is 'dog', it is new"),
        (("ant", "bee"), "2 classes, they were 3: class 2 is gone, it was 'cat'"),
    ],
)
def test_the_first_difference_is_named(now, text):
    assert Classes(len(now), now).difference(THREE) == text


def test_without_names_the_numbers_are_compared():
    assert Classes(3).difference(THREE) == THREE.difference(Classes(3)) == ""
    assert Classes(4).difference(THREE) == "4 classes, they were 3"


@pytest.mark.parametrize("classes", [THREE, Classes(2), Classes(1, ("ca\udcfft", "ß\n")[:1])])
def test_a_file_gives_what_was_written(tmp_path, classes):
    """Folders whose names are no UTF-8 are no exception."""
    workdir = Workdir(str(tmp_path))
    assert Classes.read(workdir) is None
    classes.write(workdir)
    assert Classes.read(workdir) == classes


@pytest.mark.parametrize(
    "content",
    [
        {"0": "ant"},
        {"num_classes": 2, "names": ["ant"], "label": "class"},
        {"num_classes": 1, "names": [1], "label": "class"},
        {"num_classes": True, "names": None, "label": "class"},
        {"num_classes": 1, "names": None},
        ["ant"],
    ],
)
def test_a_file_of_another_s_is_refused(tmp_path, content):
    """A run would replace it."""
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"^--workdir: .*classes.json .*; allowed: ") as error:
        Classes.read(Workdir(str(tmp_path)))
    assert "\n" not in str(error.value)
