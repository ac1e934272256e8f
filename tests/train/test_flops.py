"""The FLOP formulas against published tables, the count on the program, and XLA."""

import helpers
import jax
import pytest

from benchmarks import flops as formulas
from mimjax import schema, sharding
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.mae import MAE
from mimjax.models.vit import ViT
from mimjax.task import Clock
from mimjax.train.flops import count, step_flops

GIGA = 1e9


@pytest.mark.parametrize(("size", "expected"), [("s", 38.91), ("b", 58.45), ("l", 124.22)])
def test_mae_table(size, expected):
    got = formulas.mae(formulas.published("mae", size), official=True).train / GIGA
    assert got == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("size", "expected"), [("s", 31.69), ("b", 93.67), ("l", 264.29)])
def test_bootmae_table(size, expected):
    """The table takes the regressor's attention to be 512 wide; 12 heads of 42 make 504."""
    task = formulas.published("bootmae", size)
    whole_heads = task.pixel_decoder.clone(heads=16)
    task = BootMAE(encoder=task.encoder, pixel_decoder=whole_heads)
    got = formulas.bootmae(task, official=True).train / GIGA
    assert got == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("method", ["mae", "bootmae"])
def test_the_program_runs_what_the_formula_says(method):
    task = formulas.published(method, "ti")
    assert step_flops(task) == pytest.approx(getattr(formulas, method)(task).train, rel=1e-9)


def test_teacher_on_a_part_of_the_image():
    task = BootMAE(encoder=ViT(192, 2, 3, pos_embed="sincos_yx", bias="qv"), teacher_fraction=0.5)
    assert step_flops(task) == pytest.approx(formulas.bootmae(task).train, rel=1e-9)


def test_a_branch_left_out():
    task = BootMAE(encoder=ViT(192, 2, 3), feature_weight=0.0)
    assert formulas.bootmae(task).no_grad == 0
    assert step_flops(task) == pytest.approx(formulas.bootmae(task).train, rel=1e-9)


def test_xla_agrees():
    """XLA counts elementwise work too: a few percent above the products."""
    task = MAE(encoder=ViT(384, 2, 6), decoder=MAE().decoder.clone(depth=1))
    batch = {
        "image": (2, 224, 224, 3),
        "ids_v": (2, 49),
        "ids_m": (2, 147),
        "target": (2, 147, 768),
    }
    batch = {
        k: jax.ShapeDtypeStruct(v, "int32" if k.startswith("ids") else "float32")
        for k, v in batch.items()
    }
    batch["mask"] = jax.ShapeDtypeStruct((2, 196), "bool")
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)[0]
    loss = lambda p, b, k: task.loss(p, {}, b, k, 0, True).total
    lowered = jax.jit(jax.grad(loss)).lower(params, batch, key)
    by_xla = lowered.compile().cost_analysis()["flops"] / 2
    assert 1.0 <= by_xla / formulas.mae(task).train <= 1.05


def test_the_run_counts_on_the_step_that_it_compiles():
    """Of a whole batch in micro-batches on several devices: so a run traces its step only once."""
    task, program = helpers.make(
        helpers.small("bootmae", accum=2), sharding.make_mesh(2, 2, devices=jax.devices()[:4])
    )
    assert count(program.trace().jaxpr) / 16 == step_flops(task)


def test_a_teacher_that_nothing_reads_is_not_counted():
    """MR-MAE without its mimic loss and with random masks: the teacher's depth does not matter."""
    unread = {"method.mimic_weight": 0.0, "method.select": "random", "method.decoder.depth": 1}

    def flops(depth):
        c = helpers.small("mrmae", **unread, **{"method.target.network.depth": depth})
        return step_flops(schema.make_task(c, Clock(1, 1)))

    assert flops(3) == flops(1)


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
