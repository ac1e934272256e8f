"""Turn a published PyTorch file into a workdir that every program of mimjax can open.

  mimjax convert --model=FILE --config=mae --workdir=DIR [--heads=12]

The file's sizes replace the config's; what no tensor shows is asked for. Nothing is trained: the
workdir holds the config and a checkpoint of step 0, from which `mimjax train` continues.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from absl import flags

from mimjax.programs import cli, opening, parser

REQUIRED = ("model", "config", "workdir")
LONG = 1_000_000  # steps of an epoch of data that nobody has named yet


def define_flags() -> None:
    """Define all flags of the program."""
    flags.DEFINE_string("model", None, "The file: .safetensors, .pth.")
    parser.define()
    flags.DEFINE_string("workdir", None, "Folder to make, local or gs:// (mimjax[gcs]).")
    opening.define_file_flags()
    cli.define_base_flags()


def main() -> None:
    """Write the workdir."""
    from mimjax.inference import published

    f = flags.FLAGS
    choice = published.Choice(*opening.file_sizes())
    for line in convert(f.model, f.config, f.workdir, f.layout, choice):
        print(line)
    print(f"workdir: {f.workdir} holds config.json and a checkpoint of step 0")


def convert(path: str, c: Any, workdir_path: str, layout: str, choice: Any) -> list[str]:
    """Write the workdir; see `published.fit`.

    Returns:
      Lines that say what came from the file, what was derived and what is random.

    Raises:
      ConfigError: the workdir holds a run, or the file cannot become one of this config. Nothing
        is written then.
    """
    from mimjax.errors import ConfigError
    from mimjax.inference import pixels, published, teachers, weights
    from mimjax.storage import outputs, settings
    from mimjax.storage.checkpoints import Checkpoints, versions
    from mimjax.storage.files import Workdir

    taken = Workdir(workdir_path, writer=False)
    if any(taken.file(name).exists() for name in ("config.json", "checkpoints")):
        raise ConfigError(f"--workdir: {workdir_path} holds a run already; allowed: a new folder")
    if taken.is_local:
        outputs.check(workdir_path, flag="--workdir")
    tensors, average = published.open_file(path, layout, "--model")
    c, lines = pixels.taken_over(c, tensors)
    own = ("resample", "crop")  # of the run's data, which no file decides
    imported = published.fit(teachers.fill(c), tensors, average, choice, own)
    state = make_state(imported)
    text = settings.config_json(imported.config)
    meta: dict[str, Any] = {"config": json.loads(text), "versions": versions(), "teacher": {}}
    meta["weights"] = {"path": path, "sha256": weights.checksum(path, {}), "layout": tensors.layout}
    place = outputs.staged(workdir_path, flag="--workdir", listed=False)
    with place if taken.is_local else contextlib.nullcontext(workdir_path) as new:
        workdir = Workdir(new)
        checkpoints = Checkpoints(workdir)
        try:
            checkpoints.save(state, {"step": 0, "fingerprint": ""}, meta)
        finally:
            checkpoints.close()  # waits for threads that write
        workdir.write_text("config.json", text)  # last: it makes a run
    decodes = "decoder" in imported.params and "decoder" not in imported.absent
    return imported.report + lines + (pixels.kept(imported.config, tensors) if decodes else [])


def make_state(imported: Any) -> Any:
    """Return the state at step 0 with the file's weights, others initialized from the seed."""
    import jax
    import jax.numpy as jnp

    from mimjax.inference import published

    state = first_program(imported.config).init()
    params = published.complete(imported.params, state.params)
    ema = imported.task.init_ema(params)
    if imported.average:
        ema = ema | published.complete(imported.average, {"encoder": ema["encoder"]})
    asarray = lambda tree: jax.tree.map(jnp.asarray, tree)
    return state.replace(params=asarray(params), ema=asarray(ema))


def first_program(c: Any) -> Any:
    """Return the program of a config whose data are not known yet.

    Nothing in the first state depends on the length of an epoch, which `mimjax train` learns from
    the data. So the epochs assumed here are those at which no warm-up is too long: of one step
    where the run's steps are given, else of more steps than any warm-up has.
    """
    import jax

    from mimjax.run.setup import setup
    from mimjax.sharding import make_mesh

    epoch = 1 if c.steps else LONG
    one = make_mesh(devices=jax.devices()[:1])
    return setup(c, mesh=one, images=epoch * c.batch_size).program
