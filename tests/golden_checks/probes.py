"""Probes of frozen features against numbers of MAE's, CAE's, CAPI's and the EP benchmark's code."""

import functools
import itertools
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from golden_checks import common
from mimjax.inference import encoders, published
from mimjax.schedules import CAPICosine, MAECosine
from mimjax.task import Clock, TrainState
from mimjax.train import optimizers
from mimjax.train.optimizers import LARS, SGD
from mimjax.train.step import train_step
from mimjax.transfer.attentive_probe import AttentiveProbe, EfficientProbe, QueryProbe
from mimjax.transfer.head import BatchNorm, Reading
from mimjax.transfer.linear_probe import LinearProbe
from mimjax.transfer.neighbors import ranked
from mimjax.transfer.probing import Heads, Member, feature_name

OUT, LOSS, GRAD, FINAL = 5e-5, 2e-5, 1e-4, 1e-4  # of golden_more's table; gradients by the maximum
# The official codes' settings that not every file holds.
LARS_DEFAULTS = {"momentum": 0.9, "trust_coefficient": 0.001, "weight_decay": 0.0}
BN_DEFAULTS = {"eps": 1e-6, "momentum": 0.1}
SGD_MOMENTUM = 0.9
CAPI_BETAS = 0.9, 0.95
COUNTED = "num_batches_tracked"  # nothing reads it; the momentum is a constant


# ------------------------------------------------------------------ parameters by official name
def tensor(kind, x):
    """A parameter as the official code has it."""
    return np.asarray(x).T if kind == "kernel" else np.asarray(x)


def flat(names, params, stats):
    """{official key: array} of a head's parameters and statistics, by `names`."""
    trees = {"params": params, "stats": stats}
    out = {}
    for key, path in names.items():
        leaf = functools.reduce(lambda t, k: t[k], path.split("/"), trees)
        out[key] = tensor(path.rpartition("/")[2], leaf)
    return out


def nested(names, arrays):
    """Parameters and statistics of a head from {official key: array}; the inverse of `flat`."""
    out = {"params": {}, "stats": {}}
    for key, path in names.items():
        *parents, last = path.split("/")
        node = functools.reduce(lambda t, k: t.setdefault(k, {}), parents, out)
        node[last] = jnp.asarray(tensor(last, arrays[key]))
    return out["params"], out["stats"]


def dense(official, ours, bias=True):
    """Names of a linear layer."""
    names = {f"{official}.weight": f"params/{ours}/kernel"}
    return names | ({f"{official}.bias": f"params/{ours}/bias"} if bias else {})


def statistics(official):
    """Names of what a BatchNorm counts."""
    path = "stats/batch_norm"
    return {f"{official}.running_mean": f"{path}/mean", f"{official}.running_var": f"{path}/var"}


# ------------------------------------------------------------------ one head
def opened(z, heads):
    """Network and parameters of the file's encoder, as `mimjax.load` reads a published file."""
    state = {k: v for k, v in common.arrays(z, "sd").items() if not k.endswith(COUNTED)}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/published.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
        file, _ = published.open_file(path, "auto", "path")
    network, params, _, _ = encoders.read(file, published.Choice(heads))
    return network, jax.device_put(params)


def optimizer(task, params, rule, lr, decay=0.0):
    """The run's optimizer with a rule; `lr` is by step, and biases have no decay."""
    cfg = optimizers.OptimizerConfig(
        rule=rule, weight_decay=decay, decay=((".*bias", 0.0), (".*", 1.0))
    )
    rate = lambda step: jnp.asarray(lr, jnp.float32)[step]
    return optimizers.make_optimizer(
        cfg, params, rate, optimizers.weight_decay(cfg, task.clock), task
    )


def official_gradients(task, params, stats, batch, names):
    """Gradients of the loss of a batch in training, {head: {official key: array}}."""
    key = jax.random.key(0)

    @jax.jit
    def run(params):
        prepared, _ = task.prepare(common.state_of(params), {}, batch, key, True)
        return jax.grad(lambda p: task.loss(p, stats, prepared, key, 0, True).total)(params)

    grads = run(params)
    return {name: flat(names[name], grads[name], {}) for name in grads}


def check_gradients(z, found, zero=()):
    """Every gradient in the file, to a share of its tensor's maximum; those of `zero` are none."""
    held = {k: v for k, v in common.arrays(z, "grad").items() if not k.startswith("__")}
    assert held
    for key, value in held.items():
        theirs = value.reshape(found[key].shape)
        common.close(f"grad/{key}", found[key], theirs, GRAD * np.abs(theirs).max())
    for key in zero:
        top = max(np.abs(found[key]).max() for key in held)
        assert np.abs(found[key]).max() <= 1e-5 * top, key


def check_final(z, found, skip=lambda key, x: x[...]):
    """Parameters and statistics after the steps: all that the file holds."""
    held = {k: v for k, v in common.arrays(z, "final").items() if not k.endswith(COUNTED)}
    assert held.keys() == found.keys()
    for key, value in held.items():
        theirs = value.reshape(found[key].shape)
        common.close(f"final/{key}", skip(key, found[key]), skip(key, theirs), FINAL)


class Probe:
    """One head of a file, and its steps through the real train step.

    Attributes:
      names: {official key: path of ours} of parameters and statistics.
      params, stats: those of the file; statistics that it lacks begin anew.
    """

    def __init__(self, head, names, arrays, x):
        self.head, self.names = head, names
        self.task = Heads(Clock(1, 1), {"head": Member(head)}, {head.reading: x.shape[1:]})
        held = {k: arrays[k] for k in names if k in arrays}
        params, stats = nested({k: names[k] for k in held}, held)
        self.params = {"head": params}
        self.stats = {"head": stats} if stats else self.task.init(jax.random.key(0))[1]

    def batch(self, x, labels):
        label = jnp.asarray(labels, jnp.int32)
        return {feature_name(self.head.reading): jnp.asarray(x), "label": label}

    def logits(self, x, train, params=None, stats=None):
        args = self.params if params is None else params, self.stats if stats is None else stats
        out = jax.jit(self.task.logits, static_argnums=3)
        return out(*args, {feature_name(self.head.reading): jnp.asarray(x)}, train)[0]["head"]

    def gradients(self, x, labels):
        batch, keys = self.batch(x, labels), {k for k in self.names if "running" not in k}
        names = {"head": {k: v for k, v in self.names.items() if k in keys}}
        return official_gradients(self.task, self.params, self.stats, batch, names)["head"]

    def run(self, z, steps, rule, lr, of_largest=False):
        """Make the steps [(features, labels)] and compare losses, train logits and what is left.

        Args:
          of_largest: whether losses are compared to LOSS of the largest instead of each.

        Returns:
          The logits [b c] of features in evaluation, after the steps.
        """
        tx = optimizer(self.task, self.params, rule, lr)
        step = jax.jit(functools.partial(train_step, task=self.task, tx=tx))
        opt_state = jax.jit(tx.init)(self.params)
        state = TrainState(jnp.int32(0), self.params, self.stats, {}, opt_state)
        losses = []
        for i, (x, labels) in enumerate(steps):
            if "out/logits" in z.files:
                found = self.logits(x, True, state.params, state.model_state)
                common.close("logits", found, z["out/logits"][i], OUT)
            state, metrics = step(state, {}, self.batch(x, labels))
            losses.append(metrics["loss/head"])
        compare = common.table if of_largest else common.rel
        compare("losses", losses, z["loss/steps"], LOSS)
        check_final(z, flat(self.names, state.params["head"], state.model_state["head"]))
        return lambda x: self.logits(x, False, state.params, state.model_state)


def check_norm(norm, given):
    """The BatchNorm is the file's."""
    held = BN_DEFAULTS | given
    assert (norm.eps, norm.momentum) == (held["eps"], held["momentum"])


def lars(given):
    held = LARS_DEFAULTS | {k: given[k] for k in LARS_DEFAULTS if k in given}
    return LARS(held["momentum"], held["trust_coefficient"], held["weight_decay"])


# ------------------------------------------------------------------ MAE and CAE
def mae_linear(z, meta):
    """LARS steps of a head on the class token, or on the norm of the patches' mean."""
    c, given = meta["config"], meta["config"].get("lars", {})
    check_norm(BatchNorm(), c.get("bn", {}))
    network, params = opened(z, c["heads"])
    assert network.pooled == c["global_pool"]
    head = LinearProbe(c["num_classes"], pool="mean" if c["global_pool"] else "cls")

    @jax.jit
    def features(images):
        found = network.module.apply({"params": params["encoder"]}, images)
        return network.pool(params, found) if c["global_pool"] else found.read("cls")

    x = [features(jnp.asarray(common.nhwc(images))) for images in z["in/images"]]
    # the file's head becomes the linear layer of the probe, whose BatchNorm begins anew
    start = {k.replace("head.", "head.1."): v for k, v in common.arrays(z, "sd").items()}
    names = dense("head.1", "linear") | statistics("head.0")
    probe = Probe(head, names, start, x[0])
    ends = probe.run(z, list(zip(x, z["in/labels"])), lars(given), [given["lr"]] * len(x))
    common.close("eval", ends(x[0]), z["out/eval_logits_after"], OUT)


def cae_features(z, meta):
    c = meta["config"]
    network, params = opened(z, c["num_heads"])
    assert (network.module.depth, network.module.width) == (c["depth"], c["embed_dim"])
    apply = jax.jit(lambda p, x: network.module.apply({"params": p}, x))
    return network.module, apply(params["encoder"], jnp.asarray(common.nhwc(z["in/images"])))


def cae_linear(z, meta):
    """LARS steps of a head on the class token, on one batch."""
    c, (_, features) = meta["config"], cae_features(z, meta)
    x = features.read("cls")
    common.close("cls", x, z["out/cls_feature"], OUT)
    names = dense("head.1", "linear") | statistics("head.0")
    probe = Probe(LinearProbe(c["num_classes"]), names, common.arrays(z, "sd"), x)
    same_batch(z, c, probe, x, lars(c))


def cae_attentive(z, meta):
    """Nesterov steps of CAE's module on all tokens, on one batch; evaluation by running numbers."""
    c, (encoder, features) = meta["config"], cae_features(z, meta)
    x = features.read("all")
    block = "attentive_blocks.0"
    names = {"query_token": "params/query"}
    names |= dense("head", "linear") | statistics("fc_norm")
    for norm in ("norm_q", "norm_k", "norm_v"):
        names[f"{block}.{norm}.weight"] = f"params/{norm}/scale"
        names[f"{block}.{norm}.bias"] = f"params/{norm}/bias"
    for part in ("q", "k", "v", "proj"):
        bias = part == "proj"
        names |= dense(f"{block}.cross_attn.{part}", f"cross_attn/{part}", bias)
    for part in ("q_bias", "v_bias"):
        names[f"{block}.cross_attn.{part}"] = f"params/cross_attn/{part}"
    head = AttentiveProbe().sized(encoder, c["num_classes"])
    state = common.arrays(z, "sd")
    state["query_token"] = state["query_token"][0]
    probe = Probe(head, names, state, x)
    zero = meta.get("analytically_zero_grad", ())
    same_batch(z, c, probe, x, SGD(SGD_MOMENTUM, nesterov=True), zero)


def same_batch(z, c, probe, x, rule, zero=()):
    labels = z["in/labels"]
    common.close("train", probe.logits(x, True), z["out/logits_train_mode"], OUT)
    check_gradients(z, probe.gradients(x, labels), zero)
    count = len(z["loss/steps"])
    # on one batch the loss vanishes, while running statistics that lag behind make large logits
    ends = probe.run(z, [(x, labels)] * count, rule, [c["lr"]] * count, of_largest=True)
    top = max(np.abs(z["out/logits_eval_after"]).max(), 1.0)
    common.close("eval", ends(x), z["out/logits_eval_after"], OUT * top)


# ------------------------------------------------------------------ efficient probing
def ep_head(z, meta):
    """The pooling, its parts, and LARS steps on tokens."""
    c = meta["config"]
    check_norm(BatchNorm(), meta.get("bn", {}))
    head = EfficientProbe(c["classes"], queries=c["queries"], d_out=c["d_out"])
    names = {"0.cls_token": "params/query"} | dense("0.v", "value", bias=False)
    names |= dense("2", "linear") | statistics("1")
    state = common.arrays(z, "sd")
    state["0.cls_token"] = state["0.cls_token"][0]
    probe = Probe(head, names, state, z["in/tokens"][0])
    x = jnp.asarray(z["in/tokens_eval"])
    check_parts(z, head, probe, x)
    common.close("logits_eval", probe.logits(x, False), z["out/logits_eval"], OUT)
    first, labels = z["in/tokens"][0], z["in/labels"]
    common.close("logits_train", probe.logits(first, True), z["out/logits_train"], OUT)
    check_gradients(z, probe.gradients(first, labels[0]))
    prepared, _ = probe.task.prepare(None, {}, probe.batch(first, labels[0]), None, True)
    loss = probe.task.loss(probe.params, probe.stats, prepared, None, 0, True).total
    common.rel("loss", loss, z["loss/total"], LOSS)
    lr = rates(c, len(labels))
    common.rel("lr", lr, z["in/lr"], 1e-6)
    ends = probe.run(z, list(zip(z["in/tokens"], labels)), lars(meta.get("lars", {})), lr)
    common.close("eval_after", ends(x), z["out/logits_eval_after"], OUT)


def rates(c, steps):
    """The rates of the file's steps, which begin in the epoch `epoch`."""
    clock = Clock(c["steps"], c["steps"] * c["epochs"])
    schedule = MAECosine(float(c["warm"]))
    first = c["epoch"] * clock.steps_per_epoch
    return [float(schedule.rate(first + i, clock, c["lr"])) for i in range(steps)]


def check_parts(z, head, probe, x):
    """What is inside of the pooling, in evaluation."""
    seen = {}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            seen[context.module.name] = args[0], out
        return out

    with nn.intercept_methods(note):
        variables = {"params": probe.params["head"], "stats": probe.stats["head"]}
        head.apply(variables, x)
    common.close("value", seen["value"][1], z["out/value"], OUT)
    common.close("pooled", seen["batch_norm"][0], z["out/pooled"], OUT)
    common.close("normalized", seen["batch_norm"][1], z["out/normalized"], OUT)
    # the maps, from what they pool: each query's slice of the values is known
    query = variables["params"]["query"]
    maps = jax.nn.softmax(jnp.einsum("qd,bnd->bqn", query, x) * x.shape[-1] ** -0.5)
    common.close("attention", maps, z["out/attention"], OUT)


def ep_knn(z, meta):
    """Top-1 and top-5 over the grid, in percent."""
    c = meta["config"]
    found = ranked(
        *(z[f"in/{k}"] for k in ("train", "train_labels", "test")),
        ks=c["k"],
        temperatures=c["T"],
        classes=c["classes"],
    )
    scores = {(r.temperature, r.k): r for r in found}
    for n in (1, 5):
        ours = [[scores[t, k].top(z["in/test_labels"], n) for k in c["k"]] for t in c["T"]]
        common.close(f"top{n}", ours, z[f"out/top{n}"], 1e-9)


# ------------------------------------------------------------------ CAPI
POOL = {"cls": "cls", "avg_patch": "mean", "cls_avg_patch": "cls_mean", "patch": "patches"}


def capi_grid(order, classes):
    """The heads of a file in its order, [(source, rate, decay)], by their number."""
    members = {}
    for i, (source, rate, decay) in enumerate(order):
        pool = POOL[source]
        head = LinearProbe(classes, pool=pool, batch_norm=False, init_std=0.02)
        head = QueryProbe(classes, pool=pool) if pool == "patches" else head
        members[str(i)] = Member(head, rate, decay)
    return members


def capi_names(task):
    names = {}
    for i, member in task.members.items():
        names[i] = dense(f"{i}.linear", "linear")
        if member.head.reading.pool == "patches":
            names[i] |= dense(f"{i}.kv", "kv") | {f"{i}.query_token": "params/query"}
    return names


def capi(z, meta):
    """All heads in one AdamW run whose loss is the mean over images and heads."""
    c = meta["config"]
    clock = Clock(c["n_iters"], c["n_iters"])
    members = capi_grid(c["order"], c["classes"])
    check_order(c)
    x = features_of(z["in/cls"], z["in/featmap"])
    shapes = {m.reading: x[feature_name(m.reading)].shape[2:] for m in members.values()}
    task = Heads(clock, members, shapes, average=True)
    names, state = capi_names(task), common.arrays(z, "sd")
    params = {i: nested(names[i], state)[0] for i in members}
    schedule = CAPICosine(warmup_steps=c["warmup"])
    peak = c["batch"] * c["world"] / 256  # of which each head has its share
    factor = [float(schedule.rate(i, clock, 1.0)) for i in range(c["n_iters"])]
    common.close("schedule", factor, z["out/schedule"], 1e-6)
    rule = common.adam(meta, CAPI_BETAS)
    tx = optimizer(task, params, rule, [peak * f for f in factor], decay=1.0)
    step = jax.jit(functools.partial(train_step, task=task, tx=tx))
    run = TrainState(jnp.int32(0), params, {}, {}, jax.jit(tx.init)(params))
    batches = [
        {name: a[i] for name, a in x.items()} | {"label": jnp.asarray(labels, jnp.int32)}
        for i, labels in enumerate(z["in/labels"])
    ]
    evaluated = features_of(z["in/cls_eval"], z["in/featmap_eval"])
    scores = jax.jit(lambda p: jnp.stack(list(task.logits(p, {}, evaluated)[0].values())))
    common.close("logits", scores(params), z["out/logits_eval"], OUT)
    grads = official_gradients(task, params, {}, batches[0], names)
    check_gradients(z, {k: v for found in grads.values() for k, v in found.items()})
    losses = []
    for i, batch in enumerate(batches):
        run, metrics = step(run, {}, batch)
        losses.append(metrics["loss/total"])
        if not i:
            each = [metrics[f"loss/{name}"] for name in members]
            common.rel("each", each, z["loss/each"], LOSS)
    common.rel("losses", losses, z["loss/total"], LOSS)
    ends = {k: v for i in members for k, v in flat(names[i], run.params[i], {}).items()}
    check_final(z, ends, without_key_bias)
    common.close("logits after", scores(run.params), z["out/logits_eval_after"], OUT)


def check_order(c):
    """The order in the file is that of its grids, with both vectors side by side among them."""
    sources = [*(s for s in c["representations"] if s != "patch"), "cls_avg_patch", "patch"]
    grid = itertools.product(dict.fromkeys(sources), c["learning_rates"], c["weight_decays"])
    assert sorted(c["order"]) == sorted(map(list, grid))


def without_key_bias(key, x):
    """The key bias has a true gradient of zero; Adam turns its rounding noise into steps."""
    return x[len(x) // 2 :] if key.endswith("kv.bias") else x


def features_of(cls, maps):
    """Features [... b d] and tokens [... b n d] of CAPI's vectors and maps, by reading."""
    cls, maps = jnp.asarray(cls), jnp.asarray(maps)
    patches = maps.reshape(*maps.shape[:-3], -1, maps.shape[-1])
    mean = patches.mean(-2)
    both = jnp.concatenate([cls, mean], axis=-1)
    found = {"cls": cls, "mean": mean, "cls_mean": both, "patches": patches}
    return {feature_name(Reading(pool)): x for pool, x in found.items()}
