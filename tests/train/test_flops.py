"""The FLOP formulas against published tables, the count on the program, and XLA."""

import dataclasses

import helpers
import jax
import pytest

from benchmarks import flops as formulas
from mimjax import sharding
from mimjax.masking.base import Random
from mimjax.masking.block import BlockRandom
from mimjax.masking.views import Complementary
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.mae import MAE
from mimjax.methods.mrmae import MRMAE
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.targets.clip import CLIP
from mimjax.targets.own import OwnFeatures
from mimjax.task import Prepared
from mimjax.train.flops import count, step_flops

GIGA = 1e9


# GFLOP per image and train step of the published codes, added up by hand for each layer
TABLE = {
    "mae": {"s": 38.91, "b": 58.45, "l": 124.22},
    "bootmae": {"s": 31.69, "b": 93.67, "l": 264.29},
    "beit": {"s": 81.01, "b": 160.10, "l": 424.91},
    "cae": {"s": 81.23, "b": 162.01, "l": 366.08},
    "caev2": {"b": 107.64},  # other sizes mask other shares, and L has another teacher
    "mrmae": {"s": 74.25, "b": 93.85, "l": 159.66},
}


@pytest.mark.parametrize("method", TABLE)
def test_table(method):
    for size, expected in TABLE[method].items():
        got = formulas.flops(formulas.published(method, size), official=True).train / GIGA
        assert got == pytest.approx(expected, rel=5e-3), size


def test_what_the_package_saves_is_small():
    """It embeds visible patches alone, and last blocks compute what losses read: up to 4 % less."""
    for method in TABLE:
        task = formulas.published(method, "b")
        ours, theirs = formulas.flops(task).train, formulas.flops(task, official=True).train
        assert 0.96 < ours / theirs <= 1, method


@pytest.mark.parametrize("method", helpers.gated(formulas.METHODS, ["mae", "cae"]))
def test_the_program_runs_what_the_formula_says(method):
    task = formulas.published(method, "ti")
    assert step_flops(task) == pytest.approx(formulas.flops(task).train, rel=1e-9)


def test_teacher_on_a_part_of_the_image():
    encoder = ViT(192, 2, 3, pos_embed="sincos_yx", bias="qv")
    target = OwnFeatures(blocks=(-1,), masked_share=2 / 3)
    task = BootMAE(encoder=encoder, feature_target=target)
    assert formulas.flops(task).no_grad < formulas.flops(BootMAE(encoder=encoder)).no_grad / 1.9
    assert step_flops(task) == pytest.approx(formulas.flops(task).train, rel=1e-9)


def test_a_branch_left_out():
    feature = dataclasses.replace(BootMAE().feature, weight=0.0)
    task = BootMAE(encoder=ViT(192, 2, 3), feature=feature)
    assert formulas.flops(task).no_grad == 0
    assert step_flops(task) == pytest.approx(formulas.flops(task).train, rel=1e-9)


def test_xla_agrees():
    """XLA counts elementwise work too: a few percent above the products."""
    task = MAE(encoder=ViT(384, 2, 6), decoder=MAE().decoder.clone(depth=1))
    shaped = lambda shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype)
    prepared = Prepared(
        image=shaped((2, 224, 224, 3)),
        ids_v=shaped((2, 49), "int32"),
        ids_m=shaped((2, 147), "int32"),
        mask=shaped((2, 196), "bool"),
        targets={"pixel": {"masked": shaped((2, 147, 768))}},
        rows={"pixel": {}},
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)[0]
    loss = lambda p, b, k: task.loss(p, {}, b, k, 0, True).total
    lowered = jax.jit(jax.grad(loss)).lower(params, prepared, key)
    by_xla = lowered.compile().cost_analysis()["flops"] / 2
    assert 1.0 <= by_xla / formulas.flops(task).train <= 1.05


def test_the_run_counts_on_the_step_that_it_compiles():
    """The step is traced once, for a whole batch in micro-batches on several devices."""
    task, program = helpers.make(
        helpers.small("bootmae", accum=2), sharding.make_mesh(2, 2, devices=jax.devices()[:4])
    )
    assert count(program.trace().jaxpr) / 16 == step_flops(task)


@pytest.mark.gate
def test_a_teacher_that_nothing_reads_is_not_counted():
    """MR-MAE without its mimic loss and with random masks: the teacher's depth does not matter."""
    encoder = ConvViT(64, 2, 2, stage_widths=(8, 16), fuse_layers=(0, 1), image_size=(64, 64))
    mimic = dataclasses.replace(MRMAE().mimic, weight=0.0)

    def flops(depth, **parts):
        network = CLIP().network.clone(width=64, depth=depth, heads=2)
        target = CLIP(network=network, project=False)
        decoder = MRMAE().decoder.clone(depth=1)
        return step_flops(MRMAE(encoder=encoder, mimic_target=target, decoder=decoder, **parts))

    assert flops(3, mimic=mimic, masking=Random()) == flops(1, mimic=mimic, masking=Random())
    assert flops(3, mimic=mimic) > flops(1, mimic=mimic)  # the masking reads it
    assert flops(3, masking=Random()) > flops(1, masking=Random())


def test_masks_of_several_rows_and_kinds_are_counted():
    """An image that is seen four times costs about four times as much; the mask's kind nothing."""
    encoder, decoder = ViT(64, 2, 2), MAEDecoder(64, 1, 2)
    count = lambda masking: step_flops(MAE(encoder=encoder, decoder=decoder, masking=masking))
    assert count(Complementary()) == pytest.approx(4 * count(Random()), rel=1e-9)
    assert count(BlockRandom(roll="batch")) == count(Random())


def test_what_is_not_read_inside_a_loop_or_a_call_is_not_counted():
    x = jax.ShapeDtypeStruct((4, 4), "float32")
    body = lambda c, _: ((c[0] @ c[0], c[1] @ c[1] @ c[1]), None)
    loop = jax.jit(lambda x: jax.lax.scan(body, (x, x), None, length=5)[0])
    assert count(jax.make_jaxpr(lambda x: loop(x)[0])(x)) == 5 * 2 * 4**3


def test_loops_and_branches():
    x = jax.ShapeDtypeStruct((4, 4), "float32")
    dot = 2 * 4**3
    loop = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    conv = lambda x: jax.lax.conv(x[None, None], x[None, None, :3, :3], (1, 1), "VALID")
    assert count(jax.make_jaxpr(loop)(x)) == 5 * dot
    assert count(jax.make_jaxpr(branch)(x)) == 2 * dot
    assert count(jax.make_jaxpr(conv)(x)) == 2 * 4 * 9
