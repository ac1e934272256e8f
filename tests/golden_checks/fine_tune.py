"""Fine-tuning against numbers of MAE's, BootMAE's, CAE's and MCMAE's code."""

import functools
import re
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from golden_checks import common
from mimjax import rules
from mimjax.inference import adoption, loading
from mimjax.models.layers import Branch
from mimjax.run.config_files import import_config
from mimjax.schedules import MAECosine
from mimjax.schema import build
from mimjax.task import Clock, TrainState
from mimjax.torch_io.read import detect, load
from mimjax.train import optimizers
from mimjax.train.step import train_step
from mimjax.transfer.fine_tune import FineTune, Labeled, LinearClassifier

OUT, LOSS, GRAD = 5e-5, 2e-5, 1e-4
KEY = jax.random.key(0)
BUFFER = "relative_position_index"


class Tuned:
    """The file's fine-tuned model as a task, whose encoder is adopted like any published file.

    Attributes:
      layout: whose official names the file has.
      params: those of the file, its classifier too.
    """

    def __init__(self, z, method, heads, classes, **settings):
        self.z = z
        recipe = import_config("fine_tune").get_config(f"method={method}")
        self.cfg = build(optimizers.OptimizerConfig, recipe.optimizer, "optimizer")
        self.recipe = build(FineTune, recipe.method, "method")
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/published.safetensors"
            state = {k: v for k, v in common.arrays(z, "sd").items() if BUFFER not in k}
            self.layout = detect.detect(state)
            save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
            c = ConfigDict(
                {"init_from": path, "method": {"heads": heads, "mean": None, "std": None}}
            )
            model = adoption.read(c)
            self.task = self.made(model.module, classes, model.statistics, settings)
            fresh = jax.jit(self.task.init)(KEY)[0]
            self.params = adoption.params(c, self.task, fresh, lambda line: None)
            if model.network.no_head:  # of MAE's names, which are timm's too: how it pools is told
                model = loading.load(path, heads, head_pool="token")
        self.params["head"] = model.params["classifier"]["params"]
        self.params = jax.device_put(self.params)

    def made(self, encoder, classes, statistics, settings):
        """The recipe's task with the file's sizes; MAE's and MCMAE's --cls_token reads a token."""
        known = {
            name: getattr(self.recipe, name)
            for name in ("train_positions", "rel_pos", "layer_decay", "head", "drop_path")
        }
        known |= {"encoder": encoder, "classes": classes}
        known |= dict(zip(("mean", "std"), statistics)) | settings
        return FineTune(Clock(10, 50), **known)

    def official(self, tree):
        """Arrays by official name."""
        renamed = {"encoder": tree["encoder"], "classifier": {"params": tree["head"]}}
        return load.to_torch(renamed, self.layout)

    def check(self, prepared):
        """Logits, loss and gradients, at evaluation's drop rates."""

        @jax.jit
        def run(params):
            loss = lambda p: self.task.loss(p, {}, prepared, KEY, 0, False).total
            logits = self.task.logits(params, {}, prepared.image)[0]
            return logits, *jax.value_and_grad(loss)(params)

        logits, loss, grads = run(self.params)
        common.close("logits", logits, self.z["out/logits"], OUT)
        common.rel("loss", loss, self.z["loss/total"], LOSS)
        found = self.official(grads)
        held = {k: v for k, v in common.arrays(self.z, "grad").items() if k in found}
        assert len(held) > 1
        rest = common.arrays(self.z, "grad").keys() - held.keys()
        assert rest <= {"__global_norm__"}, rest
        for key, value in held.items():
            common.close(f"grad/{key}", found[key], value, GRAD * np.abs(value).max())
        return optax.global_norm(grads)

    def labeled(self):
        batch = {"image": jnp.asarray(common.nhwc(self.z["in/images"]))}
        batch["label"] = jnp.asarray(self.z["in/labels"], jnp.int32)
        return batch, self.task.prepare(None, {}, batch, KEY, False)[0]

    def groups(self):
        """Official name -> (factor of the rate, weight decay)."""
        decays, scales = optimizers.factors(self.cfg, self.params, self.task)
        ours = [
            p.replace("head/", "classifier/params/", 1) if p.startswith("head/") else p
            for p in rules.paths(self.params)
        ]
        rows = detect.rows_for(self.layout, ours)
        found = zip(rows, jax.tree.leaves(scales), jax.tree.leaves(decays), strict=True)
        out = {k: (scale, self.cfg.weight_decay * d) for row, scale, d in found for k in row.keys}
        assert len(out) == sum(len(row.keys) for row in rows)
        return out

    def check_groups(self, theirs):
        ours = self.groups()
        assert ours.keys() == theirs.keys()
        for key, (scale, decay) in theirs.items():
            assert ours[key] == (np.float64(scale), decay), key


def official_groups(state, depth, layer_decay, decay):
    """Official name -> (factor of the rate, weight decay), by the rule that all codes share.

    MAE's and MCMAE's util/lr_decay.py; BEiT's get_num_layer_for_vit in BootMAE, BEiT and CAE.
    """
    out = {}
    for name, x in state.items():
        numbered = re.match(r"blocks3?\.(\d+)\.", name)
        behind = name.split(".")[0] in ("norm", "fc_norm", "head")
        layer = int(numbered[1]) + 1 if numbered else (depth + 1) * behind
        plain = x.ndim == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        out[name] = layer_decay ** (depth + 1 - layer), 0.0 if plain else decay
    return out


def by_name(groups):
    return {k: (g["lr_scale"], g["weight_decay"]) for g in groups for k in g["params"]}


def mae(z, meta):
    c = meta["config"]
    head = (
        {} if c["global_pool"] else {"head": LinearClassifier(pool="cls", layer=None, norm=False)}
    )
    settings = {"layer_decay": c["layer_decay"], "drop_path": 0.0} | head
    tuned = Tuned(z, "mae", c["heads"], c["num_classes"], **settings)
    assert tuned.cfg.weight_decay == c["wd"]
    batch, prepared = tuned.labeled()
    tuned.check(prepared)
    tuned.check_groups(by_name(meta["groups"]))
    tuned_steps(z, c, tuned, batch)


def tuned_steps(z, c, tuned, batch):
    """AdamW steps on one batch, at the file's places in the epoch."""
    rule = optimizers.AdamW(*c["adam_betas"], tuned.cfg.rule.eps)
    assert rule == tuned.cfg.rule
    epochs = c["epoch_fraction_per_step"]
    clock = Clock(10, 10 * c["epochs"])
    schedule = MAECosine(c["warmup_epochs"], min_lr=c["min_lr"])
    lr = jnp.stack([schedule.rate(round(10 * e), clock, c["lr"]) for e in epochs])
    tx = optimizers.make_optimizer(
        tuned.cfg,
        tuned.params,
        lambda step: lr[step],
        optimizers.weight_decay(tuned.cfg, clock),
        tuned.task,
    )
    state = TrainState(jnp.int32(0), tuned.params, {}, {}, jax.jit(tx.init)(tuned.params))
    step = jax.jit(functools.partial(train_step, task=tuned.task, tx=tx))
    losses = []
    for _ in epochs:
        state, metrics = step(state, {}, batch)
        losses.append(metrics["loss/class"])
    common.rel("losses", losses, z["loss/steps"], LOSS)
    start, final = tuned.official(tuned.params), common.arrays(z, "final")
    common.check_movement(
        "final", tuned.official(state.params), final, start, common.without_key_bias
    )


def bootmae(z, meta):
    c = meta["config"]
    settings = {"layer_decay": c["layer_decay"], "drop_path": 0.0}
    tuned = Tuned(z, "bootmae", c["heads"], c["num_classes"], **settings)
    assert (tuned.cfg.weight_decay, c["mean_pooling"]) == (c["wd"], True)
    tuned.check(tuned.labeled()[1])
    tuned.check_groups(by_name(meta["groups"]))


def cae(z, meta):
    c = meta["config"]
    tuned = Tuned(z, "cae", c["num_heads"], c["num_classes"], drop_path=0.0)
    assert (tuned.task.rel_pos == "per_block") == c["use_rel_pos_bias"]
    fixed = ("pos_embed", BUFFER)  # frozen, as in pretraining
    state = {k: v for k, v in common.arrays(z, "sd").items() if not k.endswith(fixed)}
    recipe = tuned.task.layer_decay, tuned.cfg.weight_decay
    assert recipe == (0.65, 0.05)  # of the script for B
    tuned.check_groups(official_groups(state, c["depth"], *recipe))
    norm = tuned.check(tuned.labeled()[1])
    if "grad/__global_norm__" in z.files:
        common.rel("grad_norm", norm, z["grad/__global_norm__"], 1e-4)


def mcmae(z, meta):
    c = meta["config"]
    first = LinearClassifier(pool="first", layer=None, norm=False)
    settings = {"layer_decay": c["layer_decay"], "drop_path": c["drop_path"]}
    settings |= {} if c["global_pool"] else {"head": first}
    tuned = Tuned(z, "mcmae", c["heads"], c["num_classes"], **settings)
    images = jnp.asarray(common.nhwc(z["in/images"]))
    target = jnp.asarray(z["in/targets"])
    norm = tuned.check(Labeled(images, target))
    common.rel("grad_norm", norm, z["grad_norm"], 1e-4)
    assert tuned.cfg.weight_decay == c["weight_decay"]
    tuned.check_groups(meta["lr_scale_and_wd"])
    ids = {k: round(np.log(s) / np.log(c["layer_decay"])) for k, (s, _) in tuned.groups().items()}
    last = c["depths"][2] + 1
    assert {k: last - i for k, i in ids.items()} == meta["layer_id"]
    np.testing.assert_allclose(drop_rates(tuned), meta["drop_path_per_block"], rtol=1e-6)


def drop_rates(tuned):
    """The rates of the encoder's blocks, in the order in which they are computed."""
    rates, encoder = {}, tuned.task.encoder

    def note(call, args, kwargs, context):
        if isinstance(context.module, Branch) and context.method_name == "__call__":
            rates[context.module.name] = context.module.drop_path
        return call(*args, **kwargs)

    images = jnp.zeros((1, *encoder.image_size, encoder.channels))
    with nn.intercept_methods(note):
        jax.eval_shape(encoder.init, KEY, images)
    return list(rates.values())
