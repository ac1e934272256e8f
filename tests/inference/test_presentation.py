"""Columns, captions and errors: what is true, predicted or gray, and said to be so."""

import dataclasses
import functools
import importlib
import pkgutil
import random
from typing import Any, ClassVar

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import methods
from mimjax import patches as pixels
from mimjax.inference import presentation
from mimjax.inference.reconstruction import Painter
from mimjax.losses import Cosine, CrossEntropy, SmoothL1
from mimjax.masking.base import Random
from mimjax.masking.block import BlockAtMost
from mimjax.masking.salient import Salient
from mimjax.methods.dvae import DiscreteVAE
from mimjax.methods.mim import MIM
from mimjax.methods.parts import Term
from mimjax.models.decoders import MAEDecoder
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.heads import LinearHead
from mimjax.models.regressor import LatentDecoder, Regressor
from mimjax.models.vit import ViT
from mimjax.patches import patchify, unpatchify
from mimjax.targets.base import Target
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.joint import Joint
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import PCA, Pixels
from mimjax.task import Prediction, Predictor, TrainState

SIZE = {"width": 16, "depth": 1, "heads": 2, "patch": 4, "image_size": (16, 16)}
KEY = jax.random.key(2)
UNREAD = TrainState(jnp.int32(0), {}, {}, {}, {})  # of compositions that read no weights
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MSE_TERM = Term("pixel_target", "decoder")


@dataclasses.dataclass(frozen=True)
class Shades(Target):
    """Codes without a network: the brightness of a patch in ten steps, decoded as grays."""

    kind: ClassVar[str] = "codes"
    decodes: ClassVar[bool] = True

    def width(self, encoder):
        return 10

    def encode(self, frozen, images, encoder):
        return patchify(images / 255.0, encoder.patch)

    def read(self, frozen, hidden, key=None):
        return (hidden.mean(-1) * 9.999).astype(jnp.int32)

    def decode(self, frozen, values, encoder, colors):
        """One pixel per patch: a tokenizer's pictures may be smaller."""
        return jnp.repeat(values.reshape(-1, *encoder.grid, 1) / 9.0, 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class Unseen(Shades):
    """The same codes, of which no picture can be made."""

    decodes: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Plain(MIM):
    """One term: any target, any network; mean and std that are no common ones."""

    encoder: Any = ViT(**SIZE)
    masking: Any = Random(ratio=0.5)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    pixel_target: Target = Pixels()
    decoder: Predictor = MAEDecoder(width=16, depth=1, heads=2)
    pixel: Term = MSE_TERM


CODES = Term("pixel_target", "decoder", loss=CrossEntropy())
TEACHER = EncoderFeatures(network=ViT(**SIZE))


@dataclasses.dataclass(frozen=True)
class Two(Plain):
    """Features beside pixels, seen by a head of their own."""

    feature_target: Target = TEACHER
    head: Predictor = LinearHead()
    feature: Term = Term("feature_target", "head", at="visible")


def images(rows=3):
    """Large shapes with a little noise, as photographs have."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (rows, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
    return (0.7 * shapes + rng.integers(0, 76, (rows, 16, 16, 3))).astype(np.uint8)


def batch_of(task, rows=3):
    made = [task.sample(random.Random(i), 0) for i in range(rows)]
    batch = {"image": images(rows)} | {k: np.stack([m[k] for m in made]) for k in made[0]}
    return jax.tree.map(jnp.asarray, batch)


def begin(task):
    """State and frozen networks."""

    @jax.jit
    def init():
        params, model_state = task.init(jax.random.key(0))
        state = TrainState(jnp.int32(0), params, model_state, task.init_ema(params), {})
        return state, task.init_frozen(jax.random.key(1))

    return init()


def same(values):
    return values


@functools.cache
def drawn(task, change=same, rows=3):
    """The columns where every term predicts its target, changed; and the prepared batch.

    Codes are predicted by scores.
    """
    own = task.regressor or any(t.of for t in task.targets.values())
    order, state = [], begin(task)[0] if own else UNREAD

    @jax.jit
    def draw(state, batch):
        frozen = task.init_frozen(jax.random.key(1))
        prepared, _ = task.prepare(state, frozen, batch, KEY, False)
        predictions = {}
        for name, term in task.terms.items():
            codes, target = term.loss.kind == "codes", prepared.targets[name]
            width = task.targets[term.target].width(task.encoder)
            values = {p: jax.nn.one_hot(x, width) if codes else x for p, x in target.items()}
            values = {p: change(x) for p, x in values.items()}
            predictions[name] = Prediction(values, target, {}, prepared.rows[name])
        columns = presentation.columns(task, state.params, frozen, prepared, predictions)
        order.extend(columns)
        return columns, prepared

    columns, prepared = draw(state, batch_of(task, rows))
    columns = {name: np.asarray(columns[name]) for name in order}
    for name, column in columns.items():
        assert column.shape == (rows, 16, 16, 3), name
        assert column.min() >= 0, name
        assert column.max() <= 1, name
    return columns, prepared


def at(mask):
    """The pixels of patches [b 16], bool [b 16 16]."""
    return np.asarray(mask).reshape(-1, 4, 4).repeat(4, 1).repeat(4, 2)


def close(a, b, atol=1e-4):
    np.testing.assert_allclose(a, b, atol=atol)


# ------------------------------------------------------------------ which
def classes():
    for module in pkgutil.iter_modules(methods.__path__):
        found = importlib.import_module(f"mimjax.methods.{module.name}")
        for x in vars(found).values():
            if isinstance(x, type) and issubclass(x, MIM) and x.__module__ == found.__name__:
                yield x


@pytest.mark.parametrize("cls", [cls for cls in classes() if cls is not MIM])
def test_every_method_has_a_picture_by_its_targets(cls):
    """Pictures are decoded where a target can decode; the caption and the error have words."""
    task = cls()
    shown = presentation.shown_term(task)
    decodes = [task.targets[t.target].decodes for t in task.terms.values()]
    assert (shown.form == "decoded") == any(decodes)
    if shown.term.loss.kind == "codes":
        assert shown.form == ("decoded" if any(decodes) else "codes")
    assert presentation.note(task, []).endswith(".")
    assert presentation.error_name(task).endswith("at fixed masks")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Plain(), "mean squared, in target space, at fixed masks"),
        (
            Plain(pixel_target=Shades(), pixel=CODES),
            "cross-entropy of codes in nats, at fixed mask",
        ),
        (
            Two(pixel=dataclasses.replace(MSE_TERM, weight=0.0)),
            "of visible patches, at fixed masks",
        ),
        (Plain(pixel=dataclasses.replace(MSE_TERM, loss=Cosine())), "1 - cosine, in target space"),
        (Plain(pixel=dataclasses.replace(MSE_TERM, loss=SmoothL1())), "smooth L1, in target space"),
        (DiscreteVAE(), "mean squared, of whole images"),
    ],
)
def test_errors_are_named_by_the_loss_of_the_first_term(task, name):
    assert name in presentation.error_name(task)


# ------------------------------------------------------------------ pixels
@pytest.mark.parametrize("norm", ["none", "patch", "channel"])
@pytest.mark.parametrize("normalize", ["none", "target"])
def test_a_flawless_prediction_gives_the_original(norm, normalize):
    term = dataclasses.replace(MSE_TERM, normalize=normalize)
    task = Plain(pixel_target=Pixels(norm), pixel=term)
    columns, _ = drawn(task)
    assert list(columns) == ["original", "masked", "reconstruction"]
    close(columns["original"], images() / 255.0, 1e-6)
    close(columns["reconstruction"], columns["original"], 1e-3)
    note = presentation.note(task, list(columns))
    assert "Visible patches: pasted from the original." in note
    assert ("un-normalized with the true patch statistics" in note) == (norm != "none")
    assert ("un-normalized with the true statistics of each" in note) == (normalize != "none")


def test_masked_patches_are_gray_and_visible_ones_untouched():
    columns, prepared = drawn(Plain(pixel_target=Pixels("none")), lambda x: 0 * x - 100)
    hidden = at(prepared.mask)
    assert (columns["masked"][hidden] == 0.5).all()
    assert (columns["reconstruction"][hidden] == 0).all()
    for name in ("masked", "reconstruction"):
        np.testing.assert_array_equal(columns[name][~hidden], columns["original"][~hidden])


def test_what_principal_components_lose_is_shown():
    target = PCA(components=4)
    task = Plain(pixel_target=target)
    state, frozen = begin(task)
    frozen = task.fit_frozen(frozen, images)
    sheet = Painter(task).sheet(state, frozen, batch_of(task), 2)
    assert list(sheet.columns) == ["original", "masked", "target", "reconstruction"]
    gap = np.abs(sheet.columns["target"].astype(int) - sheet.columns["original"])
    assert 5 < gap.mean() < 50
    assert "Visible patches: true values." in sheet.caption


def test_a_term_at_visible_patches_says_nothing_of_masked_ones():
    task = Plain(pixel=dataclasses.replace(MSE_TERM, at="visible"))
    columns, prepared = drawn(task)
    hidden = at(prepared.mask)
    assert (columns["reconstruction"][hidden] == 0.5).all()
    close(columns["reconstruction"][~hidden], columns["original"][~hidden], 1e-3)
    assert presentation.note(task, list(columns)).startswith("Visible patches: predicted.")


# ------------------------------------------------------------------ codes
def test_codes_are_decoded_where_they_can_be():
    """True codes at visible patches, predicted ones at masked patches."""
    task = Plain(pixel_target=Shades(), pixel=CODES)
    columns, prepared = drawn(task, lambda x: jnp.roll(x, 1, -1))
    assert list(columns) == ["original", "masked", "target codes", "prediction"]
    shades = np.asarray(patchify(jnp.asarray(images()) / 255.0, 4).mean(-1) * 9.999).astype(int)
    expected = lambda codes: codes.reshape(3, 4, 4).repeat(4, 1).repeat(4, 2)[..., None] / 9
    close(columns["target codes"], expected(shades) + np.zeros(3))
    wrong = np.where(prepared.mask, (shades + 1) % 10, shades)
    close(columns["prediction"], expected(wrong) + np.zeros(3))


def test_codes_without_a_decoder_are_green_or_red():
    task = Plain(pixel_target=Unseen(), pixel=CODES)
    columns, prepared = drawn(task, lambda x: x.at[:, 0].set(jnp.roll(x[:, 0], 1, -1)))
    assert list(columns) == ["original", "masked", "codes"]
    red, green, _ = np.moveaxis(np.asarray(columns["codes"]), -1, 0)
    first = np.zeros((3, 16), bool)
    first[np.arange(3), np.asarray(prepared.ids_m)[:, 0]] = True  # the one that is wrong
    hidden, wrong = at(prepared.mask), at(first)
    assert (red > green + 0.3)[wrong].all()
    assert (green > red + 0.3)[hidden & ~wrong].all()
    dimmed = presentation.DIM * columns["original"]
    close(columns["codes"][~hidden], dimmed[~hidden], 1e-6)
    assert "green where the most probable one is right" in presentation.note(task, list(columns))


# ------------------------------------------------------------------ features
def alone(places):
    """A composition that learns features at these places alone, with a regressor where needed."""
    regressor = Regressor(depth=1, heads=2) if "masked" in places else None
    return dataclasses.replace(
        Plain(),
        pixel_target=TEACHER,
        decoder=LinearHead(),
        regressor=regressor,
        pixel=dataclasses.replace(MSE_TERM, at=places, loss=Cosine()),
    )


@pytest.mark.parametrize(
    "places", ["cls+visible+masked", *map(helpers.gate, ("visible+masked", "cls+visible"))]
)
def test_features_of_teacher_and_student_are_shown_in_the_same_colors(places):
    right, prepared = drawn(alone(places))
    assert list(right) == ["original", "masked", "teacher", "student"]
    close(right["teacher"], right["student"], 1e-5)
    wrong, _ = drawn(alone(places), lambda x: -x)
    assert np.abs(wrong["teacher"] - wrong["student"]).max() > 0.1
    gray = np.all(np.asarray(right["teacher"]) == 0.5, axis=-1)
    # without a regressor nothing is said of masked patches
    np.testing.assert_array_equal(gray, at(prepared.mask) & ("masked" not in places))
    note = presentation.note(alone(places), list(right))
    assert f"predicted at {'visible and masked' if 'masked' in places else 'visible'} patc" in note


def test_terms_that_differ_in_place_alone_share_a_picture():
    """CAE v2's paper has a loss of visible patches and one of masked ones."""
    both = alone("visible+masked")
    apart = dataclasses.replace(
        AtTwo(), regressor=both.regressor, pixel_target=TEACHER, decoder=LinearHead()
    )
    for ours, theirs in zip(drawn(apart)[0].items(), drawn(both)[0].items(), strict=True):
        assert ours[0] == theirs[0]
        close(ours[1], theirs[1], 1e-5)


@dataclasses.dataclass(frozen=True)
class AtTwo(Plain):
    pixel: Term = Term("pixel_target", "decoder", at="visible")
    masked: Term = Term("pixel_target", "decoder", at="masked")


def test_where_pixels_are_learned_too_they_are_shown():
    pixel, both = drawn(Plain())[0], drawn(Two())[0]
    assert list(both) == list(pixel)
    weightless = dataclasses.replace(MSE_TERM, weight=0.0)
    assert "student" in drawn(Two(pixel=weightless))[0]


def test_attention_that_decides_is_shown():
    task = Two(masking=Salient(ratio=0.75, reads="feature_target"))
    columns, prepared = drawn(task)
    assert list(columns) == ["original", "attention", "masked", "reconstruction"]
    peak = np.asarray(prepared.attention).argmax(-1)
    most = at(np.eye(16, dtype=bool)[peak])
    close(columns["attention"][most], columns["original"][most])  # at full brightness
    assert columns["attention"].mean() < columns["original"].mean()
    visible = ~np.all(np.asarray(columns["masked"]) == 0.5, axis=-1)
    assert visible.mean() == 0.25
    assert "Attention: where the teacher's class token" in presentation.note(task, list(columns))


def test_pixels_joined_with_features_are_shown_alone():
    """One network predicts both: MR-MAE's Figure 1b."""
    columns, _ = drawn(Plain(pixel_target=Joint(TEACHER, Pixels("patch"))))
    alone, _ = drawn(Plain())
    assert list(columns) == list(alone)
    for name, column in alone.items():
        close(columns[name], column)
    task = Plain(pixel_target=Joint(TEACHER, Pixels("patch")))
    assert "true patch statistics" in presentation.note(task, list(columns))
    assert presentation.shown_term(Plain(pixel_target=Joint(TEACHER, TEACHER))).form == "colors"


def test_features_known_in_part_leave_the_rest_gray():
    target = OwnFeatures(of="current", masked_share=0.5)
    columns, prepared = drawn(Plain(pixel_target=target))
    known = np.zeros((3, 16), bool)
    ids = np.take_along_axis(
        np.asarray(prepared.ids_m), np.asarray(prepared.rows["pixel"]["masked"]), 1
    )
    np.put_along_axis(known, ids, True, 1)
    assert known.sum() == 12  # of 24 masked patches
    gray = np.all(np.asarray(columns["teacher"]) == 0.5, axis=-1)
    np.testing.assert_array_equal(gray, ~at(known))


# ------------------------------------------------------------------ regressor
@pytest.mark.parametrize("norm", ["none", "patch"])
def test_without_the_regressor_the_whole_image_is_decoded(norm):
    """The paper's Figure 4; on plain pixels nothing true is put back."""
    task = dataclasses.replace(
        Plain(),
        pixel_target=Pixels(norm),
        regressor=Regressor(depth=1, heads=2),
        decoder=LatentDecoder(depth=1, heads=2),
    )
    columns, prepared = drawn(task)
    assert list(columns) == ["original", "masked", "reconstruction", "no regressor"]
    params = begin(task)[0].params
    decoder = task.network("decoder")

    @jax.jit
    def decode(params, image):
        tokens = task.encoder.apply({"params": params["encoder"]}, image).tokens[:, 1:]
        ids = jnp.broadcast_to(jnp.arange(16), (3, 16))
        made = decoder.apply({"params": params["decoder"]}, tokens, ids)["masked"]
        return unpatchify(pixels.restore_patches(made, patchify(image, 4), norm), (4, 4), 4)

    expected = np.asarray(decode(params, prepared.image))
    expected = np.clip(expected * np.asarray(STD) + np.asarray(MEAN), 0, 1)
    close(columns["no regressor"], expected, 1e-5)
    note = presentation.note(task, list(columns))
    assert note.endswith("(CAE's Figure 4).")
    # borrowed statistics make any decoder look good, so the caption names them
    alike = np.corrcoef(np.ravel(columns["no regressor"]), np.ravel(columns["original"]))[0, 1]
    assert (alike > 0.6) == (norm == "patch")
    assert ("true patch statistics" in note) == (norm == "patch")


# ------------------------------------------------------------------ whole images, errors
@pytest.mark.gate
def test_whole_images_of_the_discrete_vae():
    task = DiscreteVAE(
        encoder=DVAEEncoder(vocab=16, hidden=8, num_layers=2),
        decoder=DVAEDecoder(codebook_dim=8),
        image_size=(16, 16),
    )
    params, _ = jax.jit(task.init)(jax.random.key(0))
    state = TrainState(jnp.int32(7), params, {}, {}, {})
    sheet = Painter(task).sheet(state, {}, {"image": images()}, 2)
    assert list(sheet.columns) == ["original", "reconstruction"]
    np.testing.assert_array_equal(sheet.columns["original"], images()[:2])
    assert sheet.caption == "DiscreteVAE, step 7."
    gap = (sheet.columns["reconstruction"].astype(float) - sheet.columns["original"]) / 127.5
    assert sheet.error == pytest.approx(np.square(gap).mean((1, 2, 3)), rel=0.05)


def test_the_error_of_an_image_counts_masked_patches_once_each():
    """Padding of a mask that stops short does not count; weights of the loss play no part."""
    rng, short = np.random.default_rng(1), BlockAtMost(ratio=0.7, min_block=100)
    for masking in (Random(ratio=0.5), short, Random(ratio=0.5, weights="neighbors")):
        task = Plain(masking=masking)
        prepare = jax.jit(lambda b, t=task: t.prepare(UNREAD, {}, b, KEY, False)[0])
        prepared = prepare(batch_of(task, 12))
        error = rng.random(prepared.ids_m.shape).astype(np.float32)
        prediction = Prediction({}, {}, {"masked": jnp.asarray(error)})
        real = np.take_along_axis(np.asarray(prepared.mask), np.asarray(prepared.ids_m), 1)
        assert real.all() == (masking is not short)
        expected = [e[r].mean() if r.any() else 0 for e, r in zip(error, real, strict=True)]
        found = presentation.image_error(prepared, {"pixel": prediction})
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_caption_tells_the_share_that_is_masked():
    task = Plain()
    sheet = Painter(task).sheet(begin(task)[0], {}, batch_of(task), 3)
    assert sheet.caption.startswith("Plain, step 0: 50 % of the patches masked. Masked patches")
    assert sheet.error.shape == (3,)
