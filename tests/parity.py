"""Write docs/parity.json: how far ours is from the official numbers, kind by kind.

`make parity MIMJAX_GOLDEN=FOLDER[:FOLDER]` runs every check of `tests/golden_checks` on the files
of these folders and on the repository's own, and keeps what each comparison found. Arguments name
kinds; without any, all are measured. A kind is written only if all of its files pass.
"""

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import re
import sys
from unittest import mock

import conftest  # noqa: F401  # precision and devices as in the tests
import jax
import numpy as np
from golden_checks import CHECKS, common, files
from pin import git

FILE = files.HERE.parent.parent / "docs/parity.json"
WHAT = ("mimjax", "configs", "tests/golden_checks")  # what the numbers depend on


@dataclasses.dataclass
class Found:
    """What the comparisons of a check found.

    Attributes:
      numbers: how many numbers were compared, masks and ids included.
      deviation: the largest difference of an array, as a share of its largest number.
      at: the name of that array.
      bound: the largest share of an allowed difference that was used; 1 is the limit.
    """

    numbers: int = 0
    deviation: float = 0.0
    at: str = ""
    bound: float = 0.0

    def add(self, name, ours, theirs, allowed):
        """Take one comparison; `allowed` holds the allowed differences."""
        ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
        away = np.abs(ours - theirs)
        self.numbers += away.size
        if not away.any():
            return
        share = away[away > 0] / np.broadcast_to(allowed, away.shape)[away > 0]
        self.bound = max(self.bound, float(share.max()))
        top = np.abs(theirs).max()
        if top and away.max() / top > self.deviation:
            self.deviation, self.at = float(away.max() / top), name


@contextlib.contextmanager
def watched():
    """Give what the comparisons inside this block find; they still fail where they must."""
    found = Found()
    close, equal = np.testing.assert_allclose, np.testing.assert_array_equal
    moved = common.check_movement

    def allclose(ours, theirs, rtol=1e-7, atol=0.0, **options):
        close(ours, theirs, rtol=rtol, atol=atol, **options)
        found.add(options.get("err_msg", ""), ours, theirs, atol + rtol * np.abs(theirs))

    def same(ours, theirs, *rest, **options):
        equal(ours, theirs, *rest, **options)
        found.numbers += np.size(theirs)

    def movement(name, ours, theirs, start, skip=None):
        moved(name, ours, theirs, start, skip)
        for key, value in theirs.items():
            a, b, s = (
                np.asarray(t, np.float64).reshape(-1) for t in (ours[key], value, start[key])
            )
            keep = slice(None) if skip is None else skip(key, len(a))
            a, b, s = a[keep], b[keep], s[keep]
            if len(a):
                found.add(f"{name}/{key}", a, b, 1e-4)
                rms = lambda x: float(np.sqrt(np.mean(x**2)))
                found.bound = max(found.bound, rms(a - b) / (2e-3 * rms(b - s) + 1e-9))

    testing = {"assert_allclose": allclose, "assert_array_equal": same}
    with (
        mock.patch.multiple(np.testing, **testing),
        mock.patch.object(common, "check_movement", movement),
    ):
        yield found


def held():
    """{kind: {file name: (path, meta)}} of official files: the folders' and the repository's."""
    out = collections.defaultdict(dict)
    own = {path: files.meta(path) for path in sorted(files.HERE.glob("*.npz"))}
    for path, meta in (files.official() | own).items():
        out[meta["kind"]].setdefault(path.name, (path, meta))
    return out


def source(metas):
    """Whose numbers the files of a method hold, in a few words; "" where no file says it."""
    for meta in metas:
        if said := meta.get("source") or meta.get("provenance"):
            said = re.split(r" \(|[;:,]", said)[0]
            return re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", said)
    return ""


def measure(kind, paths):
    """What the check of a kind finds in files.

    Raises:
      AssertionError: a file does not pass.
    """
    with watched() as found:
        for path in paths:
            CHECKS[kind](np.load(path), files.meta(path))
    return found


def row(kind, official):
    """The row of a kind: its source, its files and what was measured."""
    mine = official[kind]
    method = kind.split(".")[0]
    others = [m for k, v in official.items() if k.split(".")[0] == method for _, m in v.values()]
    found = measure(kind, [path for path, _ in mine.values()])
    return {
        "source": source([*(meta for _, meta in mine.values()), *others]),
        "official": sorted(mine),
        "here": sorted(name for name in mine if (files.HERE / name).exists()),
        **dataclasses.asdict(found),
        "date": datetime.date.today().isoformat(),
        "commit": git("log", "-1", "--format=%h", "--", *WHAT).strip(),
        "jax": jax.__version__,
    }


def read():
    """{kind: row} of the file, {} where there is none."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def main(kinds):
    """Measure kinds one after another; each is written when it is done."""
    if not os.environ.get("MIMJAX_GOLDEN"):
        sys.exit("MIMJAX_GOLDEN is not set; allowed: folders of official files, joined by :")
    if changed := git("status", "--porcelain", *WHAT):
        sys.exit(f"commit first; changed:\n{changed}")
    if unknown := set(kinds) - CHECKS.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; allowed: {', '.join(CHECKS)}")
    official, refused = held(), 0
    for kind in kinds or CHECKS:
        try:
            rows = read() | {kind: row(kind, official)}
        except AssertionError as error:
            refused += 1
            print(f"{kind}: not written: {' '.join(str(error).split())[:300]}", flush=True)
            continue
        ordered = {k: rows[k] for k in CHECKS if k in rows}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n")
        print(f"{kind}: {rows[kind]['deviation']:.1e} {rows[kind]['at']}", flush=True)
    sys.exit(bool(refused))


if __name__ == "__main__":
    main(sys.argv[1:])
