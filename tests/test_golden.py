"""Golden numbers: those of the official code, and pinned ones where its files are too large.

MIMJAX_GOLDEN names other folders of official files to check instead (several as in PATH). Pinned
numbers are our own, written by `make pin` in a run in which the official files of their kind passed
the same check.
"""

import collections

import helpers
import numpy as np
import pytest
from golden_checks import CHECKS, files
from golden_checks.pending import PENDING

OFFICIAL, PINNED = files.official(), files.pinned()
KINDS = {path: meta["kind"] for path, meta in (OFFICIAL | PINNED).items()}
# Pending kinds are left out, not skipped: what runs here is what is claimed.
# Files that take long and have others of their kind or method beside them.
LONG = {"cae_mirror_ema09", "bootmae_ramp", "caev2_proj_tiny"}
LONG |= {"mcmae.steps", "mcmae.fast", "mcmae.finetune", "mrmae.pretrain_clip"}
CLAIMED = [path for path in OFFICIAL if KINDS[path] not in PENDING]


def quick(paths):
    return helpers.gated(paths, [path for path in paths if path.stem not in LONG])


def test_there_are_files(record_property):
    where = ", ".join(map(str, files.folders()))
    assert CLAIMED, f"{where}: no golden file of a kind that a check claims"
    waiting = collections.Counter(KINDS[path] for path in OFFICIAL if KINDS[path] in PENDING)
    record_property(
        "golden",
        f"{len(CLAIMED)} of {len(OFFICIAL)} official files in {where}; {len(PINNED)} pinned files; "
        f"{len(PENDING)} kinds are pending ({waiting.total()} files here)",
    )


@pytest.mark.parametrize("path", quick(CLAIMED), ids=lambda p: p.stem)
def test_golden(path):
    kind = KINDS[path]
    assert kind in CHECKS, f"{path.name}: no code handles the kind {kind!r}"
    CHECKS[kind](np.load(path), OFFICIAL[path])


@pytest.mark.parametrize("path", quick(PINNED), ids=lambda p: p.stem)
def test_pinned(path):
    assert path.stem == KINDS[path]
    assert path.stat().st_size < 100_000
    assert PINNED[path]["pinned"]["official"], "which official files passed?"
    CHECKS[KINDS[path]](np.load(path), PINNED[path])


def test_every_claimed_kind_has_numbers_in_the_repository():
    """An official file holds them where it is small, else a pinned one."""
    own = {files.meta(path)["kind"] for path in files.HERE.glob("*.npz")}
    held = {KINDS[path] for path in PINNED}
    assert not CHECKS.keys() - own - held, "make pin writes what is missing"
    assert not held & own, "the official file is enough"
    assert {path.stem for path in files.HERE.rglob("*.npz")} >= LONG, "no such file"


def test_no_kind_is_both_pending_and_claimed():
    assert not PENDING & set(CHECKS)
