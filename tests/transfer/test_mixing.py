"""Mixup, CutMix and random erasing equal timm's on the same numbers, and draw as timm does."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stubs
import torch

from mimjax import sharding
from mimjax.errors import ConfigError
from mimjax.transfer.mixing import Draws, Mix, Mixing, erase, erased, targets

mixup, random_erasing = (stubs.alone(f"timm.data.{name}") for name in ("mixup", "random_erasing"))
B, H, W, C, CLASSES = 8, 12, 16, 3, 5
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, H, W, C)).astype(np.float32)
LABELS = RNG.integers(CLASSES, size=B).astype(np.int32)
# what is kept, from 0 to 1, and centers in the middle, at borders and in corners
KEEP = np.array([0.3, 0.0, 1.0, 0.75, 0.9, 0.1, 0.5, 0.62], np.float32)
CUT = np.array([True, True, True, False, False, True, True, False])
CENTER = np.array([[6, 8], [3, 9], [1, 1], [5, 5], [0, 0], [11, 15], [0, 15], [6, 2]], np.int32)
DRAWS = {"batch": B, "pair": B // 2, "elem": B}


# what was drawn is applied alike in all modes
applied = jax.jit(Mixing.apply, static_argnums=(0, 4, 5))


def by_timm(mode, draws, smoothing, monkeypatch):
    """What timm makes of images and labels, fed with the draws."""
    mixer = mixup.Mixup(0.8, 1.0, mode=mode, label_smoothing=smoothing, num_classes=CLASSES)
    keep, cut, center = draws
    monkeypatch.setattr(mixer, "_params_per_batch", lambda: (float(keep[0]), bool(cut[0])))
    monkeypatch.setattr(mixer, "_params_per_elem", lambda count: (keep.copy(), cut))
    # timm draws a center only where a box is cut
    used = [i for i in range(len(keep)) if cut[i] and keep[i] != 1]
    numbers = iter(center[used].ravel().tolist())

    def integers(low, high, size):
        assert (low, size) == (0, None)
        return min(next(numbers), high - 1)

    monkeypatch.setattr(mixup, "np", types.SimpleNamespace(**vars(np) | {"random": None}))
    monkeypatch.setattr(mixup.np, "random", types.SimpleNamespace(randint=integers))
    x, y = mixer(torch.tensor(IMAGES).permute(0, 3, 1, 2).contiguous(), torch.tensor(LABELS))
    return x.permute(0, 2, 3, 1).numpy(), y.numpy()


def spread(mode, *draws):
    """The draws as one for each image."""
    if mode == "batch":
        return Mix(*(np.repeat(x[:1], B, 0) for x in draws))
    return Mix(*(np.concatenate([x, x[::-1]]) if mode == "pair" else x for x in draws))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_timms_on_the_same_draws(mode, smoothing, monkeypatch):
    count = DRAWS[mode]
    firsts = range(B) if mode == "batch" else range(0, B, count)
    for first in firsts:
        draws = [x[first : first + count] for x in (KEEP, CUT, CENTER)]
        x, y = by_timm(mode, draws, smoothing, monkeypatch)
        out = applied(Mixing(), spread(mode, *draws), IMAGES, LABELS, CLASSES, smoothing)
        np.testing.assert_allclose(out[0], x, rtol=0, atol=5e-7)
        np.testing.assert_allclose(out[1], y, rtol=0, atol=2e-7)
        cut = np.asarray(spread(mode, *draws).cut)
        np.testing.assert_array_equal(out[0][cut], x[cut])  # pixels that are only copied


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_group_is_mixed_as_a_batch_of_its_own(mode):
    draw = jax.jit(Mixing(mode=mode, group=4).draw, static_argnums=(1, 2))
    mix = draw(jax.random.key(3), B, (H, W))
    shares = np.asarray(mix.keep).reshape(2, 4)
    for half in shares:
        assert len(set(half.tolist())) == {"batch": 1, "pair": 2, "elem": 4}[mode]
        if mode == "pair":
            np.testing.assert_array_equal(half, half[::-1])
    assert not set(shares[0].tolist()) & set(shares[1].tolist())
    whole = applied(Mixing(group=4), mix, IMAGES, LABELS, CLASSES)
    parts = [
        applied(Mixing(), Mix(*(x[s] for x in mix)), IMAGES[s], LABELS[s], CLASSES)
        for s in (slice(0, 4), slice(4, 8))
    ]
    for x, first, second in zip(whole, *parts):
        np.testing.assert_array_equal(x, np.concatenate([first, second]))
    wide = functools.partial(Mixing(mode=mode, group=99), classes=CLASSES)  # a smaller batch is one
    image, target = jax.eval_shape(wide, jax.random.key(0), IMAGES, LABELS)
    assert (image.shape, target.shape) == (IMAGES.shape, (B, CLASSES))


@pytest.mark.gate
def test_what_is_drawn_is_distributed_as_timms():
    count = 6000

    def drawn(seed=0, **settings):
        mix = jax.jit(Mixing(mode="elem", **settings).draw, static_argnums=(1, 2))(
            jax.random.key(seed), count, (H, W)
        )
        return jax.tree.map(np.asarray, mix)

    both, some = drawn(), drawn(probability=0.7, switch=0.2)
    for mix, share, rate in ((both, 0.5, 1.0), (some, 0.2, 0.7)):
        assert abs(mix.cut.mean() - share) < 0.03
        for chosen in (mix.cut, ~mix.cut):
            assert abs((mix.keep[chosen] != 1).mean() - rate) < 0.045
        assert np.isfinite(mix.keep).all()
    rng, points = np.random.default_rng(1), [0.05, 0.25, 0.5, 0.75, 0.95]
    for chosen, alpha in ((~both.cut, 0.8), (both.cut, 1.0)):
        expected = np.quantile(rng.beta(alpha, alpha, 100_000), points)
        np.testing.assert_allclose(np.quantile(both.keep[chosen], points), expected, atol=0.04)
    for axis, side in enumerate((H, W)):
        counts = np.bincount(both.center[:, axis], minlength=side)
        assert len(counts) == side
        np.testing.assert_allclose(counts / count, 1 / side, atol=0.015)
    assert (drawn(seed=1).keep != both.keep).any()
    pairs = np.corrcoef(np.stack([both.keep, both.cut, *both.center.T]))
    assert np.abs(pairs - np.eye(4)).max() < 0.06


@pytest.mark.parametrize(("settings", "cut"), [({"cutmix": 0.0}, False), ({"mixup": 0.0}, True)])
def test_one_of_the_two_alone(settings, cut):
    draw = jax.jit(Mixing(**settings, mode="elem").draw, static_argnums=(1, 2))
    mix = draw(jax.random.key(0), 64, (H, W))
    assert (mix.cut == cut).all()
    assert (mix.keep != 1).all()


@pytest.mark.gate
def test_devices_change_nothing():
    """A second call with the same key changes nothing either; a batch has one draw."""
    mesh = sharding.make_mesh()
    call = jax.jit(lambda x, y: Mixing()(jax.random.key(4), x, y, CLASSES, 0.1))
    alone = call(IMAGES, LABELS)
    spread = call(*(jax.device_put(x, sharding.batch_sharding(mesh)) for x in (IMAGES, LABELS)))
    for a, b in zip(alone, spread):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(alone[1].sum(1), 1, rtol=1e-6)
    assert (np.asarray(alone[0]) != IMAGES).any()


def test_images_without_a_label_add_no_loss():
    labels = np.array([2, -1, 0, 1], np.int32)
    made = np.asarray(targets(labels, CLASSES, 0.1))
    np.testing.assert_allclose(made.sum(1), [1, 0, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(made[0], [0.02, 0.02, 0.92, 0.02, 0.02], rtol=1e-6)
    mix = Mix(np.full(4, 0.25, np.float32), np.zeros(4, bool), np.zeros((4, 2), np.int32))
    _, mixed = Mixing().apply(mix, IMAGES[:4], labels, CLASSES, 0.1)
    np.testing.assert_allclose(mixed, 0.25 * made + 0.75 * made[::-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "batch", "line"),
    [
        ({"mixup": 0.0, "cutmix": 0.0}, 8, "m.mixup, m.cutmix: both 0; allowed: one above 0"),
        ({}, 9, "batch_size: 9 with m; allowed: even numbers"),
        ({"group": 3}, 12, "m.group: 3 with batch_size 12; allowed: even numbers that divide it"),
        ({"group": 8}, 12, "m.group: 8 with batch_size 12; allowed: even numbers that divide it"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings, batch, line):
    with pytest.raises(ConfigError, match=rf"^{line}[^\n]*$"):
        Mixing(**settings).check("m", batch)
    Mixing(group=4).check("m", 12)
    Mixing(group=32).check("m", 12)  # which is one group


# ------------------------------------------------------------------ random erasing
@pytest.mark.parametrize("size", [(16, 16), (12, 40)])
def test_the_erased_box_is_timms_on_the_same_draws(size, monkeypatch):
    count = 300
    rng = np.random.default_rng(2)
    draws = Draws(*(rng.random((count, *s), np.float32) for s in ((), (10,), (10,), (2,))))
    # those of the first images fit into no image: all ten are as high as can be
    draws.area[:5], draws.aspect[:5] = 0.999, 0.999
    ours = np.asarray(jax.jit(erased, static_argnums=(1, 2, 3, 4))(draws, size, 0.8, AREA, ASPECT))
    theirs = random_erasing.RandomErasing(0.8, mode="pixel", device="cpu")
    for i in range(count):
        tries = iter(np.stack([draws.area[i], draws.aspect[i]], 1).ravel().tolist())
        places = iter(draws.place[i].tolist())
        fed = types.SimpleNamespace(
            random=lambda i=i: float(draws.happens[i]),
            uniform=lambda low, high, tries=tries: low + (high - low) * next(tries),
            randint=lambda low, high, places=places: low + int(next(places) * (high - low + 1)),
        )
        monkeypatch.setattr(random_erasing, "random", fed)
        image = theirs(torch.full((3, *size), 100.0))
        np.testing.assert_array_equal(ours[i], (image != 100).all(0).numpy(), err_msg=str(i))
    assert 0.6 < ours.any((1, 2)).mean() < 0.9
    assert ours[:5].any() == (size[0] > size[1])


def test_erased_pixels_are_noise_and_others_stay():
    images = jnp.full((1500, 16, 16, 3), 100.0)
    call = jax.jit(lambda key, x: erase(key, x, 0.25))
    out = np.asarray(call(jax.random.key(0), images))
    gone = (out != 100).all(-1)
    np.testing.assert_array_equal(gone, (out != 100).any(-1))
    assert abs(gone.any((1, 2)).mean() - 0.25) < 0.04
    noise = out[gone]
    assert abs(noise.mean()) < 0.02
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.03)
    shares = gone.mean((1, 2))[gone.any((1, 2))]
    assert 0.015 < shares.min() < 0.06
    assert 0.28 < shares.max() < 0.36
    assert abs(shares.mean() - 0.17) < 0.03
    assert (np.asarray(call(jax.random.key(1), images)) != out).any()
