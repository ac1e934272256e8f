"""DALL-E's encoder (two layouts), the "customized" d-VAE and VQ-KD against their official code.

Everything follows from the file's `config`. VQ-KD's own decoder (features of its teacher) is no
part of a target and is not built: `out/decoded` is not compared.
"""

import functools

import jax
import numpy as np

from golden_checks import common
from mimjax import patches
from mimjax.models.dalle import DallEEncoder
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import ViT
from mimjax.targets.dalle import DallE
from mimjax.targets.dvae import DVAE
from mimjax.targets.vqkd import VQKD, CodeHead
from mimjax.torch_io.read import detect, load


def size(c):
    """(height, width) of a file whose config has one number or two."""
    side = c["img_size"]
    return tuple(side) if isinstance(side, list) else (side, side)


def close(name, ours, theirs):
    """Compare to 1e-4, relative to the largest value where that is above 1."""
    common.close(name, ours, theirs, 1e-4 * max(1.0, np.abs(theirs).max()))


def raster(logits):
    """[b v h w] to [b h*w v]."""
    return logits.reshape(*logits.shape[:2], -1).transpose(0, 2, 1)


def read(z, target, student):
    """The file's weights; exporting them gives the same keys and numbers."""
    state = common.arrays(z, "sd")
    like = jax.eval_shape(lambda k: target.init_frozen(k, student), jax.random.key(0))
    frozen = load.from_torch(state, like)
    layout = detect.detect(state)
    for key, value in load.to_torch(frozen, layout).items():
        np.testing.assert_array_equal(value, state[key], key)
    return frozen


def run(target, student, frozen, images):
    """Hidden vectors, codes and codes of a few gathered tokens."""
    encode = jax.jit(functools.partial(target.encode, encoder=student))
    hidden = encode(frozen, images)
    both = lambda f, h: (target.read(f, h), target.read(f, h[:, 1::2]))
    ids, few = map(np.asarray, jax.jit(both)(frozen, hidden))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(few, ids[:, 1::2])
    return hidden, ids


def build_dalle(c):
    return DallE(network=DallEEncoder(c["n_hid"], c["n_blk_per_group"], c["vocab"]))


def dalle(z, meta):
    c, target = meta["config"], build_dalle(meta["config"])
    student = ViT(patch=16, image_size=tuple(2 * s for s in size(c)))  # a patch for each token
    [view] = target.views(student).values()
    assert view.size == size(c)
    assert target.width(student) == c["vocab"]
    frozen = read(z, target, student)
    images = common.nhwc(z["in/images"])
    if "in/images_raw" in z.files:
        check_pixels(z, target)
    hidden, ids = run(target, student, frozen, images)
    logits = target.network.apply({"params": frozen["dalle"]}, hidden, method="logits")
    close("logits", logits, raster(z["out/logits"]))
    np.testing.assert_array_equal(ids, z["out/token_ids"].reshape(len(ids), -1))
    if "out/probs" in z.files:
        close("probs", jax.nn.softmax(logits), raster(z["out/probs"]))


def check_pixels(z, target):
    """map_pixels is our mean and std; unmap_pixels its inverse, clipped to [0, 1]."""
    mean, std = np.asarray(target.mean), np.asarray(target.std)
    raw = common.nhwc(z["in/images_raw"])
    common.close("map", (raw - mean) / std, common.nhwc(z["in/images"]), 1e-6)
    eight = np.round(raw * 255).astype(np.uint8)
    common.close("map", patches.normalize(eight, mean, std), 0.8 * (eight / 255.0) + 0.1, 1e-6)
    if "out/unmap" in z.files:  # of the mapped images
        back = np.clip(common.nhwc(z["in/images"]) * std + mean, 0, 1)
        common.close("unmap", back, common.nhwc(z["out/unmap"]), 1e-6)


def dvae(z, meta):
    c = meta["config"]
    index = 1 + max(int(k.split(".")[1]) for k in common.arrays(z, "sd") if k.startswith("encoder"))
    encoder = DVAEEncoder(
        c["vocab"], c["hidden_dim"], c["num_layers"], c.get("num_resnet_blocks", 2)
    )
    assert index == encoder.num_layers + encoder.num_resblocks + 1
    has_decoder = "sd/codebook.weight" in z.files
    target = DVAE(encoder=encoder, decoder=DVAEDecoder(c["codebook_dim"]), with_decoder=has_decoder)
    assert target.decodes == has_decoder
    patch = encoder.step
    student = ViT(patch=patch, image_size=size(c))
    frozen = read(z, target, student)
    hidden, ids = run(target, student, frozen, common.nhwc(z["in/images"]))
    logits = encoder.apply({"params": frozen["encoder"]}, hidden, method="logits")
    close("logits", logits, raster(z["out/logits"]))
    np.testing.assert_array_equal(ids, z["out/token_ids"].reshape(len(ids), -1))


def build_vqkd(c):
    vit = ViT(
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        patch=c["patch_size"],
        image_size=size(c),
        pos_embed="learned",
        bias="qv",
        init_scheme="beit",
    )
    return VQKD(network=vit, code_dim=c["code_dim"], vocab=c["n_code"])


def vqkd(z, meta):
    c, target = meta["config"], build_vqkd(meta["config"])
    vit = target.network
    assert target.views(vit) == {}  # reads the student's image
    frozen = read(z, target, vit)
    images = (common.nhwc(z["in/images_raw"]) - 0.5) / 0.5
    hidden, ids = run(target, vit, frozen, images)
    close("encoder_patch_tokens", hidden, z["out/encoder_patch_tokens"])
    head = CodeHead(c["code_dim"]).apply({"params": frozen["vqkd"]["head"]}, hidden)
    close("to_quantizer", head, z["out/to_quantizer"])
    np.testing.assert_array_equal(ids, z["out/token_ids"].reshape(len(ids), -1))
