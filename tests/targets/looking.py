"""What a target is given to look at."""

import jax
import jax.numpy as jnp

from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD, normalize
from mimjax.task import Seen, TrainState


def seen(frozen, batch, ids=None, pieces=1, hidden=None, name="feature_target"):
    """A `Seen` with the student's image normalized by ImageNet's statistics."""
    image = normalize(batch["image"], IMAGENET_MEAN, IMAGENET_STD)
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, {}, {})
    rest = jax.random.key(0), True, pieces, lambda name: None, hidden
    return Seen(name, frozen, batch, image, ids or {}, state, *rest)
