"""Train a method, or continue a run.

  mimjax train --config=bootmae[:size=l] --workdir=DIR [--config.KEY=VALUE ...]

The same command again continues. `mimjax config NAME` lists the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from mimjax import stopping
from mimjax.errors import ConfigError, RunError
from mimjax.programs import cli, parser

if TYPE_CHECKING:
    from mimjax.train.run import Run


REQUIRED = ("config", "workdir")


def define_flags() -> None:
    """Define all flags of the program."""
    cli.define_run_flags()


def main() -> None:
    """Train, or continue."""
    # after the processes are joined: this asks for devices
    from mimjax.run import config_files
    from mimjax.run.setup import make_run, resolved

    name = parser.config_text()
    recipe = name, resolved(config_files.load(name))
    run = make_run(flags.FLAGS.config, flags.FLAGS.workdir, recipe)
    signals = stopping.SIGNALS
    signals.tell = run.log.record
    signals.saved = run.checkpoints.manager.latest_step() is not None
    try:
        finish(run)
    except ConfigError as error:  # the settings are checked: this arose while the run wrote
        raise RunError(str(error)) from error
    finally:
        run.log.close()
        run.lock.release()


def finish(run: Run) -> None:
    """Train, and say what was learned, where everything lies and what can be done next."""
    from mimjax.evaluators import render
    from mimjax.run import messages
    from mimjax.train.loop import train

    train(run)
    with stopping.deferred():  # a matter of seconds
        if table := render(run.evaluators):  # "" where a finished run was started again
            run.workdir.write_text("table.md", table)
        run.log.say(f"\n{messages.end_lines(run)}\n")
        run.log.end(f"done: {run.workdir.path} holds report.html, config, metrics and checkpoints")
