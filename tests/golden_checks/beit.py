"""BEiT against numbers of the official code."""

import jax
import numpy as np

from golden_checks import cae, common
from golden_checks.cae import KEY
from mimjax.masking.block import BlockAtMost
from mimjax.methods.beit import BEiT


def build(c):
    n = (c["img_size"] // c["patch_size"]) ** 2
    rel_pos = "shared" if c["use_shared_rel_pos_bias"] else "none"
    return BEiT(
        encoder=cae.encoder(
            c,
            pos_embed="learned" if c["use_abs_pos_emb"] else "none",
            rel_pos="per_block" if c["use_rel_pos_bias"] else rel_pos,
            init_scheme="beit",
            use_mask_token=True,
        ),
        masking=BlockAtMost(common.ratio(max(c["num_mask"]), n)),
        code_target=cae.target(c),
    )


def pretrain(z, meta):
    task = build(meta["config"])
    params = common.imported(common.arrays(z, "sd"), task)
    task = common.given(task, "code_target")
    batch = cae.batch_of(z["in/images"], z["in/mask"], code_target=cae.codes_of(z))

    @jax.jit
    def run(params, batch):
        prepared = common.inputs(task, params, batch)

        def loss(params):
            out = task.loss(params, {}, prepared, KEY, 0, False)
            return out.total, out.predictions["code"].values["masked"]

        (total, pred), grads = jax.value_and_grad(loss, has_aux=True)(params)
        read = {"params": params["encoder"]}, prepared.image, None, prepared.mask
        tokens = task.encoder.apply(*read).tokens
        head = {"params": params["head"]}
        every = task.network("head").apply(head, {"every": tokens[:, 1:]})["every"]
        return total, pred, grads, tokens, every, prepared.weight

    total, pred, grads, tokens, every, weight = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    common.close("features", tokens, z["out/features"], 1e-4)
    common.close("logits_all", every, z["out/logits_all"], 1e-4)
    kept = np.asarray(pred)[np.asarray(weight) > 0]  # (batch, patch) order, padding left out
    common.close("logits_masked", kept, z["out/logits_masked"], 1e-4)
    cae.gradients(common.arrays(z, "grad"), grads, "beit")
