"""Free compositions of parts: what any of them promises, and which are refused."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import optax
import pytest

from mimjax.errors import ConfigError
from mimjax.losses import L1, MSE, Cosine, CrossEntropy
from mimjax.masking.base import Random
from mimjax.masking.salient import Salient
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.mae import MAE
from mimjax.methods.mim import MIM
from mimjax.methods.parts import Average, Term
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import InjectedDecoder, MAEDecoder
from mimjax.models.heads import LinearHead
from mimjax.models.regressor import Regressor
from mimjax.schedules import Constant, Linear
from mimjax.targets.base import Target
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import PCA, Pixels
from mimjax.task import Clock, Encoded, EncoderNetwork, Predictor

DECODER = MAEDecoder(16, 1, 2)
CONV = ConvViT(16, 2, 2, (4, 8), (1, 1), strides=(2, 2, 1), image_size=(16, 16))


@dataclasses.dataclass(frozen=True)
class ThreeTargets(MIM):
    """Pixels, averaged features and a teacher's at once, and an average to evaluate."""

    encoder: EncoderNetwork = runs.encoder()
    masking: Random = Random(0.5)
    pixel_target: Target = Pixels()
    feature_target: Target = OwnFeatures(blocks=(0, -1))
    teacher_target: Target = runs.Teacher()
    decoder: Predictor = DECODER
    feature_decoder: Predictor = DECODER
    head: Predictor = LinearHead()
    pixel: Term = Term("pixel_target", "decoder")
    feature: Term = Term("feature_target", "feature_decoder", loss=L1(), normalize="both")
    teacher: Term = Term("teacher_target", "head", "cls+visible", Cosine(), weight=0.3)
    average: Average | None = Average(decay=Linear(0.5, 0.9), evaluate=True)


@dataclasses.dataclass(frozen=True)
class Sets(MAE):
    """The masked patches in two sets, each predicted apart (I-JEPA's blocks, in small)."""

    @dataclasses.dataclass(frozen=True)
    class Two(Random):
        sequences = 2

        def choose(self, *args):
            return super().choose(*args).replace(sequences=2)

    encoder: EncoderNetwork = runs.encoder(depth=1)
    masking: Random = Two(0.5)
    decoder: Predictor = DECODER


def mae(**options):
    base = {"encoder": runs.encoder(depth=1), "decoder": DECODER, "masking": Random(0.5)}
    return MAE(**base | options)


def bootmae(**options):
    decoder = lambda **kw: InjectedDecoder(depth=1, **kw)
    base = {"encoder": runs.encoder(), "masking": Random(0.5, weights="neighbors")}
    base |= {"pixel_decoder": decoder(width=16, inject=0, head="pixel")}
    return BootMAE(**base | {"feature_decoder": decoder()} | options)


TASKS = {
    "three": ThreeTargets(),
    "sets": Sets(),
    "codes": mae(
        pixel_target=runs.Codes(), pixel=Term("pixel_target", "decoder", loss=CrossEntropy())
    ),
    "teacher": mae(pixel_target=runs.Teacher(), average=Average(evaluate=True)),
    "everywhere": mae(
        pixel_target=runs.Teacher(), pixel=Term("pixel_target", "decoder", "cls+visible+masked")
    ),
    "head": mae(
        encoder=runs.encoder(depth=1, use_mask_token=True),
        decoder=LinearHead(),
        pixel=Term("pixel_target", "decoder", "visible+masked"),
    ),
    "conv": bootmae(encoder=CONV),
    "share": bootmae(feature_target=OwnFeatures(blocks=(-1,), masked_share=0.5)),
    "mlp": bootmae(feature_decoder=InjectedDecoder(depth=1, head="mlp")),
}


@pytest.mark.parametrize("name", helpers.gated(TASKS, ("three", "codes", "head")))
def test_a_free_composition_trains(name):
    """Every parameter learns, micro-batches change nothing, and the averages follow."""
    task = dataclasses.replace(TASKS[name], clock=Clock(4, 8))
    raw, tx = runs.raw_batch(), optax.sgd(0.1)
    params = runs.start(task)
    (one, metrics), (two, split) = (runs.step(task, tx, params, raw, a) for a in (1, 2))
    runs.close(two.params, one.params)
    runs.close(split, metrics, 1e-4)
    same = jax.tree.map(np.array_equal, one.params, params)
    assert not any(jax.tree.leaves(same)), same
    for name, tree in one.ema.items():
        decay = np.float32(task.average.decay(0, task.clock))
        mean = lambda e, p, d=decay: d * np.asarray(e) + (1 - d) * np.asarray(p)
        runs.close(tree, jax.tree.map(mean, params[name], one.params[name]), 1e-6)
    average = task.average and task.average.evaluate
    assert task.evaluated(one) is (one.ema if average else one.params)["encoder"]
    assert len(task.describe()) == 1 + len(task.parts(Term))
    assert task.story.endswith(".")


def test_a_term_without_weight_leaves_out_what_it_alone_reads():
    task = bootmae(feature=Term("feature_target", "feature_decoder", weight=0.0))
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    assert sorted(params) == ["encoder", "pixel_decoder"]
    assert task.init_ema(params) == {}
    assert list(task.targets) == ["pixel_target"]


def test_sets_of_masked_patches_do_not_see_each_other():
    """The second set's predictions do not depend on how many places the first one has."""
    task, raw = Sets(), runs.raw_batch()
    params = runs.start(task)
    batch = runs.prepare(task, raw, params)
    both = np.asarray(runs.predict(task, params, batch)[1]["decoder"]["masked"])
    first, second = batch.ids_m[:, :4], batch.ids_m[:, 4:]
    for ids, rows in ((first, both[:, :4]), (second, both[:, 4:])):
        alone = batch.replace(ids_m=ids, sequences=1)
        made = runs.predict(task, params, alone)[1]["decoder"]["masked"]
        np.testing.assert_allclose(made, rows, atol=1e-5)


def test_features_of_a_share_of_the_masked_patches():
    """The encoder sees them alone, and their rows say where they belong."""
    task, raw = TASKS["share"], runs.raw_batch()
    params = runs.start(task)
    batch = runs.prepare(task, raw, params)
    rows, features = batch.rows["feature"]["masked"], batch.targets["feature"]["masked"]
    assert rows.shape == (4, 4)
    assert features.shape == (4, 4, 16)
    ids = np.take_along_axis(np.asarray(batch.ids_m), np.asarray(rows), axis=1)
    apply = jax.jit(task.encoder.apply)
    blocks = apply({"params": params["encoder"]}, batch.image, ids).blocks
    true = np.asarray(blocks[-1][:, 1:])
    true = (true - true.mean(-1, keepdims=True)) / np.sqrt(true.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(features, true, atol=1e-4)
    # in evaluation one choice serves all images, so that monitors can compare them
    rows = np.asarray(runs.prepare(task, raw, params, train=False).rows["feature"]["masked"])
    assert (rows == rows[:1]).all()


def test_several_blocks_are_standardized_and_averaged():
    task, raw = ThreeTargets(), runs.raw_batch()
    params = runs.start(task)
    batch = runs.prepare(task, raw, params, train=False)
    blocks = jax.jit(task.encoder.apply)({"params": params["encoder"]}, batch.image).blocks
    unit = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    mean = (unit(np.asarray(blocks[0])) + unit(np.asarray(blocks[-1]))) / 2
    shown = batch.shown["feature_target"]
    np.testing.assert_allclose(shown["cls"], mean[:, :1], atol=1e-4)
    ids = np.asarray(batch.ids_v)[..., None] + 1
    np.testing.assert_allclose(shown["visible"], np.take_along_axis(mean, ids, 1), atol=1e-4)


def test_state_of_a_target_is_renewed_once_per_step():
    """The number of micro-batches plays no part; the mean is over the whole batch."""

    @dataclasses.dataclass(frozen=True)
    class Centered(runs.Teacher):
        def init_state(self, encoder):
            return {"center": jnp.zeros(6)}

        def values(self, encoder, seen, at):
            known = super().values(encoder, seen, at)
            center = seen.state.model_state[seen.name]["center"]
            mean = known.values["masked"].mean((0, 1))
            values = {p: x - center for p, x in known.values.items()}
            return known._replace(values=values, state={"center": 0.9 * center + 0.1 * mean})

    task, raw, tx = mae(pixel_target=Centered()), runs.raw_batch(), optax.sgd(0.1)
    params = runs.start(task)
    states = [runs.step(task, tx, params, raw, a)[0] for a in (1, 4)]
    centers = [s.model_state["pixel_target"]["center"] for s in states]
    assert np.abs(centers[0]).max() > 1e-3
    np.testing.assert_allclose(*centers, atol=1e-6)


def test_principal_components_are_fitted_and_give_the_pixels_back():
    task = mae(pixel_target=PCA(48))  # of a patch of 48 numbers: nothing is lost
    raw = runs.raw_batch()
    frozen = jax.jit(task.init_frozen)(runs.KEY)
    frozen = task.fit_frozen(frozen, lambda n: np.asarray(raw["image"])[np.arange(n) % 4])
    batch = runs.prepare(task, raw, frozen=frozen, train=False)
    plain = runs.prepare(mae(pixel_target=Pixels("none")), raw, train=False)
    pca = frozen["pixel_target"]["pca"]
    pixels = batch.shown["pixel_target"]["masked"] @ pca["basis"].T + pca["mean"]
    np.testing.assert_allclose(pixels, plain.shown["pixel_target"]["masked"], atol=1e-3)
    assert [f.key for f in task.frozen.values()] == [""]  # no file


def test_targets_in_pieces_hold_the_activations_of_one_micro_batch():
    wide = mae(
        encoder=runs.encoder(width=64, depth=3),
        pixel_target=OwnFeatures("current"),
        masking=Random(0.75),
    )
    state = jax.eval_shape(lambda: runs.state_of(wide, wide.init(runs.KEY)[0]))
    raw = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((64, *x.shape[1:]), x.dtype), runs.raw_batch()
    )

    def held(pieces):
        run = lambda s, b: wide.prepare(s, {}, b, runs.KEY, True, pieces)
        program = jax.jit(run).lower(state, raw).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert held(8) < 0.4 * held(1)


@dataclasses.dataclass(frozen=True)
class Coarse(runs.Teacher):
    def grid(self, encoder):
        return (2, 2)


@dataclasses.dataclass(frozen=True)
class TwoChannels(runs.Teacher):
    def channels(self, encoder):
        return 2


LONE = Term("pixel_target", "decoder", weight=0.0)
WRONG = {
    "no weight": (mae, {"pixel": LONE}, r"terms: all weights 0; allowed: one above 0"),
    "no target": (
        mae,
        {"pixel": Term("pixels", "decoder")},
        r"pixel\.target: 'pixels'; allowed: pixel_t",
    ),
    "no network": (
        mae,
        {"pixel": Term("pixel_target", "decodre")},
        r"pixel\.network: 'decodre'; allowed: dec",
    ),
    "no place": (
        mae,
        {"pixel": Term("pixel_target", "decoder", "maskd")},
        r"pixel\.at: 'maskd' of",
    ),
    "cls of pixels": (
        mae,
        {"pixel": Term("pixel_target", "decoder", "cls")},
        r"pixel\.at: .*visible, masked",
    ),
    "codes with MSE": (
        mae,
        {"pixel_target": runs.Codes()},
        r"pixel\.loss: MSE; allowed: a loss of codes",
    ),
    "vectors with CE": (
        mae,
        {"pixel": Term("pixel_target", "decoder", loss=CrossEntropy())},
        r"pixel\.loss: CrossEntropy; allowed: a loss of vectors",
    ),
    "normalized codes": (
        mae,
        {
            "pixel_target": runs.Codes(),
            "pixel": Term("pixel_target", "decoder", loss=CrossEntropy(), normalize="target"),
        },
        r"pixel\.normalize: 'target' of codes; allowed: none",
    ),
    "another grid": (
        mae,
        {"pixel_target": Coarse()},
        r"pixel_target: a grid of \(2, 2\); allowed: \(4, 4\)",
    ),
    "channels": (
        mae,
        {"pixel_target": TwoChannels()},
        r"pixel_target: it reads 2 channels; allowed: 3",
    ),
    "no average": (
        mae,
        {"pixel_target": OwnFeatures()},
        r"pixel_target\.of: 'average'; allowed: with method.av",
    ),
    "unread average": (
        mae,
        {"average": Average()},
        r"average: read by nobody; allowed: None, evaluate=True",
    ),
    "average of what": (
        mae,
        {"average": Average(("head",), evaluate=True)},
        r"average\.networks: \('head',\); allowed: encoder with any of decoder",
    ),
    "unread regressor": (
        mae,
        {
            "regressor": Regressor(depth=1, heads=2),
            "pixel": Term("pixel_target", "decoder", "visible"),
        },
        r"regressor: read by no term",
    ),
    "no regressor for a head": (
        mae,
        {"decoder": LinearHead()},
        r"pixel\.at: 'masked' .*allowed: visible",
    ),
    "visible under weights": (
        mae,
        {
            "masking": Random(0.5, weights="neighbors"),
            "pixel": Term("pixel_target", "decoder", "visible"),
        },
        r"pixel\.at: 'visible' under Random\(.*; allowed: masked, cls, visible with method.mas",
    ),
    "visible under sets": (
        Sets,
        {"pixel": Term("pixel_target", "decoder", "visible")},
        r"pixel\.at: 'visible' under Two",
    ),
    "attention": (
        mae,
        {"masking": Salient(reads="teacher")},
        r"masking\.reads: 'teacher'; allowed: another",
    ),
    "injection": (
        bootmae,
        {"encoder": runs.encoder(use_mask_token=True)},
        r"pixel\.at: 'masked' of pixel_target and pixel_decoder; allowed: nothing",
    ),
    "block": (
        bootmae,
        {"feature_decoder": InjectedDecoder(depth=1, inject=2)},
        r"feature_decoder\.inject: 2; allowed: -2 to 1",
    ),
    "pixel head": (
        bootmae,
        {"feature_decoder": InjectedDecoder(depth=1, head="pixel")},
        r"feature_decoder\.head: 'pixel' for predictions of 16 numbers",
    ),
    "blocks": (
        mae,
        {"encoder": runs.encoder(), "pixel_target": OwnFeatures("current", blocks=(5,))},
        r"pixel_target\.blocks: 5; allowed: -2 to 1",
    ),
    "two widths": (
        ThreeTargets,
        {"feature": Term("feature_target", "decoder")},
        r"feature\.target: 'feature_target', vectors of 16; allowed: 48, as decoder predicts",
    ),
    "unread network": (
        ThreeTargets,
        {"teacher": Term("teacher_target", "decoder", loss=MSE(), weight=0.0)},
        r"head: read by no term; allowed: the network of a term",
    ),
    "unread target": (
        ThreeTargets,
        {"teacher": Term("pixel_target", "head", "visible", weight=0.1)},
        r"teacher_target: named by no term",
    ),
    "masks of nothing": (
        mae,
        {"masking": Random(0.99)},
        r"masking\.ratio: 0\.99 masks 16 of 16 patches",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_composition_that_cannot_be_is_refused_in_one_line(name):
    make, options, line = WRONG[name]
    with pytest.raises(ConfigError, match=rf"^method\.{line}") as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_blocks_that_do_not_fit_the_tokens_are_refused():
    """A user's encoder may have stages; the injected block has to show the visible patches."""
    decoder = InjectedDecoder(depth=1).sized(runs.encoder(), 16)
    x, ids = jnp.zeros((1, 5, 16)), jnp.zeros((1, 4), int)
    encoded = Encoded(x, (jnp.zeros((1, 17, 16)),), 1, False, ids, ids, 1, False)
    with pytest.raises(ConfigError, match=r"inject.*17 tokens.*5"):
        decoder.inputs(encoded, ("masked",))


def test_a_constant_schedule_is_the_weight():
    task = mae(pixel=Term("pixel_target", "decoder", weight=0.5, schedule=Constant(0.5)))
    params = runs.start(task)
    out = runs.loss(task, params, runs.prepare(task, runs.raw_batch(), params))
    np.testing.assert_allclose(out.metrics["weight/pixel"], 0.25)
    np.testing.assert_allclose(out.total, 0.25 * out.metrics["loss/pixel"], rtol=1e-6)
