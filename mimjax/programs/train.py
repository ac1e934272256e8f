"""Train a method, or continue a run.

  mimjax train --config=bootmae[:size=l] --workdir=DIR [--config.KEY=VALUE ...]
  mimjax train --config=bootmae --workdir=DIR --seeds=0,1,2
  mimjax train --config=linear_probe:method=mae --model=WORKDIR_OR_FILE --workdir=DIR

The same command again continues. With several seeds the runs are made one after the other, in
DIR/seed_0, DIR/seed_1 ...; `mimjax report DIR` shows their mean and spread. `mimjax config NAME`
lists the settings.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from absl import flags

from mimjax import stopping
from mimjax.errors import ConfigError, RunError
from mimjax.programs import cli, parser

if TYPE_CHECKING:
    from mimjax.schema import Config
    from mimjax.train.run import Run


REQUIRED = ("config", "workdir")


def define_flags() -> None:
    """Define all flags of the program."""
    cli.define_run_flags()
    flags.DEFINE_string(
        "model", None, "Workdir of a run, or published file, that a transfer recipe begins with."
    )
    flags.DEFINE_list(
        "seeds", [], "Seeds of runs that are made one after the other, in seed_N of the workdir."
    )


def main() -> None:
    """Train, or continue, one run or a run for each seed."""
    # after the processes are joined: this asks for devices
    from mimjax.run import config_files
    from mimjax.storage.settings import resolved

    name, workdir = parser.config_text(), flags.FLAGS.workdir
    config = with_model(flags.FLAGS.config, flags.FLAGS.model)
    recipe = name, resolved(config_files.load(name))
    if not flags.FLAGS.seeds:
        run_one(config, workdir, recipe)
        return
    for seed, place in seeded(flags.FLAGS.seeds, config.seed, recipe[1]["seed"], workdir):
        c = copy.deepcopy(config)
        c.seed = seed
        run_one(c, place, recipe)


def with_model(config: Config, path: str | None) -> Config:
    """Return the config with the path of --model, at the setting that its task names.

    Raises:
      ConfigError: its task begins with no trained model, or the setting says another path.
    """
    from mimjax import schema

    if path is None:
        return config
    key = schema.find_class(config.task, "task").model_path
    if not key:
        raise ConfigError(
            f"--model: {path}, but {config.task} begins with no trained model; allowed: a transfer "
            "recipe (linear_probe, attentive_probe), or --config.init_from"
        )
    *parents, last = key.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    if section[last] not in (None, path):
        given = f"--config.{key}={section[last]}"
        raise ConfigError(f"--model: {path}, but {given} is given too; allowed: one of them")
    section[last] = path
    return config


def seeded(words: list[str], seed: int, default: int, workdir: str) -> list[tuple[int, str]]:
    """Return each seed with the folder of its run.

    Args:
      words: the seeds of --seeds.
      seed, default: `config.seed` of this start, and that of the config file.

    Raises:
      ConfigError: no whole number, a seed that is given twice, or `--config.seed` beside them.
    """
    seeds = cli.integers("seeds", words, 0, 2**32 - 1)
    if len(seeds) < len(words):
        raise ConfigError(f"--seeds: {','.join(words)}: one is given twice; allowed: each once")
    if seed != default:
        raise ConfigError(f"--config.seed: {seed}, beside --seeds; allowed: one of the two")
    return [(n, f"{workdir.rstrip('/')}/seed_{n}") for n in seeds]


def run_one(config: Config, workdir: str, recipe: tuple[str, dict[str, Any]]) -> None:
    """Train, or continue, the run of one workdir."""
    from mimjax.inference import adoption, resolution
    from mimjax.run.open import kept_index, open_run
    from mimjax.run.setup import setup

    config = resolution.continued(adoption.continued(config, workdir), workdir)
    made = setup(config, kept=kept_index(workdir))
    with open_run(made, workdir, recipe) as run:
        try:
            finish(run)
        except ConfigError as error:  # the settings are checked: this arose while the run wrote
            raise RunError(str(error)) from error


def finish(run: Run) -> None:
    """Train, and say what was learned, where everything lies and what can be done next."""
    from mimjax.evaluators import render
    from mimjax.run import messages
    from mimjax.train.loop import train

    train(run)
    with stopping.deferred():  # a matter of seconds
        if table := render(run.setup.evaluators):  # "" where a finished run was started again
            run.workdir.write_text("table.md", table)
        run.log.say(f"\n{messages.end_lines(run)}\n")
        run.log.end(f"done: {run.workdir.path} holds report.html, config, metrics and checkpoints")
