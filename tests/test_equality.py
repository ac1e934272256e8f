"""The compositions against the classes that they replaced: numbers of the commit before them.

`golden/equality.json` holds the losses, gradients and averages of eight methods as d084a34 computed
them, from weights and images that are drawn anew here. A gradient is told by its norm and by a sum
with random signs, part by part.
"""

import dataclasses
import json
import random

import equality
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.losses import Cosine
from mimjax.masking.block import BlockAtMost
from mimjax.methods.beit import BEiT
from mimjax.methods.bootmae import BootMAE, Lambda
from mimjax.methods.cae import CAE
from mimjax.methods.caev2 import CAEv2
from mimjax.methods.mae import MAE
from mimjax.methods.mcmae import MCMAE
from mimjax.methods.mrmae import MRMAE
from mimjax.methods.parts import Average
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.dalle import DallEEncoder
from mimjax.models.decoders import InjectedDecoder, MAEDecoder
from mimjax.models.regressor import LatentDecoder, Regressor, SharedHead
from mimjax.models.vit import ViT
from mimjax.schedules import Constant
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock, TrainState

STORED = json.loads((helpers.ROOT / "tests/golden/equality.json").read_text())
LIMIT = 1e-6
BEIT = {"layer_scale": 0.1, "bias": "qv", "init_scheme": "beit", "use_mask_token": True}
BLOCKS = {"heads": 4, "drop_path": 0.0}
DECODER = MAEDecoder(16, 1, 2)
DALLE = DallE(network=DallEEncoder(n_hid=4, n_blk=1, vocab=16))


def vit(depth=2, **options):
    return ViT(24, depth, 2, 8, (32, 32), **options)


def cae_vit(**options):
    style = {"pos_embed": "sincos_yx", "bias": "qv", "init_scheme": "cae", "layer_scale": 0.1}
    return vit(**style, **options)


def conv(**options):
    stages = {"stage_widths": (8, 12), "stage_depths": (1, 1), "stage_mlp_ratios": (2.0, 3.0)}
    sizes = {"width": 24, "depth": 2, "heads": 2, "strides": (2, 2, 2), "image_size": (32, 32)}
    return ConvViT(**sizes, **stages, **options)


def clip(**options):
    return CLIP(CLIPVision(20, 2, 2, 4, (3, 3), 12), **options)


def with_(term, **changes):
    return dataclasses.replace(term, **changes)


CASES = {
    "MAE": MAE(encoder=vit(), decoder=DECODER),
    "MCMAE": MCMAE(encoder=conv(), decoder=DECODER, pixel_target=Pixels("none")),
    "BEiT, at most": BEiT(
        encoder=vit(pos_embed="none", rel_pos="shared", **BEIT),
        masking=BlockAtMost(),
        code_target=DALLE,
    ),
    "BEiT, CLIP by cosine": BEiT(
        encoder=vit(pos_embed="learned", **BEIT),
        code_target=clip(),
        code=with_(BEiT.code, loss=Cosine()),
    ),
    "BootMAE": BootMAE(
        encoder=vit(3, pos_embed="sincos_yx", bias="qv", init_scheme="bootmae"),
        pixel_decoder=InjectedDecoder(width=16, depth=1, inject=0, head="pixel"),
        feature=with_(BootMAE.feature, schedule=Lambda(0.75)),
    ),
    "CAE, lagging average": CAE(
        encoder=cae_vit(),
        code_target=DALLE,
        align_target=OwnFeatures(of="average", masked_share=1.0, noise=True),
        regressor=Regressor(2, **BLOCKS),
        decoder=LatentDecoder(1, **BLOCKS),
        average=Average(decay=Constant(0.9), takes="old"),
    ),
    "CAE v2, projected, the paper's loss": CAEv2(
        encoder=cae_vit(project=16),
        teacher_target=clip(),
        regressor=Regressor(2, final_norm=False, **BLOCKS),
        head=SharedHead("fc_ln"),
        token=with_(CAEv2.token, at="visible"),
        masked=with_(CAEv2.masked, weight=1.0),
    ),
    "MR-MAE, standardized": MRMAE(
        encoder=conv(fuse_layers=(0, 1)),
        decoder=DECODER,
        mimic_target=clip(project=False),
        pixel=with_(MRMAE.pixel, weight=0.3),
        mimic=with_(MRMAE.mimic, weight=0.7, normalize="target"),
    ),
}


def computed(task):
    """Metrics, gradients and the average after an update that takes a tenth of each weight."""
    key, step = jax.random.key(0), jnp.int32(equality.STEP)
    like = jax.eval_shape(task.init, key)[0]
    params = equality.numbers(like, "params")
    ema = equality.numbers(jax.eval_shape(task.init_ema, like), "average")
    like = jax.eval_shape(task.init_frozen, key)
    frozen = {name: equality.numbers(tree, "frozen") for name, tree in like.items()}
    rng, batch = random.Random(1), equality.images(task.views)
    masks = [task.sample(rng, 0) for _ in range(equality.BATCH)]
    batch |= {name: np.stack([m[name] for m in masks]) for name in masks[0]}

    @jax.jit
    def run(params, ema, frozen, batch):
        state = TrainState(step, params, {}, ema, ())
        prepared, _ = task.prepare(state, frozen, batch, key, True)

        def loss(params):
            out = task.loss(params, {}, prepared, key, step, True)
            return out.total, out.metrics | {"loss/total": out.total}

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        new = jax.tree.map(lambda p: p * 0.9, params)
        return metrics, grads, task.update_ema(ema, params, new, step)

    return run(params, ema, frozen, batch)


@pytest.mark.parametrize("name", helpers.gated(CASES, ("MAE", "CAE, lagging average")))
def test_losses_gradients_and_averages_are_those_before(name):
    task, stored = dataclasses.replace(CASES[name], clock=Clock(*equality.CLOCK)), STORED[name]
    assert task.num_masked == stored["masked"]
    metrics, grads, average = computed(task)
    assert stored["metrics"].keys() <= metrics.keys()
    for key, value in stored["metrics"].items():
        np.testing.assert_allclose(metrics[key], value, rtol=LIMIT, err_msg=key)
    for ours, theirs in ((grads, stored["gradients"]), (average, stored["average"])):
        ours, top = equality.summary(ours), max((v[0] for v in theirs.values()), default=0.0)
        assert ours.keys() == theirs.keys()
        for key, (norm, total) in theirs.items():
            # what is zero but for rounding is compared with the largest
            bound = LIMIT * max(norm, 1e-3 * top)
            np.testing.assert_allclose(ours[key][0], norm, rtol=0, atol=bound, err_msg=key)
            # Another processor rounds otherwise, which moves a sum of thousands more than a norm.
            np.testing.assert_allclose(ours[key][1], total, rtol=0, atol=5 * bound, err_msg=key)


def test_every_stored_case_is_compared():
    assert CASES.keys() == STORED.keys()
