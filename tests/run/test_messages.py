import dataclasses

import helpers
import jax
import pytest

from mimjax import schema, sharding
from mimjax.data import configured
from mimjax.data.sources import Synthetic
from mimjax.run import messages
from mimjax.run.setup import setup
from mimjax.schedules import WSD, Constant
from mimjax.schema import section
from mimjax.task import Clock
from mimjax.train.optimizers import Lion


def block(c):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = setup(c, mesh=mesh, images=4 * c.batch_size)
    data = configured.make_data(c, made.task, "train")
    return messages.start_block(dataclasses.replace(made, pipeline=data))


def test_the_start_block_says_what_people_debug_from():
    c = helpers.small("bootmae", **{"optimizer.base_lr": 1.5e-4, "accum": 2})
    text = block(c)
    for part in (
        "16 = 1 devices x 8 x 2 accumulated",
        "9.37e-06 (base 0.00015 x 16 / 256)",
        "8 steps = 2.0 epochs of 4 steps",
        "digits: 1,438 images, image 8x8, 16 patches, 8 masked",
        "EMA",
        "  attention   manual (auto on cpu: the fastest measured there, ",
    ):
        assert part in text, text
    # BootMAE's absolute min_lr of 1e-4 is above this peak
    assert "WARNING     optimizer.schedule.min_lr 0.0001 is above the peak rate" in text
    c.optimizer.lr = 1e-3
    assert "WARNING" not in block(c)


def test_the_start_block_names_the_parts_and_their_settings():
    c = helpers.small("mae")
    text = block(c)
    assert "  optimizer   AdamW b1 0.9, b2 0.95, eps 1e-08\n" in text
    assert "x 16 / 256), warm-up 0 epochs, down to 0\n" in text
    c.optimizer.rule = section(Lion, b2=0.98)
    c.optimizer.schedule = section(WSD, warmup_steps=2, decay_share=0.5, form="linear")
    c.data.source = section(Synthetic, length=64, side=8)
    text = block(c)
    assert "  optimizer   Lion b1 0.9, b2 0.98\n" in text
    assert ", warm-up 2 steps, then constant, over the last 50 % of the run down to 0" in text
    assert "synthetic (length 64, side 8): 64 images" in text


@pytest.mark.parametrize(
    ("key", "whole", "override"), [("warmup_steps", 8, "1"), ("warmup_epochs", 2.0, "0.25")]
)
def test_a_warm_up_that_is_the_whole_run_is_a_warning(key, whole, override):
    """Here the block speaks of eight steps in two epochs."""
    c = helpers.small("mae", **{f"optimizer.schedule.{key}": whole})
    line = f"WARNING     optimizer.schedule.{key} {whole:g} is the whole run of 8 steps: "
    line += "the rate never"
    text = block(c)
    assert line in text
    assert text.endswith(f"add --config.optimizer.schedule.{key}={override} (5% of the run)")
    c.optimizer.schedule[key] = type(whole)(override)
    assert "WARNING" not in block(c)
    c.optimizer.schedule = section(Constant, **{key: whole})  # to be extended later
    assert "WARNING" not in block(c)


def test_the_start_block_says_that_the_target_sees_another_size():
    layers = {"method.code_target.encoder.num_layers": 2}
    text = block(helpers.small("cae", **layers))  # 4 pixels per token, for 4x4 patches
    assert "image_16x16_bicubic  the same crop resized to 16x16" in text
    assert "of the student's 8x8" in text
    assert "the same crop" not in block(helpers.small("mae"))


def test_the_start_block_says_what_is_a_guess():
    small = {"method.encoder.width": 192, "method.encoder.depth": 1}
    guess = "NOTE        the regressor is 192 wide, as the encoder: a guess"
    assert guess in block(helpers.small("cae", **small))
    small["method.encoder.project"] = 768
    assert schema.make_task(helpers.small("cae", **small), Clock(4, 8)).notes == ()
    for name in ("cae", "mcmae", "mrmae"):
        published = helpers.CONFIGS[name]
        assert schema.make_task(published.get_config(), Clock(4, 8)).notes == ()
        assert len(schema.make_task(published.get_config("size=s"), Clock(4, 8)).notes) == 1


def test_the_start_block_shows_what_is_learned_as_a_table():
    """Each term of each method has a line, aligned, with target, network, place and loss."""
    for name in helpers.METHODS:
        task = schema.make_task(helpers.small(name), Clock(4, 8))
        rows, lines = task.describe(), messages.composition(task)
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            assert all(cell in line for cell in row)
        starts = [[line.index(row[0]), line.rindex(row[-1])] for line, row in zip(lines, rows)]
        assert all(start == starts[0] for start in starts)
    text = block(helpers.small("bootmae"))
    header, pixel, feature = (line.split() for line in text.splitlines()[-4:-1])
    assert header == ["term", "target", "network", "place", "loss", "weight"]
    assert pixel[:3] == ["pixel", "pixel_target", "="]
    assert pixel[-3:] == ["masked", "MSE", "1"]
    assert feature[-7:] == ["masked", "MSE,", "normalize", "both", "0.3", "*", "Lambda"]


def test_the_parameter_table_names_every_parameter():
    c = helpers.small("bootmae")
    _, program = helpers.make(c)
    header, *lines, total = messages.parameter_table(c, program).splitlines()[1:]
    cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
    assert cells(header) == ["Parameter", "Shape", "Decay", "Lr_scale", "Sharding"]
    table = {cells(line)[0]: cells(line)[1:] for line in lines}
    assert table["encoder/cls_token"][1] == "0"  # BootMAE spares it
    assert table["pixel_decoder/mask_token"][1:] == ["0.05", "1", "replicated"]
    assert table["encoder/patch_embed/kernel"][0] == "12x32"
    leaves = jax.tree.leaves(program.abstract_state.params)
    assert total == f"Total: {sum(x.size for x in leaves):,}"
    assert len(table) == len(leaves) + 1  # the table's lines above and below
