"""The comparison of all processes of a run: settings, code, libraries and data must be the same.

It is made once, before anything is written. This module says what is compared; `run.peers` carries
it between the processes. A run of one process agrees with itself.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib

import jax

from mimjax.data.pipeline import Pipeline
from mimjax.run import peers
from mimjax.schema import Config
from mimjax.storage import settings
from mimjax.storage.checkpoints import versions

PACKAGE = pathlib.Path(__file__).parents[1]


def check(c: Config, data: Pipeline, workdir: str) -> None:
    """Compare this process with the others of its run.

    Args:
      workdir: as it was typed.

    Raises:
      ConfigError: something differs; the line names it, the processes and their values.
      PeerError: a process did not start in time.
    """
    if run := peers.joined():
        run.compare(facts(c, data, workdir))


def facts(c: Config, data: Pipeline, workdir: str) -> dict[str, str]:
    """Return what must be the same in all processes, by the name that an error gives it."""
    return {
        **{key: repr(value) for key, value in settings.resolved(c).items()},
        "--workdir": workdir,
        "the number of images": f"{len(data.source):,}",
        "the data's fingerprint": data.fingerprint,
        **{f"the version of {name}": version for name, version in versions().items()},
        "mimjax's code": code_digest(),
        "JAX_ENABLE_X64": str(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


@functools.cache
def code_digest() -> str:
    """Return a digest of every Python file of the package, 16 hex digits of sha256."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
