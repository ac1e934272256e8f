"""RandAugment equals timm's, operation by operation and as a whole on the same random numbers."""

import types

import helpers
import numpy as np
import pytest
import stubs
from PIL import Image

from mimjax import schema
from mimjax.data import Augment, Pipeline, configured, make_source
from mimjax.data import rand_augment as ra
from mimjax.data.bands import Bands
from mimjax.errors import ConfigError
from mimjax.run.evaluate import crops
from mimjax.task import Clock, View

timm = stubs.alone("timm.data.auto_augment")
RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)


def picture(height, width, seed=0):
    """Smooth colors with noise on them: every operation changes some of its pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    smooth = np.stack([160 * x + 40, 90 * y + 60, 120 * (1 - x * y)], -1)
    return Image.fromarray((smooth + rng.integers(-30, 30, smooth.shape)).clip(0, 255).astype("u1"))


class Fed:
    """Python's `random`, and NumPy's choice, out of one generator as our draws read it."""

    def __init__(self, rng):
        self.rng, self.random = rng, types.SimpleNamespace(choice=self.choice)
        self.uniform, self.gauss = rng.uniform, rng.normal

    def choice(self, operations, size, replace, p):
        assert replace
        assert p is None
        return [operations[i] for i in self.rng.integers(len(operations), size=size)]


@pytest.fixture
def feed(monkeypatch):
    """Give timm the numbers of a generator."""
    new = timm.ImageOps.posterize

    def posterize(image, bits):
        """The posterize of older Pillows, which timm calls with 0 bits: 2 % of the recipes."""
        return new(image, bits) if bits > 0 else Image.new("RGB", image.size)

    monkeypatch.setattr(timm.ImageOps, "posterize", posterize)

    def feed(rng):
        fed = Fed(rng)
        monkeypatch.setattr(timm, "np", types.SimpleNamespace(random=fed.random))
        fed = types.SimpleNamespace(random=rng.random, uniform=rng.uniform, gauss=rng.normal)
        monkeypatch.setattr(timm, "random", fed)

    return feed


def theirs(text, resample):
    settings = {"translate_const": 21, "img_mean": FILL, "interpolation": resample}
    return timm.rand_augment_transform(text, settings)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("number", range(len(ra.NAMES)), ids=ra.NAMES)
def test_each_operation_is_timms(number, increasing, feed):
    """Images agree at all strengths, with both signs and both filters."""
    operation, image, changed = ra.OPERATIONS[ra.NAMES[number]], picture(23, 31), 0
    amount = (increasing and operation.increasing) or operation.amount
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR):
        transform = theirs(f"rand-p1-mmax30-inc{increasing:d}", resample)
        for strength in (0, 3.3, 9, 10, 21):
            for drawn in (0.2, 0.8):
                rng = types.SimpleNamespace(
                    random=lambda drawn=drawn: drawn, uniform=None, normal=None
                )
                feed(rng)
                transform.ops[number].magnitude = strength
                expected = np.asarray(transform.ops[number](image))
                step = ra.Step(ra.NAMES[number], amount(strength / 10, rng))
                out = ra.apply(image, (step,), ra.Paint(FILL, resample))
                np.testing.assert_array_equal(np.asarray(out), expected)
                changed += (expected != np.asarray(image)).any()
    assert changed


@pytest.mark.parametrize(
    "text",
    [
        RECIPE,
        "rand",
        "rand-m5-n3-p1-mmax20-mstd101",
        "rand-inc1-m30-mmax30-n4-p0.75-mstd2.5",
        "rand-m0-inc1",
    ],
)
def test_the_whole_is_timms_on_the_same_numbers(text, feed):
    image, resample = picture(16, 20), Image.Resampling.BICUBIC
    transform, parsed, names, counts = theirs(text, resample), ra.parse(text), set(), []
    for seed in range(150):
        feed(np.random.default_rng(seed))
        expected = np.asarray(transform(image))
        steps = parsed.draw(np.random.default_rng(seed))
        out = ra.apply(image, steps, ra.Paint(FILL, resample))
        np.testing.assert_array_equal(np.asarray(out), expected)
        names |= {step.name for step in steps}
        counts.append(len(steps))
    assert names == set(ra.NAMES)
    assert abs(np.mean(counts) - parsed.operations * parsed.probability) < 0.2


def test_augment_applies_it_after_crop_and_flip_to_all_views():
    image = picture(60, 80)
    views = {"image": View((32, 32)), "small": View((16, 24), "bilinear")}
    plain, augment = Augment(), Augment(rand_augment=RECIPE, fill=FILL)
    drawn = []
    for seed in range(12):
        before = plain(image, views, np.random.default_rng(seed))
        after = augment(image, views, np.random.default_rng(seed))
        params = augment.params((60, 80), views, np.random.default_rng(seed))
        drawn.append(params.steps)
        for name, resample in (("image", 3), ("small", 2)):
            paint = ra.Paint(FILL, Image.Resampling(resample))
            expected = ra.apply(Image.fromarray(before[name]), params.steps, paint)
            np.testing.assert_array_equal(after[name], np.asarray(expected))
    assert len(set(drawn)) > 6
    center = augment(image, views, np.random.default_rng(0), train=False)
    expected = plain(image, views, np.random.default_rng(0), train=False)
    for name in views:
        np.testing.assert_array_equal(center[name], expected[name])


def test_a_run_fills_with_its_mean_and_its_fingerprint_knows():
    def data(**overrides):
        c = helpers.small("mae", **overrides)
        return configured.make_data(c, schema.make_task(c, Clock(1, 1)), "train")

    plain, chosen = data(), data(**{"data.augment.rand_augment": RECIPE})
    assert chosen.augment.fill == tuple(round(255 * m) for m in (0.485, 0.456, 0.406))
    darker = data(**{"data.augment.rand_augment": RECIPE, "method.mean": (0.1, 0.1, 0.1)})
    other = data(**{"data.augment.rand_augment": "rand-m5"})
    prints = [d.fingerprint for d in (plain, chosen, darker, other)]
    assert len(set(prints)) == 4
    assert data(**{"method.mean": (0.1, 0.1, 0.1)}).fingerprint == prints[0]
    assert (plain.batch(0)["image"] != chosen.batch(0)["image"]).any()


@pytest.mark.parametrize(
    ("text", "found", "allowed"),
    [
        ("m9", "'m9'", "rand-m9-mstd0.5-inc1, with"),
        ("augmix-m5", "'augmix-m5'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-m9.5", "'rand-m9.5'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-m9-w0", "'rand-m9-w0'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-m9-tweights", "'rand-m9-tweights'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-m9-m8", "'rand-m9-m8'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-m9-", "'rand-m9-'", "rand-m9-mstd0.5-inc1, with"),
        ("rand-mmax0", "mmax0 in 'rand-mmax0'", "1 or more"),
        ("rand-mmax5", "m10 in 'rand-mmax5'", r"0 to 5 \(mmax"),
        ("rand-m12", "m12 in 'rand-m12'", r"0 to 10 \(mmax"),
        ("rand-n0", "n0 in 'rand-n0'", "1 or more"),
        ("rand-p0", "p0 in 'rand-p0'", "above 0 up to 1"),
        ("rand-p1.5", "p1.5 in 'rand-p1.5'", "above 0 up to 1"),
        ("rand-inc2", "inc2 in 'rand-inc2'", "0 or 1"),
        (9, "9", "rand-m9-mstd0.5-inc1, with"),
    ],
)
def test_other_texts_are_refused(text, found, allowed):
    line = f"^data.augment.rand_augment: {found}; allowed: {allowed}[^\n]*$"
    with pytest.raises(ConfigError, match=line):
        Augment(rand_augment=text)


def test_what_it_does_not_suit():
    augment, rng = Augment(rand_augment=RECIPE), np.random.default_rng(0)
    bands = Bands([Image.new("L", (9, 9))] * 4)
    with pytest.raises(ConfigError, match=r"^data.augment.rand_augment: found .*; allowed: None "):
        augment(bands, {"image": View((8, 8))}, rng)
    lanczos = {"image": View((8, 8), "lanczos")}
    for refuses in (
        lambda: augment.check(lanczos, 3),
        lambda: augment(picture(9, 9), lanczos, rng),
    ):
        with pytest.raises(
            ConfigError, match=r"^view.resample: found 'lanczos'; allowed: bicubic, "
        ):
            refuses()
    with pytest.raises(ConfigError, match=r"^data.augment.color_jitter: found 0.4; allowed: 0 "):
        Augment(rand_augment=RECIPE, color_jitter=0.4)


def test_probes_train_on_plain_crops():
    """`mimjax evaluate --augment` crops plainly, whatever the encoder was trained with."""
    assert crops(Augment(rand_augment=RECIPE)) == crops(Augment())


def test_batches_of_the_same_step_are_equal():
    source = make_source("synthetic", "train", length=12, side=20)
    make = lambda: Pipeline(
        source, {"image": View((16, 16))}, Augment(rand_augment=RECIPE), None, 6, 3
    )
    whole = make().batch(1)["image"]
    halves = [make().batch(1, slice(3 * h, 3 * h + 3))["image"] for h in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
