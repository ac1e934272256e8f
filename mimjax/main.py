"""Trains: `mimjax train --config=configs/bootmae.py[:size=l] --workdir=DIR`.

Running the same command again continues. Any setting is overridden by `--config.a.b=value`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from mimjax import stopping
from mimjax.errors import ConfigError, RunError
from mimjax.programs import cli

if TYPE_CHECKING:
    from mimjax.train.run import Run


def main() -> None:
    # after the processes are joined: this asks for devices
    from mimjax.run.setup import make_run, resolved

    name = cli.config_name()
    recipe = name, resolved(cli.load_config(name))
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
    """Trains, and says what was learned, where everything lies and what can be done next."""
    from mimjax.evaluators import render
    from mimjax.run import messages
    from mimjax.train.loop import train

    train(run)
    with stopping.deferred():  # a matter of seconds
        if table := render(run.evaluators):  # "" where a finished run was started again
            run.workdir.write_text("table.md", table)
        run.log.say(f"\n{messages.end_lines(run)}\n")
        run.log.end(f"done: {run.workdir.path} holds report.html, config, metrics and checkpoints")


if __name__ == "__main__":
    cli.define_run_flags()
    flags.adopt_module_key_flags(cli)
    cli.run(main)
