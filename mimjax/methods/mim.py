"""Masked image modeling: the class that runs every composition of declared parts.

A method is a frozen dataclass whose fields are its parts: encoder, masking, targets, networks,
terms and, where needed, a regressor and a moving average. A term says which target is predicted by
which network, at which places, with which loss and weight. Names of fields are the names of
subtrees of the parameters.

  prepare   masking.choose -> ids, weights; target.values -> Known      once per step, no gradient
  loss      encoder -> [regressor] -> networks -> predictions
            total = sum over terms of weight * schedule(step) * mean(loss(prediction, target))
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mimjax import errors, patches, values
from mimjax.losses import standardize
from mimjax.masking.base import Masking, Random
from mimjax.methods import requirements
from mimjax.methods.parts import Average, Term
from mimjax.models.vit import ViT
from mimjax.rng import named
from mimjax.schedules import Constant
from mimjax.schema import brief
from mimjax.targets.base import Target
from mimjax.task import (
    ByPlace,
    Encoded,
    EncoderNetwork,
    Frozen,
    Key,
    LossOutput,
    Prediction,
    Predictor,
    Prepared,
    Pretraining,
    PyTree,
    Seen,
    TrainState,
    View,
    gather_rows,
    split_places,
)
from mimjax.values import Mean, Std


@dataclasses.dataclass(frozen=True)
class MIM(Pretraining):
    """Base class of the methods; a subclass declares targets, networks and terms as fields.

    Attributes:
      encoder: the network that is pretrained.
      masking: which patches are hidden.
      regressor: predicts the encoder's latents of masked patches, which other networks then read.
      average: a moving average of weights; None = there is none.
      mean, std: of the student's images, per channel on the scale 0 to 1.
    """

    encoder: EncoderNetwork = ViT()
    masking: Masking = Random()
    regressor: Predictor | None = None
    average: Average | None = None
    mean: Mean = patches.IMAGENET_MEAN
    std: Std = patches.IMAGENET_STD

    def __post_init__(self):
        values.check(self, "method")
        errors.statistics("method", self.mean, self.std)
        student: Any = self.encoder.clone(channels=len(self.mean))
        student.check("method.encoder")
        object.__setattr__(self, "encoder", student)  # the number of channels is derived
        requirements.check(self)
        self.masking.check("method.masking", student)
        for name, target in self.targets.items():
            target.check(f"method.{name}", student)
        for name in self.networks:
            self.network(name).check(f"method.{name}", student)

    # ---------------------------------------------------------------- the composition
    def parts(self, kind: type) -> dict[str, Any]:
        """Return the fields that hold a `kind`, by name; the encoder is left out."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in fields.items() if isinstance(v, kind) and k != "encoder"}

    @property
    def terms(self) -> dict[str, Term]:
        """The terms that are learned: those with a weight."""
        return {k: t for k, t in self.parts(Term).items() if t.weight}

    @property
    def targets(self) -> dict[str, Target]:
        """The targets that a term or the masking reads."""
        used = {t.target for t in self.terms.values()} | {self.masking.reads}
        return {k: t for k, t in self.parts(Target).items() if k in used}

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        """The networks that predict and the places of all their terms; the regressor first."""
        used = {t.network: self.asked("network", t.network) for t in self.terms.values()}
        if self.regressor and any("masked" in at for at in used.values()):
            used = {"regressor": ("masked",)} | used
        return used

    def asked(self, field: str, name: str) -> tuple[str, ...]:
        """Return the places of all terms whose `field` ("target" or "network") is `name`."""
        return split_places(
            "+".join(t.at for t in self.terms.values() if getattr(t, field) == name)
        )

    def width(self, name: str) -> int:
        """Return the width of a network's predictions."""
        if name == "regressor":
            return self.encoder.out_width
        terms = self.terms or self.parts(Term)
        learned = next(t.target for t in terms.values() if t.network == name)
        return getattr(self, learned).width(self.encoder)

    def network(self, name: str) -> Any:
        """Return a network of the method, sized for the encoder and its target."""
        return getattr(self, name).sized(self.encoder, self.width(name))

    @property
    def reads_average(self) -> bool:
        """Whether somebody reads the moving average."""
        targets = self.targets.values()
        return bool(self.average) and (
            self.average.evaluate or any(t.of == "average" for t in targets)
        )

    def describe(self) -> list[tuple[str, ...]]:
        rows = [("term", "target", "network", "place", "loss", "weight")]
        for name, t in self.parts(Term).items():
            target, network = (f"{n} = {brief(getattr(self, n))}" for n in (t.target, t.network))
            loss = brief(t.loss) + (f", normalize {t.normalize}" if t.normalize != "none" else "")
            factor = "" if t.schedule == Constant() else f" * {brief(t.schedule)}"
            rows.append((name, target, network, t.at, loss, f"{t.weight:g}{factor}"))
        return rows

    @property
    def story(self) -> str:
        hidden = f"{100 * self.num_masked / self.encoder.num_patches:.0f} % of the patches"
        where = {"masked": f"masked {hidden}", "visible": "visible patches", "cls": "class token"}
        parts = []
        for name in dict.fromkeys(t.target for t in self.terms.values()):
            places = reversed(self.asked("target", name))
            words = " and of the ".join(where[p] for p in places)
            parts.append(f"{getattr(self, name).story} of the {words}")
        return f"{' and '.join(parts)}, from the visible ones."

    @property
    def notes(self) -> tuple[str, ...]:
        guesses = (self.network(name).guesses(self.encoder) for name in self.networks)
        return super().notes + tuple(line for lines in guesses for line in lines)

    # ---------------------------------------------------------------- data
    @property
    def views(self) -> dict[str, View]:
        out = {"image": View(self.encoder.image_size, channels=len(self.mean))}
        for part in (self.masking, *self.targets.values()):
            out |= part.views(self.encoder)
        return out

    @property
    def num_masked(self) -> int:
        return self.masking.num_masked(self.encoder.grid)

    def sample(self, rng: random.Random, epoch: int) -> dict[str, np.ndarray]:
        return self.masking.sample(rng, self.encoder.grid, epoch)

    # ---------------------------------------------------------------- parameters
    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        params: dict[str, PyTree] = {}

        def apply(name: str, module: Any, *args: Any) -> Any:
            out, variables = module.init_with_output(named(key, name), *args)
            params[name] = variables["params"]
            return out

        batch = {k: jnp.zeros((1, *v.size, v.channels)) for k, v in self.views.items()}
        arrays = self.sample(random.Random(0), 0)
        batch |= {k: jnp.asarray(v)[None] for k, v in arrays.items()}
        batch = self.masking.expand(batch, False)
        attention = jnp.ones((1, self.encoder.num_patches))
        prepared = self.masking.choose(batch, self.encoder, attention, key)
        self.forward(apply, prepared, False)
        state = {k: t.init_state(self.encoder) for k, t in self.targets.items()}
        return params, {k: v for k, v in state.items() if v}

    @property
    def frozen(self) -> dict[str, Frozen]:
        return {
            f"{name}.{part}" if part else name: frozen
            for name, target in self.targets.items()
            for part, frozen in target.frozen(f"method.{name}").items()
        }

    def init_frozen(self, key: Key) -> PyTree:
        trees = {k: t.init_frozen(named(key, k), self.encoder) for k, t in self.targets.items()}
        return {k: v for k, v in trees.items() if v}

    def fit_frozen(self, frozen: PyTree, sample: Callable[[int], np.ndarray]) -> PyTree:
        images = lambda n: patches.normalize(jnp.asarray(sample(n)), self.mean, self.std)
        fit = lambda name, tree: self.targets[name].fit(tree, self.encoder, images)
        return {name: fit(name, tree) for name, tree in frozen.items()}

    def init_ema(self, params: PyTree) -> PyTree:
        if not (self.average and self.reads_average):
            return {}
        copy = lambda x: jnp.array(x, jnp.float32, copy=True)
        return {k: jax.tree.map(copy, params[k]) for k in self.average.networks if k in params}

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        if not (self.average and ema):
            return ema
        taken = old if self.average.takes == "old" else new
        decay = jnp.asarray(self.average.decay(step, self.clock), jnp.float32)
        mean = lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32)
        return {k: jax.tree.map(mean, v, taken[k]) for k, v in ema.items()}

    def evaluated(self, state: TrainState) -> PyTree:
        average = self.average and self.average.evaluate
        return (state.ema if average else state.params)["encoder"]

    # ---------------------------------------------------------------- the step
    def prepare(self, state, frozen, batch, key, train, pieces=1) -> tuple[Prepared, PyTree]:
        """Make what `loss` reads; see `Task.prepare`.

        Without `train`, `Prepared.shown` has the values of every target at every place.
        """
        enc, batch = self.encoder, self.masking.expand(batch, train)
        image = patches.normalize(batch["image"], self.mean, self.std)
        hidden: dict[str, PyTree] = {}
        attention = None

        def seen(name: str, ids: ByPlace) -> Seen:
            key_, rest = named(key, name), (train, pieces, self.network, hidden.get(name))
            return Seen(name, frozen.get(name, {}), batch, image, ids, state, key_, *rest)

        if reads := self.masking.reads:  # one pass of the teacher gives attention and values
            attention, hidden[reads] = self.targets[reads].attention(enc, seen(reads, {}))
        chosen = batch | {"image": image}  # targets keep the bytes: each has its own statistics
        out = self.masking.choose(chosen, enc, attention, named(key, "masking"))
        ids, known = {"visible": out.ids_v, "masked": out.ids_m}, {}
        for name, target in self.targets.items():
            at = self.asked("target", name) if train else target.places(enc)
            with jax.named_scope(name):
                known[name] = target.values(enc, seen(name, ids), at)
        targets = {}
        for name, t in self.terms.items():
            x = {p: known[t.target].values[p] for p in split_places(t.at)}
            targets[name] = x if t.normalize == "none" else jax.tree.map(standardize, x)
        rows = {k: known[t.target].rows or {} for k, t in self.terms.items()}
        out = out.replace(targets=targets, rows=rows)
        if not train:
            shown = {k: x.values for k, x in known.items()}
            out = out.replace(shown=shown, shown_rows={k: x.rows or {} for k, x in known.items()})
        return out, {k: x.state for k, x in known.items() if x.state}

    def forward(
        self, apply: Callable[..., Any], p: Prepared, train: bool
    ) -> tuple[Encoded, dict[str, ByPlace]]:
        """Run encoder and networks.

        Args:
          apply: (name, module, *arguments) runs a network, or initializes it.

        Returns:
          What the networks read, and {network: {place: predictions [b k out]}} in float32.
        """
        whole, out = self.encoder.use_mask_token, {}
        ids, mask = (None, p.mask) if whole else (p.ids_v, None)
        f = apply("encoder", self.encoder, p.image, ids, mask, train)
        ids = p.ids_v, p.ids_m
        encoded = Encoded(f.tokens, f.blocks, f.prefix, whole, *ids, p.sequences, train)
        for name, at in self.networks.items():
            network = self.network(name)
            made = apply(name, network, *network.inputs(encoded, at))
            if name == "regressor":
                encoded = encoded._replace(latents=made["masked"])
            out[name] = {p: x.astype(jnp.float32) for p, x in made.items()}
        return encoded, out

    def predict(
        self, params: PyTree, prepared: Prepared, key: Key, train: bool
    ) -> tuple[Encoded, dict[str, ByPlace]]:
        """Return what `forward` returns, with these parameters."""

        def apply(name: str, module: nn.Module, *args: Any) -> Any:
            rngs = {"drop_path": named(key, name)}
            with jax.named_scope(name):  # a profiler shows operations by these names
                return module.apply({"params": params[name]}, *args, rngs=rngs)

        return self.forward(apply, prepared, train)

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        """Return the loss of a micro-batch; it sees neither averages nor frozen networks."""
        made = self.predict(params, prepared, key, train)[1]
        total, metrics, predictions = jnp.zeros(()), {}, {}
        for name, t in self.terms.items():
            target, rows = prepared.targets[name], prepared.rows[name]
            here = lambda p, x, rows=rows: gather_rows(x, rows[p]) if p in rows else x
            pred = {p: here(p, made[t.network][p]) for p in target}
            if t.normalize == "both":
                pred = jax.tree.map(standardize, pred)
            error = {p: t.loss(pred[p], target[p]) for p in target}
            weighed = prepared.weight is not None
            weigh = lambda p, x, here=here, on=weighed: (
                x * here(p, prepared.weight) if on and p == "masked" else x
            )
            loss = jnp.concatenate([weigh(p, x) for p, x in error.items()], axis=1).mean()
            weight = t.weight * jnp.asarray(t.schedule(step, self.clock), jnp.float32)
            total += weight * loss
            metrics |= {f"loss/{name}": loss, f"weight/{name}": weight}
            if t.loss.kind == "codes":
                right = {p: (pred[p].argmax(-1) == target[p]).astype(jnp.float32) for p in target}
                share = jnp.concatenate([weigh(p, x) for p, x in right.items()], axis=1).mean()
                metrics[f"accuracy/{name}"] = share
            predictions[name] = jax.lax.stop_gradient(Prediction(pred, target, error, rows))
        if self.average and self.reads_average:
            metrics["ema_decay"] = jnp.asarray(self.average.decay(step, self.clock), jnp.float32)
        return LossOutput(total, metrics, model_state, predictions)
