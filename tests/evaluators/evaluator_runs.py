"""A tiny task on digits, its state and its evaluators: what the tests of this folder share."""

import functools

import jax
import optax

from mimjax import sharding
from mimjax.data import make_source
from mimjax.evaluators import make_evaluators
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


def evaluators(task, mesh, write=None, **kwargs):
    """By name, on 60 images of each split unless told otherwise."""
    defaults = {"max_images": 60, "batch_size": 32, "seed": SEED, "threads": 2}
    splits = make_source("digits", "train"), make_source("digits", "test")
    options = {**defaults, **kwargs}
    made = make_evaluators(task, mesh, *splits, write=write or (lambda *_: None), **options)
    return {e.name: e for e in made}


def step_later(state):
    """Another state: what the evaluators meet after some training."""
    params = jax.tree.map(lambda x: x * 1.1, state.params)
    return state.replace(step=state.step + 10, params=params)
