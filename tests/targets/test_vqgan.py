"""VQGAN as a target: both quantizers, pictures of any shape, sampling, files that do not fit."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.models.vit import ViT
from mimjax.models.vqgan import VQGAN_SIZES, VQGANModel
from mimjax.patches import HALF
from mimjax.rules import paths
from mimjax.targets.base import Colors
from mimjax.targets.vqgan import VQGAN
from mimjax.torch_io.read import detect, load

SMALL = {
    "ch": 32,
    "ch_mult": (1, 1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resolution": 32,
}
CODES = {"z_channels": 8, "embed_dim": 8, "n_embed": 24}
ENCODER = ViT(patch=16, image_size=(32, 96))  # grid 2x6
COLORS = Colors(jnp.zeros((1, 32, 96, 3)), HALF, HALF)  # which pictures of codes do not read


def make(kind, **options):
    """A small target whose every parameter is random."""
    return VQGAN(VQGANModel(**SMALL, **CODES, kind=kind), **options), weights(kind)


@functools.cache
def weights(kind):
    target = VQGAN(VQGANModel(**SMALL, **CODES, kind=kind))
    shapes = jax.eval_shape(lambda key: target.init_frozen(key, ENCODER), jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32)
    return jax.tree.map(draw, shapes)


@functools.cache
def compiled(target):
    """Vectors, codes and pictures as programs, since they have many small operations."""
    return (
        jax.jit(lambda f, images: target.encode(f, images, ENCODER)),
        jax.jit(target.read),
        jax.jit(lambda f, codes: target.decode(f, codes, ENCODER, COLORS)),
    )


def check(target):
    """What a method does with its target when it is made."""
    values.check(target, "method.code_target")
    target.check("method.code_target", ENCODER)


def test_view():
    target, _ = make("gumbel")
    view = target.views(ENCODER)["image_8x24_bicubic"]
    assert view.size == (8, 24)  # four pixels per code
    assert view.resample == "bicubic"
    published = VQGAN()
    assert published.views(ViT())["image_112x112_bicubic"].size == (112, 112)
    assert published.width(ViT()) == 8192
    with pytest.raises(ConfigError, match=r"method\.code_target\.size: .* allowed: 112x112"):
        VQGAN(size=(256, 256)).check("method.code_target", ViT())
    VQGAN(size=(112, 112)).check("method.code_target", ViT())
    f16 = VQGAN(VQGANModel(**VQGAN_SIZES["vq_f16_1024"]))
    assert f16.views(ViT()) == {}  # the student's own view


@pytest.mark.parametrize("kind", ["gumbel", helpers.gate("vq")])
def test_codes_and_pictures_of_a_rectangle(kind):
    target, frozen = make(kind)
    encode, read, decode = compiled(target)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 8, 24, 3), np.uint8))
    batch = {"image": jnp.zeros((2, 32, 96, 3), jnp.uint8), "image_8x24_bicubic": images}
    hidden = encode(frozen, target.image(batch, ENCODER))
    assert hidden.shape == (2, 12, 8)
    floats = encode(frozen, np.float32(np.asarray(images) / 127.5 - 1))
    np.testing.assert_allclose(hidden, floats, atol=1e-4)
    codes = np.asarray(read(frozen, hidden))
    h, p = np.asarray(hidden, np.float64), jax.tree.map(np.float64, frozen["vqgan"])
    if kind == "vq":
        ours = ((h[:, :, None] - p["embedding"]) ** 2).sum(-1).argmin(-1)
    else:
        ours = (h @ p["proj"]["kernel"] + p["proj"]["bias"]).argmax(-1)
    np.testing.assert_array_equal(codes, ours)
    assert len(np.unique(codes)) > 3
    ids = np.array([11, 0, 5])  # some tokens alone have the codes that they have among all
    np.testing.assert_array_equal(read(frozen, np.asarray(hidden)[:, ids]), codes[:, ids])
    pictures = np.asarray(decode(frozen, codes))
    assert pictures.shape == (2, 8, 24, 3)
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1
    assert float(pictures.std()) > 0.01


class Torch:
    """The same network written down a second time, in torch and by the file's own keys."""

    def __init__(self, state):
        import torch

        self.f, self.state = torch.nn.functional, {k: torch.tensor(v) for k, v in state.items()}

    def conv(self, x, key, **options):
        return self.f.conv2d(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"], **options)

    def norm(self, x, key):
        return self.f.group_norm(
            x, 32, self.state[f"{key}.weight"], self.state[f"{key}.bias"], 1e-6
        )

    def block(self, x, key):
        h = self.conv(self.f.silu(self.norm(x, f"{key}.norm1")), f"{key}.conv1", padding=1)
        h = self.conv(self.f.silu(self.norm(h, f"{key}.norm2")), f"{key}.conv2", padding=1)
        wider = f"{key}.nin_shortcut.weight" in self.state
        return h + (self.conv(x, f"{key}.nin_shortcut") if wider else x)

    def attn(self, x, key):
        if f"{key}.q.weight" not in self.state:
            return x
        y = self.norm(x, f"{key}.norm")
        q, k, v = (self.conv(y, f"{key}.{p}").flatten(2) for p in "qkv")
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        return x + self.conv((v @ weights.transpose(1, 2)).view(x.shape), f"{key}.proj_out")

    def middle(self, x, half):
        x = self.attn(self.block(x, f"{half}.mid.block_1"), f"{half}.mid.attn_1")
        return self.block(x, f"{half}.mid.block_2")

    def last(self, x, half):
        return self.conv(
            self.f.silu(self.norm(x, f"{half}.norm_out")), f"{half}.conv_out", padding=1
        )

    def encode(self, x):
        x = self.conv(x, "encoder.conv_in", padding=1)
        for i in range(3):
            key = f"encoder.down.{i}"
            x = self.attn(self.block(x, f"{key}.block.0"), f"{key}.attn.0")
            if i < 2:
                x = self.conv(self.f.pad(x, (0, 1, 0, 1)), f"{key}.downsample.conv", stride=2)
        return self.conv(self.last(self.middle(x, "encoder"), "encoder"), "quant_conv")

    def decode(self, z):
        x = self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder")
        for i in (2, 1, 0):
            key = f"decoder.up.{i}"
            for j in range(2):
                x = self.attn(self.block(x, f"{key}.block.{j}"), f"{key}.attn.{j}")
            if i:
                x = self.f.interpolate(x, scale_factor=2.0)
                x = self.conv(x, f"{key}.upsample.conv", padding=1)
        return self.last(x, "decoder")


@pytest.mark.parametrize("kind", [helpers.gate("gumbel"), "vq"])
def test_equals_torch(kind):
    """Vectors and pictures of a rectangle, and the order of the tokens."""
    target, frozen = make(kind)
    encode, read, decode = compiled(target)
    other = Torch(load.to_torch(frozen, "vqgan"))
    images = np.random.default_rng(2).uniform(-1, 1, (2, 3, 8, 24)).astype(np.float32)
    hidden = encode(frozen, images.transpose(0, 2, 3, 1))
    theirs = other.encode(other.state["encoder.conv_in.bias"].new_tensor(images)).flatten(2)
    np.testing.assert_allclose(np.asarray(hidden).transpose(0, 2, 1), theirs, atol=1e-4)
    codes = np.asarray(read(frozen, hidden))
    book = other.state["quantize.embed.weight" if kind == "gumbel" else "quantize.embedding.weight"]
    decoded = other.decode(book[codes.astype(int)].permute(0, 2, 1).reshape(2, 8, 2, 6))
    theirs = ((decoded.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(decode(frozen, codes), theirs, atol=1e-4)


def test_sampling_draws_from_the_softmax():
    target, frozen = make("gumbel", sample=True)
    hidden = np.broadcast_to(np.linspace(-2, 2, 8, dtype=np.float32), (1, 4000, 8))
    read = compiled(target)[1]
    codes = np.asarray(read(frozen, hidden, jax.random.key(0)))
    scores = lambda f, x: target.network.apply({"params": f["vqgan"]}, x, method="scores")
    logits = jax.jit(scores)(frozen, hidden[:, :1])
    expected = np.asarray(jax.nn.softmax(logits[0, 0]))
    seen = np.bincount(codes[0], minlength=24) / 4000
    np.testing.assert_allclose(seen, expected, atol=0.04)
    again = read(frozen, hidden, jax.random.key(1))
    assert np.any(again != codes)
    with pytest.raises(ValueError, match="needs a key"):
        target.read(frozen, jnp.asarray(hidden))


def test_half_precision_keeps_the_choice_in_float32():
    target, frozen = make("gumbel")
    half = VQGAN(target.network.clone(dtype=jnp.bfloat16))

    def run(frozen, images):
        hidden = half.encode(frozen, images, ENCODER)
        scores = half.network.apply({"params": frozen["vqgan"]}, hidden, method="scores")
        return hidden, scores, half.decode(frozen, half.read(frozen, hidden), ENCODER, COLORS)

    out = jax.eval_shape(run, frozen, jax.ShapeDtypeStruct((1, 8, 24, 3), jnp.uint8))
    assert [x.dtype for x in out] == [jnp.bfloat16, jnp.float32, jnp.float32]


# Numbers of keys and parameters of the official classes built with the published configs.
PUBLISHED = {
    "gumbel_f8": (301, {"encoder": 26_345_728, "decoder": 38_316_163, "quant_conv": 65_792}),
    "vq_f16_1024": (343, {"encoder": 29_298_176, "decoder": 42_449_795, "embedding": 1024 * 256}),
    "vq_f16_16384": (343, {"encoder": 29_298_176, "decoder": 42_449_795, "embedding": 16384 * 256}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    keys, counts = PUBLISHED[name]
    target = VQGAN(VQGANModel(**VQGAN_SIZES[name]))
    like = jax.eval_shape(lambda key: target.init_frozen(key, ViT()), jax.random.key(0))
    rows = detect.rows_for("vqgan", paths(like))
    assert len({k for row in rows for k in row.keys}) == keys
    for part, count in counts.items():
        assert sum(x.size for x in jax.tree.leaves(like["vqgan"][part])) == count


def test_files():
    target, frozen = make("gumbel")
    state = load.to_torch(frozen, "vqgan")
    lightning = state | {"loss.discriminator.main.0.weight": np.zeros(3, np.float32)}
    assert detect.detect(lightning) == "vqgan"
    back = load.from_torch(lightning, frozen)
    jax.tree.map(np.testing.assert_array_equal, back, frozen)
    short = {k: v for k, v in state.items() if k != "encoder.down.2.attn.0.q.weight"}
    with pytest.raises(ConfigError, match=r"^f: 1 keys .*: encoder\.down\.2\.attn\.0\.q\.weight$"):
        load.from_torch(short, frozen, where="f")
    for shape in ((24, 8), (25, 8, 1, 1)):
        wrong = state | {"quantize.proj.weight": np.zeros(shape, np.float32)}
        with pytest.raises(ConfigError, match=r"proj\.weight has shape .* needs \[8, 24\]"):
            load.from_torch(wrong, frozen)
    # a network without the file's attention would load and be wrong
    plain = VQGAN(target.network.clone(attn_resolutions=()))
    like = jax.eval_shape(lambda key: plain.init_frozen(key, ENCODER), jax.random.key(0))
    with pytest.raises(ConfigError, match=r"have no place in the .*\.attn\."):
        load.from_torch(state, like)
    with pytest.raises(ConfigError, match=r"missing: quantize\.embedding\.weight; 3 keys"):
        load.from_torch(state, make("vq")[1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "nearest"}, r"kind: 'nearest'; allowed: gumbel, vq"),
        ({"embed_dim": 4}, r"embed_dim: 4, but .* z_channels = 8"),
        ({"ch": 24}, r"ch: gives width 24; allowed: multiples of 32"),
    ],
)
def test_bad_settings(change, text):
    with pytest.raises(ConfigError, match=rf"method\.code_target\.network\.{text}"):
        check(VQGAN(VQGANModel(**(SMALL | CODES | change))))


def test_plain_codes_are_not_sampled():
    with pytest.raises(ConfigError, match=r"method\.code_target\.sample: True"):
        check(make("vq", sample=True)[0])
    check(make("gumbel", sample=True)[0])
