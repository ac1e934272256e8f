"""Training of the discrete VAE whose encoder serves as a tokenizer (DALL-E, Ramesh et al. 2021).

Network and loss as DALLE-pytorch's DiscreteVAE, the class behind CAE's "customized" tokenizer.
Codes are relaxed by Gumbel-softmax; the temperature and the weight of the KL term follow the
schedules of DALL-E's appendix A.2. CAE published neither code nor settings of this training.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mimjax import errors, patches, values
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.rng import named
from mimjax.task import Batch, Key, LossOutput, Prediction, PyTree, Task, View
from mimjax.values import Count, Mean, NonNegative, Positive, Size, Std

# DALL-E's 150,000 and 5,000 updates as shares of the 250,000 of configs/dvae.py (ours; DALL-E's own
# run had 3 million). In updates, a run on a smaller data set would end before its codes harden.
TEMPERATURE_SHARE, KL_SHARE = 0.6, 0.02


@dataclasses.dataclass(frozen=True)
class DiscreteVAE(Task):
    """Discrete VAE.

    Attributes:
      encoder, decoder: the tokenizer's; the decoder's sizes follow the encoder's.
      image_size: 112 = the view that a ViT of 224 / 16 gives a tokenizer with 8 pixels per token.
      reconstruction: "mse" (DALLE-pytorch's default) or "smooth_l1" (its option), on normalized
        pixels. DALL-E's own likelihood, logit-Laplace, is not built.
      temperature, temperature_end, temperature_steps: of the Gumbel-softmax, on half a cosine: 1 to
        1/16 over 150,000 updates (DALL-E, appendix A.2; of 3 million). DALLE-pytorch stops at 0.5.
        Steps None = TEMPERATURE_SHARE of the run, so that a short run ends with hard codes too.
      kl_weight, kl_steps: of the KL divergence to the uniform prior, in nats per token; rises
        linearly from 0. 6.6 / 192 over 5,000 updates in DALL-E (a loss per pixel value: 192 of them
        to a token), beside its other likelihood; 0 in DALLE-pytorch's train_vae.py. Steps None =
        KL_SHARE of the run.
      straight_through: hard codes forward, gradients of the soft ones; off in DALLE-pytorch.
      mean, std: 0.5, the inputs of CAE's "customized" tokenizer.
    """

    encoder: DVAEEncoder = DVAEEncoder()
    decoder: DVAEDecoder = DVAEDecoder()
    image_size: Size = (112, 112)
    reconstruction: Literal["mse", "smooth_l1"] = "mse"
    temperature: Positive = 1.0
    temperature_end: Positive = 1 / 16
    temperature_steps: Count | None = 150_000
    kl_weight: NonNegative = 0.0
    kl_steps: Count | None = 5_000
    straight_through: bool = False
    mean: Mean = patches.HALF
    std: Std = patches.HALF

    def __post_init__(self):
        values.check(self, "method")
        errors.statistics("method", self.mean, self.std)
        step = self.encoder.step
        for side in self.image_size:
            if side % step:
                raise errors.ConfigError(
                    f"method.image_size: {side} is not divisible by {step} pixels per token "
                    f"(2^method.encoder.num_layers); allowed: multiples of {step}"
                )
        decoder = self.decoder.matching(self.encoder, len(self.mean))
        object.__setattr__(self, "decoder", decoder)  # derived fields of a frozen dataclass

    @property
    def views(self) -> dict[str, View]:
        return {"image": View((self.image_size[0], self.image_size[1]), channels=len(self.mean))}

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        side = self.encoder.step
        images, codes = jnp.zeros((1, side, side, len(self.mean))), jnp.zeros((1, 1, 1), jnp.int32)
        encoder = self.encoder.init(named(key, "encoder"), images)
        decoder = self.decoder.init(named(key, "decoder"), codes)
        return {"encoder": encoder["params"], "decoder": decoder["params"]}, {}

    def prepare(self, state, frozen, batch, key, train, pieces=1) -> tuple[Batch, PyTree]:
        return {"image": patches.normalize(batch["image"], self.mean, self.std)}, {}

    def schedules(self, step) -> tuple[jax.Array, jax.Array]:
        """Temperature and KL weight at `step`."""
        total = self.clock.total_steps
        annealing = self.temperature_steps or max(1.0, TEMPERATURE_SHARE * total)
        done = jnp.clip(step / annealing, 0.0, 1.0)
        left = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        temperature = self.temperature_end + (self.temperature - self.temperature_end) * left
        rise = jnp.clip((step + 1) / (self.kl_steps or max(1.0, KL_SHARE * total)), 0.0, 1.0)
        return temperature, self.kl_weight * rise

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        """Return the loss of a micro-batch; its prediction is the image, at the place "image"."""
        images = prepared["image"]
        logits: Any = self.encoder.apply({"params": params["encoder"]}, images)
        codes = logits.argmax(-1)
        temperature, kl_weight = self.schedules(step)
        if train:
            noise = jax.random.gumbel(named(key, "gumbel"), logits.shape)
            weights = relax(logits + noise, temperature, self.straight_through)
        else:
            weights = codes
        recon: Any = self.decoder.apply({"params": params["decoder"]}, weights)
        reconstruction = distance(recon, images, self.reconstruction).mean()
        kl = kl_to_uniform(logits).mean()
        used, perplexity = usage(codes, self.encoder.vocab)
        error = {"image": jnp.square(recon - images).mean((1, 2, 3))[:, None]}
        return LossOutput(
            reconstruction + kl_weight * kl,
            {
                "loss/reconstruction": reconstruction,
                "loss/kl": kl,
                "temperature": temperature,
                "kl_weight": kl_weight,
                "codes_used": used,
                "perplexity": perplexity,
            },
            predictions={"reconstruction": Prediction({"image": recon}, {"image": images}, error)},
        )

    @property
    def story(self) -> str:
        step, vocab = self.encoder.step, self.encoder.vocab
        return (
            f"whole images, from one of {vocab:,} codes for each {step}x{step} pixels; nothing is "
            "masked. BEiT and CAE predict such codes."
        )


def relax(
    logits: Float[Array, "*s v"], temperature, straight_through: bool = False
) -> Float[Array, "*s v"]:
    """softmax(logits / temperature); straight-through: its one-hot with the softmax's gradient."""
    soft = jax.nn.softmax(logits / temperature, axis=-1)
    if not straight_through:
        return soft
    hard = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=soft.dtype)
    return hard + soft - jax.lax.stop_gradient(soft)


def distance(pred: Float[Array, "*s"], target: Float[Array, "*s"], kind: str) -> Float[Array, "*s"]:
    """Return d^2 ("mse"), or half of it up to |d| = 1 and |d| - 1/2 beyond ("smooth_l1")."""
    d = jnp.abs(pred - target)
    return d**2 if kind == "mse" else jnp.where(d < 1.0, 0.5 * d**2, d - 0.5)


def kl_to_uniform(logits: Float[Array, "*s v"]) -> Float[Array, "*s"]:
    """KL(softmax(logits) || uniform) in nats, 0 to log v.

    DALLE-pytorch sums it over a whole batch (its "batchmean" divides by 1): the weight there is not
    comparable.
    """
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return (jnp.exp(log_q) * log_q).sum(-1) + jnp.log(logits.shape[-1])


def usage(codes: Int[Array, "*s"], vocab: int) -> tuple[jax.Array, jax.Array]:
    """Share of the vocabulary that occurs in `codes`, and exp of the entropy of its histogram."""
    share = jnp.bincount(codes.reshape(-1), length=vocab) / codes.size
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0).sum()
    return (share > 0).mean(), jnp.exp(entropy)
