"""Write tests/golden/pinned: `make pin MIMJAX_GOLDEN=FOLDER[:FOLDER]`.

A kind is written only if every official file of it in these folders passes its check in this run.
Arguments name kinds; without any, all that have no official file in the repository.
"""

import json
import subprocess
import sys

import conftest  # noqa: F401  # precision and devices as in the tests
import numpy as np
from golden_checks import CHECKS, files, recording
from golden_checks.cases import CASES

LIMIT = 100_000  # bytes of a file
ZERO = 1e-6  # gradients below this share of the largest are rounding alone


def git(*words):
    return subprocess.run(("git", *words), capture_output=True, text=True, check=True).stdout


def passed(kind):
    """Names of the official files of this kind, each checked now.

    Raises:
      ValueError: there is none.
      AssertionError: one does not pass.
    """
    found = [path for path, meta in files.official().items() if meta["kind"] == kind]
    if not found:
        raise ValueError("MIMJAX_GOLDEN has no official file of this kind")
    for path in found:
        CHECKS[kind](np.load(path), files.meta(path))
    return [path.name for path in found]


def make(kind):
    """Arrays and meta of a kind's file."""
    meta, given, wanted = CASES[kind]()
    meta |= {"kind": kind, "source": "mimjax, see pinned"}
    arrays = recording.record(CHECKS[kind], meta, given, wanted)
    top = {k: np.abs(v).max() for k, v in arrays.items() if k.startswith("grad/")}
    zero = [k for k, v in top.items() if v < ZERO * max(top.values())]
    meta["zero_grad"] = [k.removeprefix("grad/") for k in zero]
    return {k: v for k, v in arrays.items() if k not in zero}, meta


def pin(kind, commit):
    """Write one file and return its size, or raise what keeps it from being written."""
    official = passed(kind)
    arrays, meta = make(kind)
    meta["pinned"] = {"commit": commit, "official": official}
    CHECKS[kind](recording.Arrays(arrays), meta)
    path = files.PINNED / f"{kind}.npz"
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "wb") as f:
        np.savez_compressed(f, meta=json.dumps(meta), **arrays)
    size = new.stat().st_size
    if size >= LIMIT:
        new.unlink()
        raise ValueError(f"{size} bytes; allowed: below {LIMIT}")
    new.replace(path)
    return f"{size} bytes, {len(arrays)} arrays, after {', '.join(official)}"


def main(kinds):
    if changed := git("status", "--porcelain", "mimjax", "configs", "tests/golden_checks"):
        sys.exit(f"commit first; changed:\n{changed}")
    commit, refused = git("rev-parse", "HEAD").strip(), 0
    for kind in kinds or CASES:
        try:
            print(f"{kind}: {pin(kind, commit)}", flush=True)
        except (AssertionError, ValueError) as error:
            refused += 1
            lines = [line for line in str(error).splitlines() if line.strip()]
            print(f"{kind}: not written: {' '.join(lines[:3])[:300]}", flush=True)
    sys.exit(bool(refused))


if __name__ == "__main__":
    main(sys.argv[1:])
