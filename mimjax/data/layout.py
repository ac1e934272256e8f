"""What the folders of a data set mean: splits, classes, and what is left out. Reads no file.

Names of splits are those that Hugging Face's `datasets` knows for a folder of images, in any case,
also with a year or a word behind them ("train2017", "test_set"). What could mean two things is an
error, and what is left out is said: `Folder` and `Files` show the notes made here.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mimjax.data.index import shown
from mimjax.errors import ConfigError

TRAIN = ("train", "training")
# "val" comes before "test": where both exist (ImageNet), the test images have no labels.
HELD_OUT = (
    ("val", "valid", "validation", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
BEHIND = re.compile(r"[-_ ]?((19|20)\d\d|set|data|images)$")
NAMED = 10  # images or folders that a note names


class Splits(NamedTuple):
    """Folders below the path of a data set.

    Attributes:
      train: of the training images; "" = the path itself.
      test: of the test images; None = a part of the training images.
      note: says which is which; "" for a folder without splits.
    """

    train: str = ""
    test: str | None = None
    note: str = ""


def role(name: str) -> int | None:
    """What a folder's name says: 0 = training, 1 = validation, 2 = test images; None = nothing."""
    plain = name.lower()
    for text in (plain, BEHIND.sub("", plain)):
        for number, names in enumerate((TRAIN, *HELD_OUT)):
            if text in names:
                return number
    return None


def find_splits(
    path: str, folders: Sequence[str], stray: Sequence[str], holds: Callable[[str], bool]
) -> Splits:
    """The splits among the folders at the top of `path`.

    Args:
      stray: images that lie beside these folders.
      holds: whether there is an image in a folder; asked only where it decides.

    Raises:
      ConfigError: the names can mean two things.
    """
    found: list[list[str]] = [[], [], []]
    others = []
    for name in sorted(folders):
        number = role(name)
        (others if number is None else found[number]).append(name)
    train, *held_out = found
    where = f"data.path: {shown(path)} holds"
    if not train:
        held = [name for names in held_out for name in names if holds(name)]
        if held:
            raise ConfigError(
                f"{where} {listed(held)} and no folder of training images; allowed: the path of "
                f"one folder ({shown(path)}/{shown(held[0])}), a folder 'train' beside it, or "
                "data.splits=none (all images are one set)"
            )
        return Splits()
    test = next((names for names in held_out if names), [])
    for names in (train, test):
        if len(names) > 1:
            raise ConfigError(
                f"{where} {listed(names)}, which name the same split; allowed: one of them"
            )
    if not test and (beside := [name for name in others if holds(name)]):
        one = f"data.path={shown(path)}/{shown(train[0])}"
        raise ConfigError(
            f"{where} {listed(train)} beside {listed(beside)} and no folder of test images, so "
            f"these are splits or classes; allowed: {one} (its images alone), or "
            "data.splits=none (all images are one set)"
        )
    rest = [name for names in held_out for name in names if name not in test] + others
    out = f"training images from {listed(train)}, test images "
    out += f"from {listed(test)}" if test else "from the same folder, by a hash of their names"
    left = ([f"the folders {listed(rest)}"] if rest else []) + (
        [f"{count(len(stray), 'image')} beside them ({listed(stray)})"] if stray else []
    )
    out += f"; not read: {' and '.join(left)}" if left else ""
    return Splits(train[0], test[0] if test else None, out)


class Classes(NamedTuple):
    """The class of each image, by its folder.

    Attributes:
      names: sorted; empty where there are no classes.
      note: names the images without a class; "" if there is none.
    """

    names: list[str]
    note: str = ""

    def number(self, name: str) -> int:
        """Of a class in `names`; -1 for another."""
        place = bisect.bisect_left(self.names, name)
        return place if self.names[place : place + 1] == [name] else -1


def find_classes(images: Sequence[str], class_of: Callable[[str], str]) -> Classes:
    """Folders are classes where more images lie in one than beside them.

    An image beside them has no class (label -1), and does not take it from the others.

    Args:
      images: paths.
      class_of: the folder that names an image's class, "" if there is none.
    """
    found = [class_of(image) for image in images]
    outside = [image for image, name in zip(images, found) if not name]
    inside = len(images) - len(outside)
    names = sorted({name for name in found if name})
    if not outside or not inside:
        return Classes(names)
    lie = f"{count(len(outside), 'image lies', 'images lie')} in no class folder"
    if inside > len(outside):
        return Classes(names, f"{lie} and {_have(len(outside))} no label: {listed(outside)}")
    return Classes([], f"no labels: {lie}, {inside:,} in {listed(names)}")


def split_layout(folders: Iterable[str]) -> bool:
    """Whether folders at the top are splits and not classes, for a program that reads all."""
    found = {role(name) for name in folders}
    return bool(found) and (None not in found or (0 in found and len(found - {None}) > 1))


def left_out(others: Counter[str]) -> str:
    """A note that counts the files that were not taken for images; "" if there is none."""
    words = ", ".join(f"{number:,} {kind}" for kind, number in others.most_common(NAMED))
    rest = sum(number for _, number in others.most_common()[NAMED:])
    more = f", {rest:,} others" if rest else ""
    return f"left out by their endings: {words}{more}" if words else ""


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def listed(names: Sequence[str]) -> str:
    """Some names in quotation marks, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:NAMED]) + more
