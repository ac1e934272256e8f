"""Where golden files are: official ones, in MIMJAX_GOLDEN or the repository, and pinned ones."""

import json
import os
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent.parent / "golden"
PINNED = HERE / "pinned"


def folders():
    """The folders that MIMJAX_GOLDEN names, one after another as in PATH; else the repository's.

    Raises:
      ValueError: one of them holds no golden file.
    """
    named = [pathlib.Path(p) for p in os.environ.get("MIMJAX_GOLDEN", "").split(os.pathsep) if p]
    for folder in named:
        if not any(folder.glob("*.npz")):
            raise ValueError(f"MIMJAX_GOLDEN: no .npz file in {folder}; allowed: folders of some")
    return named or [HERE]


def meta(path):
    """What a file says about itself: its kind, the sizes of its case, its source."""
    with np.load(path) as z:
        return json.loads(str(z["meta"]))


def official():
    """{path: meta} of all files in `folders()`."""
    return {path: meta(path) for folder in folders() for path in sorted(folder.glob("*.npz"))}


def pinned():
    """{path: meta} of the repository's pinned files."""
    return {path: meta(path) for path in sorted(PINNED.glob("*.npz"))}
