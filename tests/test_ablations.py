"""Every row of configs/ablations.md: it is a valid run, and changes what its name says.

ablation_rows.txt names all rows and what each changes. Here the cheap parts of every row are
compared (batches, rates, schedules, the optimizer), and in one table of each paper the programs of
rows that together set everything that any row sets; `make test-gate` compares those of the other
tables, `make test-all` all programs, and runs each row.
"""

import functools
import re

import ablation_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import schema
from mimjax.run import setup
from mimjax.task import Clock, init_state
from mimjax.train.step import train_step

ROWS = runs.rows()
EXPECTED = runs.expected()
COMMANDS = sorted({row.command for row in ROWS})
QUICK = {"batch", "rates", "weights", "decays", "optimizer"}  # words that need no program


def short(command):
    return command.replace("--config", "").strip("=")


def of_table(table):
    """(row, what it is to change) of a table."""
    return [(row, EXPECTED[table][row.name]) for row in ROWS if row.table == table]


def test_every_row_is_named():
    """A row of the document without expectations, or the other way round, fails here."""
    document = {}
    for row in ROWS:
        assert row.name not in document.setdefault(row.table, []), row
        document[row.table].append(row.name)
    assert document == {table: list(found) for table, found in EXPECTED.items()}
    lines = re.findall(r"^\|.*`--config=.*\|$", runs.TEXT, re.MULTILINE)
    assert len(lines) == len(ROWS)  # no row is written in a way that `rows` overlooks


@functools.cache
def task_of(command):
    return schema.make_task(runs.parse(command), Clock(1, 800))


def test_every_command_is_a_valid_run():
    """Each command is checked at its published size."""
    for command in COMMANDS:
        task_of(command)


# ------------------------------------------------------------------ what names say
WIDTHS = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280}
# tables whose rows are named by a number, and the setting that it is
NUMBERS = {
    "MAE, (a) Decoder depth": lambda task: task.decoder.depth,
    "MAE, (b) Decoder width": lambda task: task.decoder.width,
    "CAE v2, Table 4: depth of the regressor (ViT-B; linear / fine-tuning)": lambda task: (
        task.regressor.depth if task.regressor else 0
    ),
}


def says(row):
    """(what the name says, what the command sets) for each number and size in a row's name."""
    c, task, name = runs.parse(row.command), task_of(row.command), row.name
    if row.table in NUMBERS:
        yield int(name), NUMBERS[row.table](task)
    for number in re.findall(r"(\d+) epochs", name):
        # BootMAE's schedule of 801 epochs gives the checkpoint of 800
        yield int(number), c.epochs - (c.epochs == 801)
    for number in re.findall(r"batch (?:of )?(\d+)", name):
        yield int(number), c.batch_size
    for size in re.findall(r"(?:ViT|MAE)-(Ti|S|B|L|H)\b", name):
        yield WIDTHS[size], task.encoder.width
    for number in re.findall(r"regressor width (\d+)", name):
        yield int(number), task.pixel_decoder.width
    for number in re.findall(r"^depth (\d+)", name):
        yield [int(number)] * 2, [task.pixel_decoder.depth, task.feature_decoder.depth]
    for which, number in re.findall(r"(regressor|decoder)[\w ]* of depth (\d+)", name):
        yield int(number), getattr(task, which).depth
    for number in re.findall(r"(\d+) %", name):
        yield int(number), round(100 * share(row, task))


def share(row, task):
    """The share of an image that a row's name is about."""
    masked = task.num_masked / task.encoder.num_patches
    if "momentum encoder" not in row.table:
        return masked
    seen = task.feature_target.masked_share
    return 1.0 if seen is None else seen * masked


def test_names_say_what_is_set():
    said = [(row, *pair) for row in ROWS for pair in says(row)]
    wrong = [(row.table, row.name, a, b) for row, a, b in said if a != b]
    assert not wrong
    assert len(said) > 200


def test_injected_blocks_are_those_of_the_names():
    """Table 8: the first, the 6th and the last block of twelve."""
    blocks = {0: "low", 5: "middle", -1: "high"}
    table = [row for row in ROWS if "Table 8: injected" in row.table]
    for row in table:
        task = task_of(row.command)
        found = blocks[task.pixel_decoder.inject], blocks[task.feature_decoder.inject]
        assert " / ".join(found) == row.name
    assert len(table) == 9


def test_masks_are_those_of_each_paper():
    """BootMAE caps blocks at 60 patches, BEiT's generator not; CAE's random masks round down."""
    named = lambda config, kind: [
        c for c in COMMANDS if f"configs/{config}.py" in c and f"masking={kind} " in f"{c} "
    ]
    # ViT-L: MAE's own ablations
    caps = {("size=l" in c, task_of(c).masking.max_block) for c in named("mae", "Block")}
    assert caps == {(True, None), (False, 60)}
    assert {task_of(c).masking.max_block for c in named("bootmae", "Block")} == {60}
    assert {task_of(c).num_masked for c in named("caev2", "Random")} == {29, 49, 98}


# ------------------------------------------------------------------ what differs
def settings(command):
    """What a command sets: (config, setting and, where it is no plain number, its value).

    Paths, sizes and lengths are left out; indices of blocks are kept, and depths of one decoder.
    Arguments, as tokenizer=vqgan, mean the same in every config.
    """
    first, *words = command.split()
    config, _, arguments = first.partition(":")
    found = {(config,)}
    found |= {(a,) for a in arguments.split(",") if a and not a.startswith(("path", "size"))}
    for word in words:
        name, _, value = word.removeprefix("--config.method.").partition("=")
        if not name.startswith("--") and not name.endswith("path"):
            number = re.fullmatch(r"-?[\d.e-]+", value) and not re.search(
                r"inject|^decoder\.depth", name
            )
            found.add((config, name, "" if number else value))
    return found


@functools.cache
def representatives():
    """Rows whose programs are compared by `make test` and `make test-gate`.

    Batches, rates and weights tell others from their bases; together these rows set everything that
    the remaining rows set, those with most settings first.
    """
    quiet = {
        row.command
        for row in ROWS
        if (words := EXPECTED[row.table][row.name].words) and not words & QUICK
    }
    seen, chosen = set(), set()
    for command in sorted(quiet, key=lambda c: (-len(settings(c)), c)):
        if not settings(command) <= seen:
            chosen.add(command)
            seen |= settings(command)
    return chosen


# tables of few and small programs
WHOLE = ("MAE, (d) Target", "BootMAE, Table 4: decoders", "CAE v2, Table 2: losses")
WHOLE += (
    "CAE, Figure 4: reconstruction without the regressor",
    "MR-MAE, Table 4: high-level targets",
)


def test_a_table_of_each_paper_is_compared_whole():
    assert set(WHOLE) <= EXPECTED.keys()
    assert all(any(row.command in representatives() for row, _ in of_table(t)) for t in WHOLE)


@pytest.mark.parametrize("table", EXPECTED)
def test_rows_change_what_their_names_say(table):
    """Settings are compared in all rows, programs in a table of each paper."""
    compare(table, lambda command: table in WHOLE and command in representatives())


@pytest.mark.gate
@pytest.mark.parametrize("table", [t for t in EXPECTED if t not in WHOLE])
def test_programs_change_as_their_names_say(table):
    compare(table, lambda command: command in representatives())


@pytest.mark.slow
@pytest.mark.parametrize("table", EXPECTED)
def test_rows_change_nothing_else(table):
    compare(table, lambda command: True)


def compare(table, whole):
    """Compare the rows of a table with their bases, and with one another.

    Args:
      whole: whether the programs of a command are compared, or only what needs none.
    """
    found, wrong = {}, {}
    for row, (words, base) in of_table(table):
        deep = whole(row.command)
        look = runs.made_of if deep else runs.quick_parts
        parts = look(row.command)
        differs = runs.differences(parts, look(base))
        if differs != (words if deep else words & QUICK):
            wrong[row.name] = " ".join(sorted(differs))
        if deep and words:  # several rows may be their base
            found.setdefault(str(sorted(parts.items())), []).append(row.name)
    assert not wrong
    assert [names for names in found.values() if len(names) > 1] == []


# ------------------------------------------------------------------ two steps of each
DONE = set()  # what has run: rows that differ in length alone are one small run


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=short)
def test_row(command):
    c = runs.shrink(runs.parse(command))
    key = c.to_json(sort_keys=True)
    if key not in DONE:
        two_steps(c)
        DONE.add(key)


def two_steps(c):
    """Two updates of a small config, with frozen networks of random weights."""
    clock = Clock(1, 2)
    task = schema.make_task(c, clock)
    data = runs.data(c, task)
    tx, _ = setup.make_tx(c, task, clock)
    # Not jitted: rows share the compiled primitives of one another, which is far quicker.
    frozen = task.fit_frozen(
        task.init_frozen(jax.random.key(1)),
        lambda n: np.concatenate([data.batch(s)["image"] for s in range(-(-n // 2))])[:n],
    )
    state = init_state(jax.random.key(0), task=task, tx=tx)
    for step in range(2):
        batch = jax.tree.map(jnp.asarray, data.batch(step))
        state, metrics = train_step(state, frozen, batch, task=task, tx=tx)
        assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
    assert int(state.step) == 2
