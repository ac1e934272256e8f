"""Meaning of a data set's folders: splits, classes, and images that are not read.

The names of splits are those of Hugging Face's `datasets` for folders of images, in any case, also
followed by a year or a word ("train2017", "test_set"). Names that can mean two things are an error.
Notes for the user say which folders were taken for splits and what is not read; `Folder` and
`Files` pass them on. No file is opened here.
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
BEHIND = re.compile(r"[-_ ]?((19|20)\d\d|set|data|images)$")  # what may follow a split's name
NAMED = 10  # number of images or folders that a note names


class Splits(NamedTuple):
    """Folders of the splits, relative to the path of a data set.

    Attributes:
      train: folder of the training images; "" = the path itself.
      test: folder of the test images; None = a part of the training images is the test split.
      note: remark for the user that names the folders; "" for a data set without split folders.
    """

    train: str = ""
    test: str | None = None
    note: str = ""


def role(name: str) -> int | None:
    """Return the split that a folder's name means: 0 = train, 1 = validation, 2 = test; or None."""
    plain = name.lower()
    for text in (plain, BEHIND.sub("", plain)):
        for number, names in enumerate((TRAIN, *HELD_OUT)):
            if text in names:
                return number
    return None


def find_splits(
    path: str, folders: Sequence[str], stray: Sequence[str], holds: Callable[[str], bool]
) -> Splits:
    """Return the splits among the folders at the top of `path`.

    Args:
      path: folder of the data set, for messages.
      folders: names of the folders in it.
      stray: names of images beside these folders.
      holds: whether a folder has an image; called only where the answer matters.

    Raises:
      ConfigError: the names can mean two things.
    """
    by_role: list[list[str]] = [[], [], []]
    others = []
    for name in sorted(folders):
        number = role(name)
        (others if number is None else by_role[number]).append(name)
    train, *held_out = by_role
    where = f"data.path: {shown(path)} holds"
    if not train:
        tests = [name for names in held_out for name in names if holds(name)]
        if tests:
            raise ConfigError(
                f"{where} {listed(tests)} and no folder of training images; allowed: the path of "
                f"one folder ({shown(path)}/{shown(tests[0])}), a folder 'train' beside it, or "
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
    """Classes of a data set, which are folders.

    Attributes:
      names: names of the class folders, sorted; empty = no classes.
      note: remark for the user that names the images without a class; "" if there are none.
    """

    names: list[str]
    note: str = ""

    def number(self, name: str) -> int:
        """Return the position of a class in `names`; -1 for another name."""
        place = bisect.bisect_left(self.names, name)
        return place if self.names[place : place + 1] == [name] else -1


def find_classes(images: Sequence[str], class_of: Callable[[str], str]) -> Classes:
    """Return the classes: folders are classes if more images lie in them than beside them.

    An image beside them has no class (label -1); the others keep theirs.

    Args:
      images: relative paths.
      class_of: returns the folder that names an image's class, "" if there is none.
    """
    folders = [class_of(image) for image in images]
    outside = [image for image, name in zip(images, folders) if not name]
    inside = len(images) - len(outside)
    names = sorted({name for name in folders if name})
    if not outside or not inside:
        return Classes(names)
    lie = f"{count(len(outside), 'image lies', 'images lie')} in no class folder"
    if inside > len(outside):
        return Classes(names, f"{lie} and {_have(len(outside))} no label: {listed(outside)}")
    return Classes([], f"no labels: {lie}, {inside:,} in {listed(names)}")


def unmatched(new: Sequence[str], names: Sequence[str], train: str, test: str) -> str:
    """Return a line on class folders of the test split that the training split lacks.

    Args:
      new: their names.
      names: classes of the training split. One that differs in case or in spaces at the ends alone
        is named, since it is likely to be the same class.
      train, test: folders of the splits.
    """
    twins = {name.strip().casefold(): name for name in names}
    words = []
    for name in new[:NAMED]:
        twin = twins.get(name.strip().casefold())
        other = f" ({shown(repr(twin))} there: another case or space)" if twin else ""
        words.append(f"{shown(repr(name))}{other}")
    more = f", {len(new) - NAMED:,} others" if len(new) > NAMED else ""
    where = f"class folders of {shown(test)} that {shown(train)} lacks"
    return f"{where}: {', '.join(words)}{more}"


def split_layout(folders: Iterable[str]) -> bool:
    """Return whether folders at the top are splits and not classes.

    For programs that read all images (`Files`): either every folder is named like a split, or there
    are training images and another split.
    """
    roles = {role(name) for name in folders}
    return bool(roles) and (None not in roles or (0 in roles and len(roles - {None}) > 1))


def left_out(others: Counter[str]) -> str:
    """Return a note that counts the files that were not taken for images; "" if there are none.

    Args:
      others: counts by suffix, see `index.note_other`.
    """
    words = ", ".join(f"{number:,} {kind}" for kind, number in others.most_common(NAMED))
    rest = sum(number for _, number in others.most_common()[NAMED:])
    more = f", {rest:,} others" if rest else ""
    return f"left out by their endings: {words}{more}" if words else ""


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: "1 image", "2,000 images"; `many` = plural, "" = with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def listed(names: Sequence[str]) -> str:
    """Return the first NAMED names in quotation marks, and the number of the others."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:NAMED]) + more
