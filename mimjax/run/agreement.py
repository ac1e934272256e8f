"""Whether all processes of a run do the same: settings, code, libraries and data are compared."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib

import jax

from mimjax.data.pipeline import Pipeline
from mimjax.run import peers
from mimjax.schema import Config
from mimjax.storage import settings
from mimjax.storage.checkpoints import versions


def check(c: Config, data: Pipeline, workdir: str) -> None:
    """Compares this process with the others, before anything is written; one alone agrees.

    Raises:
      ConfigError: something differs; the line names it, the processes and their values.
      PeerError: a process does not come.
    """
    if run := peers.joined():
        run.compare(facts(c, data, workdir))


def facts(c: Config, data: Pipeline, workdir: str) -> dict[str, str]:
    """What must be the same everywhere, by the name that an error gives it."""
    flat = settings.flatten(json.loads(settings.to_json(c)))
    return {
        **{key: repr(value) for key, value in flat.items()},
        "--workdir": workdir,
        "the number of images": f"{len(data.source):,}",
        "the data's fingerprint": data.fingerprint,
        **{f"the version of {name}": version for name, version in versions().items()},
        "mimjax's code": code_digest(),
        "JAX_ENABLE_X64": str(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


@functools.cache
def code_digest() -> str:
    """16 hex digits of every Python file of the package."""
    root, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
