"""The protocol of fine-tuning: a row's encoder and a head are trained by the recipe of its method.

Each training is a run of the one trainer in a workdir below the results, `fine_tune/CELL/RATE`, so
that a killed evaluation continues in the middle of it. No test image is read before the learning
rate, and whether the weights or their moving average are taken, are chosen.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from mimjax import sharding, stopping, values
from mimjax.data.augment import Augment
from mimjax.errors import ConfigError, RunError
from mimjax.inference import adoption, precision
from mimjax.models.vit import SIZES
from mimjax.run import config_files, demos, overrides, scoring
from mimjax.run.cells import Cell, Protocol, Result, Results, batch_of, edges
from mimjax.run.labeled import Places
from mimjax.run.open import open_run
from mimjax.run.rows import ROWS, Row
from mimjax.run.sections import Boards, Eval
from mimjax.run.setup import setup
from mimjax.schema import Config, build, is_section
from mimjax.storage.settings import resolved
from mimjax.task import TrainState
from mimjax.train.loop import train
from mimjax.train.run import Setup

if TYPE_CHECKING:
    from mimjax.inference.model import Model
    from mimjax.run.evaluate import Evaluation

FILE = "fine_tune"  # the config of all recipes, and the folder of the runs
FLAG = "--fine_tune"
OTHERS = "mae"  # whose recipe a method takes that has none
SAVES = 10  # checkpoints of a training
# settings that the evaluation decides, by its own flags or as its images are
DECIDED = re.compile(
    r"(seed|init_from|resume|restart|keep_checkpoints|eval|boards|mesh|task|method\.(heads|classes)"
    r"|data\.(source|path|splits|channels|value_range|max_pixels|trust_index))(\..+)?"
)


class Choice(NamedTuple):
    """A recipe of `configs/fine_tune.py`.

    Attributes:
      text: with its arguments, "fine_tune:method=mae,size=b".
      method: whose it is.
      said: the method or layout of the model, where it has no recipe; "" = it has.
    """

    text: str
    method: str
    said: str


class Trial(NamedTuple):
    """Weights that may be chosen.

    Attributes:
      score: on the images that were left out.
      setting: which they are, in words.
      made, state: the run and its state, with which test images are read.
    """

    score: scoring.Score
    setting: str
    made: Setup
    state: TrainState


@dataclasses.dataclass(frozen=True)
class FineTuned(Protocol):
    """Fine-tuning of the whole encoder with a head.

    Attributes:
      epochs: passes over the training images; None = the recipe's.
      rates: factors of the recipe's learning rate that are tried.
      fine_tune: settings of the recipe, "method.drop_path=0.2", as behind `--config.` of
        `mimjax train`.
    """

    title: str = "fine-tuned"
    epochs: int | None = None
    rates: tuple[float, ...] = (1.0,)
    fine_tune: tuple[str, ...] = ()

    def has(self, row: Row) -> bool:
        return row.network is not None

    def check(self, evaluation: Evaluation) -> None:
        row = next((row for row in evaluation.rows if self.has(row)), None)
        for labels in evaluation.labels if row else ():
            cell = Cell(row.name if row else "", FILE, labels, evaluation.seeds[0])
            images = len(evaluation.places(cell)[0])
            c = self.config(evaluation, cell, images)
            if c.batch_size > images:
                raise ConfigError(
                    f"{FLAG}: batch_size: {c.batch_size}, but {images} labeled images are learned "
                    f"from; allowed: 1 to {images}"
                )
            try:
                setup(c, mesh=evaluation.mesh_for(images), images=images)
            except ConfigError as error:
                raise ConfigError(f"{FLAG}: {error}") from None

    def identity(self, evaluation: Evaluation, cell: Cell) -> list[Any]:
        c = self.config(evaluation, cell, len(evaluation.places(cell)[0]))
        nothing = {"init_from": None, "compile_cache_dir": None}  # in what comes out
        return [json.dumps(resolved(c) | nothing, sort_keys=True, default=str)]

    # ---------------------------------------------------------------- the recipe
    def settings(self) -> list[overrides.Override]:
        """Return the settings that are given.

        Raises:
          ConfigError: one without a name, or one that the evaluation decides.
        """
        parts = [text.partition("=") for text in self.fine_tune]
        if wrong := [key + sign + value for key, sign, value in parts if not key]:
            raise ConfigError(f"{FLAG}: {wrong[0]!r}; allowed: KEY=VALUE, as method.drop_path=0.2")
        for key, *_ in parts:
            if DECIDED.fullmatch(key):
                raise ConfigError(
                    f"{FLAG}: {key}: the evaluation decides it; allowed: settings of the recipe, "
                    "as method.drop_path, optimizer.weight_decay, data.augment.scale"
                )
            if key in ("epochs", "steps") and self.epochs is not None:
                raise ConfigError(
                    f"{FLAG}: {key}: --epochs={self.epochs} is given too; allowed: one of them"
                )
        return [overrides.Override(key, value if sign else None) for key, sign, value in parts]

    def config(self, evaluation: Evaluation, cell: Cell, images: int) -> Config:
        """Return the config of a cell's training, for so many images and the recipe's rate.

        A batch is that of the recipe or smaller, see `cells.batch_of`; a learning rate that the
        recipe has for its batch follows in proportion, and a warm-up keeps its share of the run.

        Raises:
          ConfigError: a wrong setting.
        """
        row, given = evaluation.row(cell.row), self.settings()
        c = copy.deepcopy(config_files.load(choice(evaluation).text)).unlock()
        before = copy.deepcopy(c)
        try:
            overrides.apply(c, given)
        except ConfigError as error:
            raise ConfigError(f"{FLAG}: {error}") from None
        free = lambda key: not any(f"{o.key}.".startswith(f"{key}.") for o in given)
        if free("batch_size"):
            devices = evaluation.mesh_for(images).size * c.accum
            devices *= 1 + devices % 2  # images are mixed in pairs
            size = min(c.batch_size, batch_of(images, devices))
            whole = math.lcm((c.method.mixing or {}).get("group") or 1, devices)
            c.batch_size = size // whole * whole or size  # as many groups that are mixed
            if free("optimizer.lr") and c.optimizer.lr is not None:
                c.optimizer.lr *= c.batch_size / before.batch_size
        if self.epochs is not None:
            c.steps, c.epochs = None, float(self.epochs)
        per_epoch, warm = max(images // c.batch_size, 1), c.optimizer.schedule
        length = lambda c: c.steps or c.epochs * per_epoch
        if free("optimizer.schedule") and length(c) != length(before):
            share = length(c) / length(before)
            warm.warmup_epochs *= share
            if warm.warmup_steps is not None:
                warm.warmup_steps = int(warm.warmup_steps * share)
        if free("checkpoint_every"):
            c.checkpoint_every = max(round(length(c) / SAVES), 1)
        for section, cls in ((c.eval, Eval), (c.boards, Boards)):  # the evaluation reads the test
            for name in [k for k, x in section.items() if is_section(x)]:
                del section[name]
                if name in values.fields(cls):
                    section[name] = None
        c.eval.every, c.keep_checkpoints, c.seed = 0, 1, cell.seed
        c.data.channels = len(row.network.mean) if row.network else c.data.channels
        c.init_from = os.fspath(evaluation.about["model"]) if row.model else None
        network = row.network
        assert network is not None
        brought = {"encoder": network.module, "mean": network.mean, "std": network.std}
        try:
            return adoption.with_settings(c, brought)
        except ConfigError as error:
            raise ConfigError(f"{FLAG}: {error}") from None

    # ---------------------------------------------------------------- one cell
    def score(self, evaluation: Evaluation, cell: Cell) -> Result:
        fit, held = evaluation.places(cell)
        c = self.config(evaluation, cell, len(fit))
        best: Trial | None = None
        labels = np.zeros(0)
        for rate in self.rates:
            for trial in self.trials(evaluation, cell, c, rate, fit, held):
                if best is None or better(trial.score, best.score):
                    best = trial
        assert best is not None
        if not np.isfinite(best.score.loss):
            raise RunError(f"{evaluation.words(cell)}: no run is finite; allowed: smaller --rates")
        logits, labels = outputs(evaluation, best.made, best.state, evaluation.test)
        final = scoring.score(logits, labels)
        sizes = len(fit), len(held), len(labels)
        return Result(final.top1, final.top5, best.score.top1, best.setting, *sizes)

    def trials(
        self,
        evaluation: Evaluation,
        cell: Cell,
        c: Config,
        rate: float,
        fit: np.ndarray,
        held: np.ndarray,
    ) -> list[Trial]:
        """Return the weights of one training, and their moving average if it has one.

        Args:
          c: see `config`; rate: a factor of its learning rate.
          fit, held: places of the training images to learn from and to choose on.
        """
        c = copy.deepcopy(c).unlock()
        name = "base_lr" if c.optimizer.lr is None else "lr"
        c.optimizer[name] *= rate
        folder = os.path.join(FILE, evaluation.key(cell), f"rate_{rate:g}")
        place = os.path.join(os.fspath(evaluation.place.path), folder)
        learned = Places(evaluation.train, fit)
        row = evaluation.row(cell.row)
        text = choice(evaluation).text
        recipe = text, resolved(config_files.load(text))
        try:
            mesh = evaluation.mesh_for(len(fit))
            made = setup(c.lock(), mesh=mesh, source=learned, model=row.model)
            steps = f"{made.clock.total_steps:,} updates of {c.batch_size} images"
            evaluation.say(f"{evaluation.words(cell)}, rate {rate:g}: {steps} in {folder}")
            with open_run(made, place, recipe, quiet=True) as run:
                state = train(run)
        except ConfigError as error:  # the settings are checked: this arose while the run wrote
            raise RunError(str(error)) from error
        state = state.replace(opt_state=())
        words = f"rate {rate:g}, lr {float(made.lr(peak(made))):.3g}"
        both = {words: state.replace(ema={})}
        if state.ema:
            both[f"{words}, moving average"] = state.replace(params=state.ema, ema={})
        chosen_on, out = Places(evaluation.train, held), []
        for setting, weights in both.items():
            found = scoring.score(*outputs(evaluation, made, weights, chosen_on))
            out.append(Trial(found, setting, made, weights))
        return out

    def notes(self, evaluation: Evaluation, results: Results) -> list[str]:
        chosen = choice(evaluation)
        lacks = f" ({chosen.said} has none of its own)" if chosen.said else ""
        out = [
            f"{self.title}: the recipe {chosen.text}{lacks}, begun with the encoder's weights or "
            "with random ones, batch and rate scaled to the images; its runs lie in fine_tune/ of "
            "the results, for mimjax.load, export and robustness."
        ]
        if without := [ROWS[row.name] for row in evaluation.rows if not self.has(row)]:
            out.append(f"{self.title}, {', '.join(without)}: no number, there is no encoder.")
        return out + edges(self, results, ROWS, "rate {:g}".format, "the recipe's")


def better(a: scoring.Score, b: scoring.Score) -> bool:
    """Return whether a score is better than another; of equal accuracies that of less loss."""
    return (a.top1, -a.loss) > (b.top1, -b.loss)


def choice(evaluation: Evaluation) -> Choice:
    """Return the recipe of the model that is evaluated, by its method, size and images.

    The method is that of the run, or whose code has files of this layout. On images of the demos
    the demo's small settings are taken.
    """
    model: Model | None = evaluation.model
    assert model is not None
    known = config_files.import_config(FILE).RECIPES
    task = model.config.task.rpartition(":")[2]
    said = task or model.network.layout
    method = (task or model.network.layout.split("_")[0]).lower()
    sizes = sorted(SIZES, key=lambda name: SIZES[name][0])
    fits = (name for name in sizes if SIZES[name][0] >= model.module.width)
    text = f"{FILE}:method={method if method in known else OTHERS},size={next(fits, sizes[-1])}"
    data = evaluation.train.name
    text += f",demo,data={data}" if data in demos.LABELED else ""
    if method in known:
        return Choice(text, method, "")
    return Choice(text, OTHERS, said or "this model")


def peak(made: Setup) -> int:
    """Return a step with a run's highest learning rate."""
    return int(np.argmax(np.asarray(made.lr(np.arange(made.clock.total_steps)))))


def outputs(
    evaluation: Evaluation, made: Setup, state: TrainState, source: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits [m c] and labels [m] of all images of a source that have a label."""
    mesh, task = made.program.mesh, precision.computing(made.task, "float32")
    classify = jax.jit(precision.precise(task.classify), out_shardings=sharding.replicated(mesh))
    augment = build(Augment, made.config.data.augment, "data.augment")
    rows, labels = [], []
    for batch in evaluation.images(source, task.views["image"], augment, mesh):
        stopping.check()
        counts = (batch["weight"] > 0) & (batch["label"] >= 0)
        logits = classify(state, {}, sharding.to_global(mesh, batch))
        rows.append(np.asarray(jax.device_get(logits))[counts])
        labels.append(batch["label"][counts])
    return np.concatenate(rows), np.concatenate(labels)
