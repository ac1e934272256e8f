"""Faults that tests/mutations.py puts into the code, each with the golden tests that notice it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A text that stands once in a file, what replaces it, and tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


M, T, S, D = "mimjax/methods", "mimjax/targets", "mimjax/models", "mimjax/train"
P = "mimjax/transfer"
K = "mimjax/masking"
CONV = f"{S}/conv_vit.py"
FAULTS = [
    # --- MCMAE
    Fault(
        "GELU after the depthwise convolution",
        CONV,
        'y = Depthwise(self.place, name="depthwise")(y, near)',
        'y = gelu(Depthwise(self.place, name="depthwise")(y, near))',
        "mcmae.cblock",
    ),
    Fault(
        "norm and activation swapped in the stages' embeddings",
        CONV,
        'return gelu(layer_norm("norm", self.dtype, STAGE_EPS)(conv(x)))',
        'return layer_norm("norm", self.dtype, STAGE_EPS)(gelu(conv(x)))',
        "mcmae.pretrain",
    ),
    Fault("eps 1e-2 in the stages", CONV, "STAGE_EPS = 1e-5", "STAGE_EPS = 1e-2", "mcmae.cblock"),
    Fault("eps 1e-6 in the stages", CONV, "STAGE_EPS = 1e-5", "STAGE_EPS = 1e-6", "mcmae.steps"),
    Fault(
        "kernel not turned in the gradient",
        f"{S}/masked_conv.py",
        "kernel[::-1, ::-1]",
        "kernel",
        "mcmae.cblock",
    ),
    Fault(
        "a stage's output left out of the sum",
        CONV,
        "fused.append(chosen(conv(x)))",
        "fused.append(chosen(conv(x)) * (k > 0))",
        "mcmae.pretrain",
    ),
    Fault(
        "FastConvMAE's views mixed up",
        f"{K}/views.py",
        "np.arange(n // visible)[:, None]",
        "np.arange(n // visible)[:, None] // 2",
        "mcmae.fast",
    ),
    Fault(
        "cubic kernel of -0.5",
        f"{S}/positions.py",
        "CUBIC = -0.75",
        "CUBIC = -0.5",
        "mcmae.posinterp",
    ),
    Fault(
        "no bias in the depthwise convolution",
        CONV,
        "self.place) + bias.astype(x.dtype)",
        "self.place)",
        "mcmae.fast",
    ),
    # --- MR-MAE
    Fault(
        "the last block alone instead of the sum",
        f"{S}/vit.py",
        "x = sum(blocks[i] for i in self.fuse_layers)",
        "x = blocks[self.fuse_layers[-1]]",
        "mrmae.pretrain",
    ),
    Fault(
        "targets standardized instead of unit vectors",
        f"{M}/mrmae.py",
        "return jnp.square(pred - unit(target)).mean(-1)",
        "return jnp.square(pred - target / target.std(-1, keepdims=True)).mean(-1)",
        "mrmae.pretrain",
    ),
    Fault(
        "teacher's features not standardized",
        f"{M}/mim.py",
        'x if t.normalize == "none" else jax.tree.map(standardize, x)',
        'x if t.normalize == "target" else jax.tree.map(standardize, x)',
        "mrmae.pretrain_clip",
    ),
    Fault(
        "mimic loss with the pixels' weight",
        f"{M}/mim.py",
        "weight = t.weight * jnp",
        "weight = next(iter(self.terms.values())).weight * jnp",
        "mrmae.steps",
    ),
    # --- CAE and CAE v2
    Fault(
        "regressor's keys without positions",
        f"{S}/regressor.py",
        "(context + jnp.concatenate([pos_v, pos_m], axis=1))",
        "(context)",
        "cae.steps",
    ),
    Fault(
        "aligned latents of the whole image",
        f"{T}/own.py",
        "return Known(seen.in_pieces(part, seen.image, masked))",
        "return Known(seen.in_pieces(whole, seen.image, ids))",
        "cae.steps cae_proj_oddheads",
    ),
    Fault(
        "alignment without its weight",
        f"{M}/mim.py",
        "total += weight * loss",
        "total += loss",
        "cae.steps cae_proj_oddheads",
    ),
    Fault(
        "teacher one step ahead",
        f"{M}/mim.py",
        'taken = old if self.average.takes == "old" else new',
        "taken = new",
        "cae_mirror_ema09",
    ),
    Fault(
        "tokens shifted by one in the paper's loss",
        "mimjax/networks.py",
        '"visible": self.tokens[:, self.prefix :],',
        '"visible": self.tokens[:, :-1],',
        "caev2.pretrain_paper",
    ),
    Fault(
        "one mean over all tokens in the paper's loss",
        f"{M}/mim.py",
        "loss = jnp.concatenate([weigh(p, x) for p, x in error.items()], axis=1).mean()",
        "loss = jnp.concatenate([weigh(p, x) for p, x in error.items()], axis=1).sum(1).mean() "
        "/ self.encoder.num_patches",
        "caev2.pretrain_paper",
    ),
    Fault(
        "CLS left out of the code's mean",
        f"{M}/mim.py",
        "p: t.loss(pred[p], target[p]) for p in target",
        'p: t.loss(pred[p], target[p]) * (p != "cls") for p in target',
        "caev2_proj_tiny",
    ),
    # --- BEiT
    Fault(
        "CLS to patch and patch to CLS swapped",
        f"{S}/attention.py",
        "index[0, 1:], index[1:, 0] =",
        "index[1:, 0], index[0, 1:] =",
        "beit_default_sharedrel",
    ),
    Fault(
        "mask tokens one patch further",
        f"{S}/vit.py",
        "jnp.where(mask[..., None]",
        "jnp.where(jnp.roll(mask, 1, 1)[..., None]",
        "beit_default_sharedrel",
    ),
    Fault(
        "one try less",
        f"{K}/block.py",
        "ATTEMPTS = 10 ",
        "ATTEMPTS = 9 ",
        "beit_mask14_75",
    ),
    Fault(
        "the first of several class tokens stands for all",
        "mimjax/networks.py",
        "x[:, : self.num_classes].mean(1)",
        "x[:, 0]",
        "pixio.encoder",
    ),
    Fault(
        "positions of class tokens left out",
        f"{S}/published_vit.py",
        "before = [t + pos[:, : self.classes] for t in before]",
        "before = [t for t in before]",
        "pixio.encoder",
    ),
    Fault(
        "registers in the middle of the image",
        f"{S}/published_vit.py",
        "before = np.concatenate([np.stack(side, axis=1) for side in sides])",
        "before = np.full((prefix, 2), 0.5)",
        "capi_encoder",
    ),
    Fault(
        "relative positions grow too far",
        "mimjax/torch_io/read/positions.py",
        ".sum() > target - 1:",
        ".sum() > target:",
        "beit_interp",
    ),
    # --- BootMAE
    Fault(
        "average one step behind",
        f"{M}/mim.py",
        'taken = old if self.average.takes == "old" else new',
        "taken = old",
        "bootmae_steps5",
    ),
    Fault(
        "loss divided by the weights",
        f"{K}/base.py",
        'return weight / weight.mean() if how == "neighbors_mean" else weight',
        "return weight / weight.mean()",
        "bootmae_ramp",
    ),
    Fault(
        "edges count in a patch's weight",
        f"{K}/base.py",
        "padded = jnp.pad(m, ((0, 0), (1, 1), (1, 1)))",
        'padded = jnp.pad(m, ((0, 0), (1, 1), (1, 1)), "edge")',
        "bootmae_masking",
    ),
    Fault(
        "ramp one epoch late",
        f"{M}/bootmae.py",
        "jnp.minimum((1 + ",
        "jnp.minimum((0 + ",
        "bootmae_schedules",
    ),
    Fault(
        "head's bias in another order",
        f"{S}/decoders.py",
        "jnp.tile(bias, self",
        "jnp.repeat(bias, self",
        "bootmae_ramp",
    ),
    Fault(
        "q, k and v initialized as one matrix",
        f"{S}/layers.py",
        'xavier_uniform(parts if scheme == "bootmae" else 1)',
        "xavier_uniform(1)",
        "bootmae_init_stats",
    ),
    # --- MAE, and what all share
    Fault(
        "population variance of a patch",
        "mimjax/patches.py",
        "eps=1e-6, ddof=1)",
        "eps=1e-6)",
        "mae_base",
    ),
    Fault("eps 1e-5", "mimjax/losses.py", "LN_EPS = 1e-6", "LN_EPS = 1e-5", "mae_base"),
    Fault(
        "softmax scale",
        f"{S}/attention.py",
        "(q * q.shape[-1] ** -0.5, k, v, bias)",
        "(q * (q.shape[-1] + 1) ** -0.5, k, v, bias)",
        "mae_base",
    ),
    Fault(
        "q and k swapped",
        f"{S}/attention.py",
        "q, k, v = jnp.split(fused, 3, axis=-1)",
        "k, q, v = jnp.split(fused, 3, axis=-1)",
        "mae_steps5",
    ),
    Fault(
        "GELU's tangent form",
        f"{S}/layers.py",
        "return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)",
        "return jax.nn.gelu(x32, approximate=True).astype(x.dtype)",
        "mae_base",
    ),
    Fault(
        "row and column exchanged",
        f"{S}/vit.py",
        'if order == "xy" else',
        'if order != "xy" else',
        "mae_schedules",
    ),
    Fault(
        "one patch fewer is masked",
        f"{K}/base.py",
        "return n - int(n * (1 - ratio))",
        "return n - int(n * (1 - ratio)) - 1",
        "mae_masking",
    ),
    Fault(
        "decay for every parameter", f"{D}/optimizers.py", "rate * f * p", "rate * p", "mae_steps5"
    ),
    Fault("Adam's eps 1e-6", f"{D}/optimizers.py", "eps=self.eps)", "eps=1e-6)", "mae_steps5"),
    Fault(
        "patch bias starts at zero",
        f"{S}/vit.py",
        "if mae else nn",
        "if False else nn",
        "mae_init_stats",
    ),
    # --- teachers
    Fault("QuickGELU's factor", f"{S}/clip.py", "nn.sigmoid(1.702", "nn.sigmoid(1.7", "clip.hf"),
    Fault(
        "CLIP's eps",
        f"{S}/clip.py",
        "LayerNorm(1e-5,",
        "LayerNorm(1e-6,",
        "clip.hf teacher.clip_hf",
    ),
    Fault(
        "no norm before CLIP's blocks",
        f"{S}/clip.py",
        "x, outputs = self.norm_pre(x).astype(self.stream or self.dtype), []",
        "x, outputs = (x + 0 * self.norm_pre(x)).astype(self.stream or self.dtype), []",
        "teacher.clip_hf",
    ),
    Fault(
        "projected before the norm",
        f"{S}/clip.py",
        "return self.proj(x) if",
        "return self.proj(tokens) if",
        "teacher.clip_openai",
    ),
    Fault(
        "positions resized otherwise",
        f"{S}/clip.py",
        '"bilinear", antialias',
        '"cubic", antialias',
        "clip_openai_resize",
    ),
    Fault(
        "attention without its scale",
        f"{S}/attention_maps.py",
        '"bkd,btkd->bkt", q * q.shape[-1] ** -0.5',
        '"bkd,btkd->bkt", q',
        "teacher.dino",
    ),
    Fault(
        "attention normalized anew",
        f"{S}/attention_maps.py",
        "jax.nn.softmax(logits, axis=-1)[..., 1:]",
        "jax.nn.softmax(logits[..., 1:], axis=-1)",
        "teacher.clip_openai",
    ),
    Fault("DINO's norm without its bias", f"{T}/dino.py", ' + norm["bias"]', "", "teacher.dino"),
    Fault(
        "DINO's positions on the exact grid",
        f"{T}/dino.py",
        "EXTRA = 0.1",
        "EXTRA = 0.0",
        "teacher.dino_interp",
    ),
    # --- tokenizers
    Fault(
        "residual gain",
        f"{S}/dalle.py",
        "self.n_blk) ** -2.0",
        "self.n_blk) ** -1.0",
        "tokenizer.dalle",
    ),
    Fault("mean pooling", f"{S}/dalle.py", "nn.max_pool(", "nn.avg_pool(", "tokenizer.flava"),
    Fault(
        "no last ReLU",
        f"{S}/dalle.py",
        "self.vocab, nn.relu,",
        "self.vocab, None,",
        "tokenizer.flava",
    ),
    Fault(
        "no ReLU between layers",
        f"{S}/dvae.py",
        "x = nn.relu(layer(x))",
        "x = layer(x)",
        "tokenizer_dvae_custom",
    ),
    Fault(
        "padding above and on the left",
        f"{S}/vqgan.py",
        "padding=((0, 1), (0, 1))",
        "padding=((1, 0), (1, 0))",
        "tokenizer.vqgan",
    ),
    Fault("VQGAN's eps", f"{S}/vqgan.py", "epsilon=1e-6", "epsilon=1e-5", "tokenizer.vqgan"),
    Fault(
        "ReLU for swish in VQGAN",
        f"{S}/vqgan.py",
        'x = nn.swish(group_norm("norm_out", self.dtype)(x))',
        'x = nn.relu(group_norm("norm_out", self.dtype)(x))',
        "tokenizer.vqgan",
    ),
    Fault(
        "no tanh in the code head",
        f"{T}/vqkd.py",
        "jnp.tanh(nn.Dense(",
        "(nn.Dense(",
        "tokenizer.vqkd",
    ),
    Fault(
        "largest product of unscaled codes",
        f"{T}/vqkd.py",
        " - jnp.square(codes).sum(-1)",
        "",
        "tokenizer.vqkd",
    ),
    # --- probes
    Fault(
        "biased running variance",
        f"{P}/head.py",
        "spread * len(x) / max(len(x) - 1, 1)",
        "spread",
        "mae.linear_probe",
    ),
    Fault("BatchNorm's eps 1e-3", f"{P}/head.py", "BN_EPS = 1e-6", "BN_EPS = 1e-3", "ep.head"),
    Fault(
        "statistics of the batch in evaluation",
        f"{P}/head.py",
        "if not (train or self.of_batch)",
        "if not (True or self.of_batch)",
        "cae.linear_probe",
    ),
    Fault(
        "eps of the linear probe in the attentive one",
        f"{P}/attentive_probe.py",
        "CAE_BN_EPS = 1e-5",
        "CAE_BN_EPS = 1e-3",
        "cae.attentive_probe",
    ),
    Fault(
        "values without a norm of their own",
        f"{P}/attentive_probe.py",
        'LayerNorm(name="norm_v")(x)',
        'LayerNorm(name="norm_v")(x) * 0 + x',
        "cae.attentive_probe",
    ),
    Fault(
        "no step ahead",
        f"{D}/optimizers.py",
        "nesterov=self.nesterov",
        "nesterov=False",
        "cae.attentive_probe",
    ),
    Fault(
        "queries of one head each",
        f"{P}/attentive_probe.py",
        "query * width**-0.5",
        "query * (width // self.queries) ** -0.5",
        "ep.head",
    ),
    Fault(
        "biases scaled by LARS",
        f"{D}/optimizers.py",
        "lambda x: x.ndim > 1, tree)\n        return optax.chain(optax.masked(scaled",
        "lambda x: x.ndim > 0, tree)\n        return optax.chain(optax.masked(scaled",
        "ep.head",
    ),
    Fault(
        "votes without weights",
        f"{P}/neighbors.py",
        ".astype(np.float64) / temperature)",
        ".astype(np.float64) * 0)",
        "ep_knn",
    ),
    Fault(
        "the sum over heads",
        f"{P}/probing.py",
        "total /= len(losses)",
        "total /= 1",
        "capi.probe",
    ),
    Fault(
        "a cosine that ends one step late",
        "mimjax/schedules.py",
        "left = clock.total_steps - 1 - step if rest else 1",
        "left = clock.total_steps - step if rest else 1",
        "capi.probe",
    ),
    # --- fine-tuning
    Fault(
        "a layer decay that begins one block late",
        f"{P}/tuning.py",
        "last = self.network.depth + 1",
        "last = self.network.depth",
        "mae.finetune",
    ),
    Fault(
        "a relative bias of a block that learns like the head",
        "mimjax/networks.py",
        'r"(?:block|rel_pos)_(\\d+)/"',
        'r"(?:block)_(\\d+)/"',
        "cae.finetune",
    ),
    Fault(
        "no norm behind the pooling",
        f"{P}/fine_tune.py",
        'x = LayerNorm(name="norm")(x)',
        'x = x + 0 * LayerNorm(name="norm")(x)',
        "mcmae.finetune",
    ),
]
