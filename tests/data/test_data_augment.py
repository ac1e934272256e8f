"""Augmentation: torchvision's statistics, one box for all views, deterministic, any shape."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mimjax.data.augment import Augment, center_crop, crop_generator, fixed_box, random_resized_box
from mimjax.task import ConfigError, View


def ramp(height, width):
    """An image whose red and green say where a pixel comes from."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()[None, :]
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(pixels)


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))


VIEW = {"image": View((32, 32))}
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def test_random_resized_statistics():
    rng = np.random.default_rng(0)
    # Square and narrow ratios: no try is ever rejected, so area and ratio keep their distributions.
    boxes = np.array(
        [random_resized_box((1000, 1000), (0.2, 0.5), (3 / 4, 4 / 3), rng) for _ in range(4000)]
    )
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = w * h / 1e6
    assert area.min() > 0.199
    assert area.max() < 0.501
    np.testing.assert_allclose(
        np.quantile(area, [0.25, 0.5, 0.75]), [0.275, 0.35, 0.425], atol=0.01
    )
    log_ratio = np.log(w / h) / math.log(4 / 3)
    np.testing.assert_allclose(np.quantile(log_ratio, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.06)
    place = boxes[:, 0] / (1000 - w)  # uniform over the room that is left
    np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < 0.2


def test_random_resized_box_is_the_published_algorithm():
    """The box is that of the loop in torchvision's `get_params`, fed with the same numbers."""

    def reference(height, width, rng):
        for _ in range(10):
            area = height * width * rng.uniform(0.2, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                i = rng.integers(0, height - h + 1)
                j = rng.integers(0, width - w + 1)
                return j, i, j + w, i + h
        if width / height < 3 / 4:
            w, h = width, round(width / (3 / 4))
        elif width / height > 4 / 3:
            w, h = round(height * (4 / 3)), height
        else:
            w, h = width, height
        i, j = (height - h) // 2, (width - w) // 2
        return j, i, j + w, i + h

    for size in [(100, 100), (37, 91), (300, 20), (20, 300), (1, 1), (2, 500)]:
        ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
        for _ in range(50):
            box = random_resized_box(size, (0.2, 1.0), (3 / 4, 4 / 3), ours)
            assert box == reference(*size, theirs)
            assert 0 <= box[0] < box[2] <= size[1]
            assert 0 <= box[1] < box[3] <= size[0]


def test_fallback_is_the_center():
    rng = np.random.default_rng(0)
    # The box would need 9 times the height of the image: all ten tries fail.
    assert random_resized_box((100, 1000), (0.9, 1.0), (3 / 4, 4 / 3), rng) == (433, 0, 566, 100)
    assert random_resized_box((1000, 100), (0.9, 1.0), (3 / 4, 4 / 3), rng) == (0, 433, 100, 566)


def test_view_is_pillows_crop_and_antialiased_resize():
    image = noise(80, 100)
    for resample, number in [("bicubic", 3), ("bilinear", 2), ("lanczos", 1)]:
        augment = Augment(flip=0.0)
        views = {"image": View((24, 40), resample)}
        box = augment.params((80, 100), views, np.random.default_rng(5)).box
        out = augment(image, views, np.random.default_rng(5))["image"]
        expected = np.asarray(image.crop(box).resize((40, 24), Image.Resampling(number)))
        np.testing.assert_array_equal(out, expected)
        assert out.dtype == np.uint8
        assert out.flags.writeable


@pytest.mark.parametrize("crop", ["random_resized", "fixed", "none"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [(240, 240), (120, 400), (400, 120)])
def test_views_share_box_flip_and_color(crop, train, size):
    augment = Augment(crop=crop, color_jitter=0.4)
    views = {"image": View((64, 64)), "target_image": View((32, 32), "lanczos")}
    for seed in range(6):
        out = augment(ramp(*size), views, np.random.default_rng(seed), train)
        assert out["image"].shape == (64, 64, 3)
        assert out["target_image"].shape == (32, 32, 3)
        halved = out["image"].astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(halved - out["target_image"]).max() < 6


TWO = {
    "image": View((24, 24)),
    "target_image": View((12, 12)),
    "image2": View((24, 24), crop="image2"),
    "target_image2": View((12, 12), crop="image2"),
}


@pytest.mark.parametrize("crop", ["random_resized", "fixed", "none"])
def test_another_crop_changes_nothing_of_the_first(crop):
    """Images of a run stay what they are when a second crop is asked for, in any order."""
    augment = Augment(crop=crop, color_jitter=0.4)
    image, one = noise(60, 90), {k: v for k, v in TWO.items() if v.crop == "image"}
    for seed in range(8):
        alone = augment(image, one, np.random.default_rng(seed))
        both = augment(image, TWO, np.random.default_rng(seed))
        turned = augment(image, dict(reversed(TWO.items())), np.random.default_rng(seed))
        assert list(both) == list(TWO)
        for name in TWO:
            np.testing.assert_array_equal(both[name], turned[name])
        for name in one:
            np.testing.assert_array_equal(both[name], alone[name])


def test_a_crop_has_a_box_a_flip_and_a_jitter_of_its_own():
    """Views of a crop share all three, which depend on its name and the example's generator."""
    augment, size = Augment(color_jitter=0.4), (60, 90)
    view = {"image": View((24, 24))}

    def drawn(crop, seed):
        return augment.params(size, view, crop_generator(crop, np.random.default_rng(seed)))

    image, flips, jitters = noise(*size), set(), set()
    for seed in range(40):
        first, second, third = (drawn(crop, seed) for crop in ("image", "image2", "image3"))
        assert len({first.box, second.box, third.box}) == 3
        flips.add((first.flip, second.flip))
        jitters |= {first.jitter, second.jitter, third.jitter}
        assert drawn("image2", seed) == second
        out = augment(image, TWO, np.random.default_rng(seed))
        colored = image
        for number, factor in second.jitter:
            colored = ENHANCERS[number](colored).enhance(factor)
        cut = colored.crop(second.box)
        for name in ("image2", "target_image2"):
            expected = np.asarray(cut.resize(TWO[name].size[::-1], Image.Resampling.BICUBIC))
            expected = expected[:, ::-1] if second.flip else expected
            np.testing.assert_array_equal(out[name], expected)
    assert len(flips) == 4
    assert len(jitters) == 120


def test_the_crops_of_an_example_are_independent():
    boxes = [
        [
            Augment().params((400, 400), VIEW, crop_generator(c, np.random.default_rng(seed))).box
            for c in ("image", "image2")
        ]
        for seed in range(2000)
    ]
    (left, top, right, bottom), (left2, top2, right2, bottom2) = np.transpose(boxes, (1, 2, 0))
    area, area2 = (right - left) * (bottom - top), (right2 - left2) * (bottom2 - top2)
    pairs = ((area, area2), (left, left2), (top, top2), (left, top2))
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.08 for a, b in pairs)
    quantiles = [0.1, 0.5, 0.9]  # the same distribution
    np.testing.assert_allclose(
        np.quantile(area, quantiles), np.quantile(area2, quantiles), rtol=0.1
    )


def test_evaluation_crops_are_centered_in_every_view():
    out = Augment(color_jitter=0.4)(noise(60, 90), TWO, np.random.default_rng(0), train=False)
    np.testing.assert_array_equal(out["image"], out["image2"])
    np.testing.assert_array_equal(out["target_image"], out["target_image2"])


def test_flip_rate_and_exactness():
    image = ramp(50, 50)
    augment = Augment(crop="none")
    plain = augment(image, VIEW, np.random.default_rng(0), train=False)["image"]
    flips = 0
    for seed in range(400):
        out = augment(image, VIEW, np.random.default_rng(seed))["image"]
        flipped = out[0, 0, 0] > out[0, -1, 0]
        np.testing.assert_array_equal(out, plain[:, ::-1] if flipped else plain)
        flips += flipped
    assert 160 < flips < 240


def test_color_jitter_is_torchvisions():
    augment = Augment(crop="none", flip=0.0, color_jitter=0.4)
    image = noise(32, 32)
    orders = set()
    factors = []
    for seed in range(300):
        jitter = augment.params((32, 32), VIEW, np.random.default_rng(seed)).jitter
        orders.add(tuple(number for number, _ in jitter))
        factors += [factor for _, factor in jitter]
    assert len(orders) == 6
    assert 0.6 <= min(factors) < 0.62
    assert 1.38 < max(factors) <= 1.4
    expected = image
    for number, factor in augment.params((32, 32), VIEW, np.random.default_rng(1)).jitter:
        expected = ENHANCERS[number](expected).enhance(factor)
    out = augment(image, VIEW, np.random.default_rng(1))["image"]
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_jitter_does_not_move_the_box():
    plain, colored = Augment(), Augment(color_jitter=0.4)
    for seed in range(5):
        a, b = (x.params((90, 70), VIEW, np.random.default_rng(seed)) for x in (plain, colored))
        assert a[:2] == b[:2]
        assert (a.jitter, len(b.jitter)) == ((), 3)


def test_fixed_crop_keeps_scale_and_moves_along_the_long_side():
    boxes = {fixed_box((100, 300), (64, 64), np.random.default_rng(n)) for n in range(40)}
    assert {(b[1], b[3], b[2] - b[0]) for b in boxes} == {(0, 100, 100)}
    assert len(boxes) > 20
    left, top, right, bottom = fixed_box((300, 100), (32, 64), np.random.default_rng(0))
    assert (left, right, bottom - top) == (0, 100, 50)
    assert 0 <= top <= 250


@pytest.mark.parametrize(
    ("source", "view", "eval_crop", "resized", "corner"),
    [
        ((375, 500), (224, 224), 0.875, (256, 341), (16, 58)),  # 58.5 is rounded to even
        ((500, 375), (224, 224), 0.875, (341, 256), (58, 16)),
        ((300, 300), (224, 224), 1.0, (224, 224), (0, 0)),
        ((300, 600), (100, 50), 1.0, (100, 200), (0, 75)),
        ((600, 300), (50, 100), 1.0, (200, 100), (75, 0)),
        ((10, 17), (32, 32), 1.0, (32, 54), (0, 11)),
    ],
)
def test_center_crop_is_resize_and_center_crop(source, view, eval_crop, resized, corner):
    image = noise(*source)
    out = np.asarray(center_crop(image, View(view), eval_crop))
    whole = np.asarray(image.resize(resized[::-1], Image.Resampling.BICUBIC))
    top, left = corner
    np.testing.assert_array_equal(out, whole[top : top + view[0], left : left + view[1]])


def test_evaluation_ignores_the_generator():
    image = noise(60, 90)
    outs = [Augment()(image, VIEW, np.random.default_rng(n), train=False)["image"] for n in (0, 1)]
    np.testing.assert_array_equal(*outs)


def test_lists_become_tuples_and_the_dataclass_hashes():
    augment = Augment(scale=[0.2, 1.0], ratio=[3 / 4, 4 / 3])  # as a config file gives them
    assert augment == Augment()
    assert hash(augment) == hash(Augment())
    with pytest.raises(dataclasses.FrozenInstanceError):
        augment.flip = 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "center"),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.2)),
        ("scale", (0.5, 1.2)),
        ("scale", (0.5,)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
        ("flip", 1.5),
        ("color_jitter", -0.1),
        ("eval_crop", 0.0),
        ("eval_crop", 1.5),
    ],
)
def test_errors_name_the_key(field, value):
    with pytest.raises(ConfigError, match=rf"^data.augment.{field}: .*; allowed: .+"):
        Augment(**{field: value})


def test_unknown_filter():
    with pytest.raises(ConfigError, match=r"found 'box'; allowed: bicubic, bilinear, lanczos"):
        Augment()(noise(9, 9), {"image": View((4, 4), "box")}, np.random.default_rng(0))
