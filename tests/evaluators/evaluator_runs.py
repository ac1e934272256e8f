"""A tiny task on digits, its state and its evaluators: what the tests of this folder share."""

import functools

import jax
import optax

from mimjax import sharding
from mimjax.data import make_source
from mimjax.evaluators import make_evaluators
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.health import Health
from mimjax.evaluators.pictures import Pictures
from mimjax.evaluators.probes import Probes
from mimjax.inference.samples import Bench, Subset
from mimjax.methods.mae import MAE
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.task import Clock
from mimjax.train.program import make_program

SEED = 3


def tiny_task():
    return MAE(
        clock=Clock(1, 10),
        encoder=ViT(width=16, depth=1, heads=2, patch=2, image_size=(8, 8)),
        decoder=MAEDecoder(width=16, depth=1, heads=2),
    )


@functools.cache
def started(devices=1):
    """Task, mesh and state at step 0."""
    task = tiny_task()
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    rules = ((".*", "fsdp"),)
    program = make_program(task, optax.sgd(0.1), mesh, rules, batch_size=8, seed=SEED)
    return task, mesh, program.init()


def bench(task, mesh, splits=None, **kwargs):
    """Images for evaluators: 60 of each split of the digits unless told otherwise."""
    options = {"batch_size": 32, "seed": SEED, "threads": 2} | kwargs
    limit = options.pop("max_images", 60)
    splits = splits or (make_source("digits", "train"), make_source("digits", "test"))
    return Bench(task, mesh, *(Subset(split, limit) for split in splits), **options)


def made(task, mesh, sections, **kwargs):
    """The evaluators of these sections, ready to run."""
    return make_evaluators(sections, bench(task, mesh, **kwargs))


def measures(task, mesh, *, error=True, health=False, probes=False, pictures=8, **kwargs):
    """What the shipped evaluators call, by the name under which it is logged."""
    wanted = {
        "error": MaskedError() if error else None,
        "health": Health() if health else None,
        "probes": Probes() if probes else None,
        "pictures": Pictures(count=pictures) if pictures else None,
    }
    sections = {name: e for name, e in wanted.items() if e}
    return {e.name: e.measure for e in made(task, mesh, sections, **kwargs)}


def step_later(state):
    """A changed state, as evaluators meet it after some training."""
    params = jax.jit(lambda p: jax.tree.map(lambda x: x * 1.1, p))(state.params)
    return state.replace(step=state.step + 10, params=params)
