"""What a task predicts, for human eyes: columns of a picture, a caption, errors and their names.

All of it follows from the terms of a composition, the kinds of their targets and the places of
their predictions; no method has a picture of its own. A task that predicts whole images, as the
discrete VAE, is shown as such. `columns` and `image_error` run inside jit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mimjax.inference.canvas import Canvas, in_colors
from mimjax.losses import LN_EPS
from mimjax.methods.mim import MIM
from mimjax.methods.parts import Term
from mimjax.targets.base import Colors, Target
from mimjax.targets.colors import feature_colors
from mimjax.task import (
    ByPlace,
    Encoded,
    Prediction,
    Prepared,
    PyTree,
    Task,
    gather_rows,
    split_places,
)

Images = dict[str, jax.Array]  # the columns of a picture in their order
Predictions = dict[str, Prediction]
RIGHT, WRONG = (0.1, 0.75, 0.2), (0.9, 0.15, 0.1)  # colors of codes: green and red
DIM, TINT = 0.35, 0.6  # what is left of a visible patch; share of color in the patch of a code


class Shown(NamedTuple):
    """The term that a picture shows.

    Attributes:
      term, target: the term, and what it learns.
      places: of its predictions: "visible", "masked" or both.
    """

    term: Term
    target: Target
    places: tuple[str, ...]

    @property
    def place(self) -> str:
        """The place whose predictions stand among true values: "masked" where it is predicted."""
        return self.places[-1]

    @property
    def form(self) -> str:
        """The way it is shown: "decoded", "codes" (right and wrong ones) or "colors" of vectors."""
        if self.target.decodes:
            return "decoded"
        return "codes" if self.target.kind == "codes" else "colors"


def shown_term(task: Task) -> Shown | None:
    """Return the first term whose target decodes, else the first that can be shown at all."""
    if not isinstance(task, MIM):
        return None
    found = []
    for term in task.terms.values():
        at = "+".join(t.at for t in task.terms.values() if vectors(t) == vectors(term))
        places = tuple(place for place in split_places(at) if place != "cls")
        target = task.targets[term.target]
        if places and (target.decodes or target.kind in ("codes", "vectors")):
            found.append(Shown(term, target, places))
    return next((x for x in found if x.form == "decoded"), next(iter(found), None))


def vectors(term: Term) -> tuple[str, str, str]:
    """Return what a term compares: it is alike in terms that differ in place or weight alone."""
    return term.target, term.network, term.normalize


# ------------------------------------------------------------------ errors
def error_name(task: Task) -> str:
    """Return in words what `image_error` measures."""
    if not isinstance(task, MIM):
        return "mean squared, " + ("at fixed masks" if task.num_masked else "of whole images")
    term = next(iter(task.terms.values()))
    kind, words = term.loss.kind, term.loss.words or type(term.loss).__name__
    what = f"{words}, in target space" if kind == "vectors" else f"{words} of {kind} in nats"
    names = {"cls": "class token", "visible": "visible patches"}
    places = split_places(term.at)
    where = "" if "masked" in places else f" of {' and '.join(names[p] for p in places)}"
    return f"{what}{where}, at fixed masks"


def image_error(prepared: Any, predictions: Predictions) -> jax.Array | None:
    """Return the error of the first term in each image, float32 [b]; None = nothing is predicted.

    It is the mean over its masked patches, or over its other places where it predicts at no masked
    ones. Tokens of weight 0 do not count; apart from that, weights play no part.
    """
    first = next(iter(predictions.values()), None)
    return None if first is None else mean_error(prepared, first.error, first.rows)


def mean_error(prepared: Any, error: ByPlace, rows: ByPlace) -> jax.Array:
    """Return the mean error of each image over the tokens that count, float32 [b].

    Args:
      prepared: a `Prepared`, or what a task without places has made.
      error: by place, [b k].
      rows: see `Known`.
    """
    weights = prepared.weight if isinstance(prepared, Prepared) else None
    total, count = jnp.zeros(()), jnp.zeros(())
    for place in ["masked"] if "masked" in error else list(error):
        counts = jnp.ones(error[place].shape, bool)
        if place == "masked" and weights is not None:
            counts = (gather_rows(weights, rows[place]) if place in rows else weights) > 0
        total += jnp.where(counts, error[place], 0.0).sum(1)
        count += counts.sum(1)
    return total / jnp.maximum(count, 1)


def masked_share(prepared: Any, rows: int) -> jax.Array:
    """Return the share of patches that is hidden in each of so many images, float32 [b]."""
    if not isinstance(prepared, Prepared):
        return jnp.zeros(rows)
    if prepared.mask is not None:
        return prepared.mask.mean(1)
    masked, visible = prepared.ids_m.shape[1], prepared.ids_v.shape[1]
    return jnp.full(rows, masked / (masked + visible))


# ------------------------------------------------------------------ columns
def columns(
    task: Task, params: PyTree, frozen: PyTree, prepared: Any, predictions: Predictions
) -> Images:
    """Return the columns of a picture by name, float32 [b h w c] in [0, 1]; {} = there is none.

    Args:
      params: those that made the predictions.
      prepared: by `Task.prepare` without `train`.
      predictions: by `Task.loss` on it.
    """
    shown = shown_term(task)
    if shown is None or not isinstance(task, MIM):
        return whole_images(task, predictions)
    canvas = Canvas(task.encoder, prepared, task.mean, task.std)
    out = {"original": canvas.original}
    if prepared.attention is not None:
        heat = prepared.attention / prepared.attention.max(-1, keepdims=True)
        out["attention"] = canvas.original * (0.15 + 0.85 * canvas.spread(heat[..., None]))
    out["masked"] = canvas.keep(~canvas.hidden, canvas.original)
    found = together(task, shown, predictions)
    if shown.form == "colors":
        return out | latent_colors(canvas, found)
    if shown.form == "codes":
        return out | {"codes": code_map(canvas, found, shown.place)}
    return out | decoded(task, shown, canvas, params, frozen, found)


def whole_images(task: Task, predictions: Predictions) -> Images:
    """Return the columns of a task that predicts images as wholes, at the place "image"."""
    about: Any = task
    for found in predictions.values():
        if "image" in found.values:
            colors = lambda x: in_colors(x["image"], about.mean, about.std)
            return {"original": colors(found.target), "reconstruction": colors(found.values)}
    return {}


def together(task: MIM, shown: Shown, predictions: Predictions) -> Prediction:
    """Return the predictions of all terms that compare the same vectors as those of one term.

    CAE v2's paper has one term at visible patches and one at masked ones.
    """
    out = Prediction({}, {}, {}, {})
    for name, term in task.terms.items():
        if vectors(term) != vectors(shown.term):
            continue
        found = predictions[name]
        for place in [place for place in found.values if place not in out.values]:
            for into, values in zip(out, found, strict=True):
                if place in values:  # rows are known of some places alone
                    into[place] = values[place]
    return out


def decoded(
    task: MIM, shown: Shown, canvas: Canvas, params: PyTree, frozen: PyTree, found: Prediction
) -> Images:
    """Return the columns of a target that decodes: what it keeps, and what is predicted."""
    target, field, place = shown.target, shown.term.target, shown.place
    values, rows = canvas.prepared.shown[field], canvas.prepared.shown_rows[field]
    colors = Colors(canvas.prepared.image, task.mean, task.std)
    codes = target.kind == "codes"

    def decode(x: jax.Array) -> jax.Array:
        return canvas.fit(target.decode(frozen.get(field, {}), x, task.encoder, colors))

    true, known = canvas.lay(values, rows)
    guess = restored(found.values[place], values[place], shown.term)
    laid, guessed = canvas.lay({place: guess}, found.rows, true)
    # Where visible patches are predicted and masked ones are not, nothing is said of these.
    beside = known & ~canvas.hidden
    out = {}
    if loses(task, target):
        out["target codes" if codes else "target"] = canvas.keep(known, decode(true))
        image = canvas.keep(guessed | beside, decode(laid))
    else:  # there a true patch is the original's
        image = canvas.keep(guessed, decode(laid), canvas.keep(beside, canvas.original))
    out["prediction" if codes else "reconstruction"] = image
    skipped = without_regressor(task, shown, params, canvas.prepared)
    if skipped is not None:
        out["no regressor"] = decode(restored(skipped, true, shown.term))
    return out


def restored(pred: jax.Array, true: jax.Array, term: Term) -> jax.Array:
    """Return predictions [b k d] in the form of the target's values: codes, or vectors.

    Vectors that the term normalizes are given the statistics of the true ones.
    """
    if term.loss.kind == "codes":
        return pred.argmax(-1).astype(true.dtype)
    if term.normalize == "none":
        return pred
    std = jnp.sqrt(true.var(-1, keepdims=True) + LN_EPS)
    return pred * std + true.mean(-1, keepdims=True)


def loses(task: MIM, target: Target) -> bool:
    """Return whether a target keeps less than the pixels of a patch."""
    pixels = task.encoder.patch**2 * task.encoder.channels
    return target.kind == "codes" or target.width(task.encoder) < pixels


def without_regressor(
    task: MIM, shown: Shown, params: PyTree, prepared: Prepared
) -> jax.Array | None:
    """Return what the network predicts of the encoder's own latents of all patches, [b n o].

    CAE's Figure 4: the full image is encoded, the regressor skipped. It shows that predicted
    latents lie in the space of encoded ones. None = no regressor, or the network does not read it.
    """
    encoder, name = task.encoder, shown.term.network
    if task.regressor is None or name == "regressor" or shown.place != "masked":
        return None
    f = encoder.apply({"params": params["encoder"]}, prepared.image, None, None, False)
    latents = f.tokens[:, f.prefix :]
    ids = jnp.broadcast_to(jnp.arange(encoder.num_patches), latents.shape[:2])
    encoded = Encoded(f.tokens, f.blocks, f.prefix, False, ids, ids, 1, False, latents)
    network = task.network(name)
    inputs = network.inputs(encoded, ("masked",))
    if all(x is not latents for x in jax.tree.leaves(inputs)):
        return None
    made = network.apply({"params": params[name]}, *inputs)["masked"]
    return made.astype(jnp.float32)


def code_map(canvas: Canvas, found: Prediction, place: str) -> jax.Array:
    """Return images whose patches are green where their code is predicted and red where not."""
    right = (found.values[place].argmax(-1) == found.target[place])[..., None]
    color = jnp.where(right, jnp.asarray(RIGHT), jnp.asarray(WRONG))
    start = jnp.zeros((*canvas.hidden.shape, 3))
    color, known = canvas.lay({place: color}, found.rows, start)
    light = canvas.original.mean(-1, keepdims=True)
    tinted = (1 - TINT) * light + TINT * canvas.spread(color)
    # where the screen shows three channels, visible patches keep theirs
    plain = canvas.original if canvas.original.shape[-1] == 3 else light
    return canvas.keep(known, tinted, canvas.keep(~canvas.hidden, DIM * plain))


def latent_colors(canvas: Canvas, found: Prediction) -> Images:
    """Return vectors as colors, those of the target and the predicted ones.

    Class tokens have no place in a picture, but a part in the choice of colors.
    """
    places = list(found.values)
    join = lambda x: jnp.concatenate([x[p] for p in places], axis=1)
    ends, total = {}, 0
    for p in places:
        ends[p] = slice(total, total := total + found.values[p].shape[1])
    blank = jnp.full((*canvas.hidden.shape, 3), 0.5)
    out = {}
    both = feature_colors(join(found.target), join(found.values))
    for name, color in zip(("teacher", "student"), both, strict=True):
        laid, _ = canvas.lay({p: color[:, ends[p]] for p in places}, found.rows, blank)
        out[name] = canvas.spread(laid)
    return out


# ------------------------------------------------------------------ words
def note(task: Task, names: Sequence[str]) -> str:
    """Return what a reader must know about columns of these names; "" = nothing."""
    shown = shown_term(task)
    if shown is None or not isinstance(task, MIM):
        return ""
    parts = []
    if "attention" in names:
        parts.append(
            "Attention: where the teacher's class token looks, which decides what is visible."
        )
    if shown.form == "colors":
        parts.append(
            "Colors: the three leading principal components of the teacher's vectors of these "
            f"images. Student: what is predicted at {' and '.join(shown.places)} patches."
        )
    elif shown.form == "codes":
        parts.append("Codes: green where the most probable one is right, red where it is wrong.")
    else:
        parts += decoded_note(task, shown)
    if "no regressor" in names:
        parts.append(
            "No regressor: the full image encoded and decoded without it (CAE's Figure 4)."
        )
    return " ".join(parts)


def decoded_note(task: MIM, shown: Shown) -> list[str]:
    """Return the sentences about the columns of `decoded`."""
    target, place, parts = shown.target, shown.place, []
    if target.kind == "codes":
        parts.append("Target codes: the full image's, decoded.")
        rest = "the true codes of visible and the predicted ones of masked patches"
        rest = rest if place == "masked" else "the predicted codes of visible patches"
        parts.append(f"Prediction: {rest}, decoded.")
    else:
        parts.append(f"{place.capitalize()} patches: predicted.")
        if place == "masked":
            origin = "true values" if loses(task, target) else "pasted from the original"
            parts.append(f"Visible patches: {origin}.")
    if shown.term.normalize != "none":
        parts.append("Vectors are un-normalized with the true statistics of each.")
    return [*parts, target.picture_note] if target.picture_note else parts
