"""Settings that no tensor shows: read from files beside the weights, or asked for, or refused."""

import json
import re

import helpers
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mimjax
from mimjax.errors import ConfigError, RunError
from mimjax.inference import published, weights
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT, sincos_table
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD, normalize
from mimjax.programs import convert
from mimjax.torch_io.read import beside, load

SIZE = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "image_size": SIZE, "patch_size": 2}


def draw(tree):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), tree)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """MAE files, of the encoder and with a decoder that always answers gray, in empty folders."""
    encoder = ViT(width=32, depth=1, heads=4, patch=2, image_size=(SIZE, SIZE))
    decoder = MAEDecoder(width=16, depth=1, heads=4, out=12, grid=(4, 4))
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, SIZE, SIZE, 3)))["params"]
    ids = np.arange(16)[None]
    shapes = jax.eval_shape(
        decoder.init, jax.random.key(0), np.zeros((1, 5, 32)), ids[:, :4], ids[:, 4:]
    )["params"]
    params = draw({"encoder": like, "decoder": shapes})
    params["decoder"]["head"] = jax.tree.map(np.zeros_like, params["decoder"]["head"])
    state = load.to_torch(params, "mae")
    table = lambda width: np.pad(sincos_table((4, 4), width, "xy"), ((1, 0), (0, 0)))[None]
    folder = tmp_path_factory.mktemp("mae")
    state |= {"pos_embed": table(32), "decoder_pos_embed": table(16)}
    save_file(state, folder / "full.safetensors")
    alone = load.to_torch({"encoder": params["encoder"]}, "mae") | {"pos_embed": table(32)}
    save_file(alone, folder / "encoder.safetensors")
    return folder


def copy(files, name, folder, **settings):
    """A file with a `config.json` beside it."""
    state = load_file(files / name)
    save_file(state | settings.pop("more", {}), folder / name)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder / name


def test_pictures_of_a_decoder_need_to_know_its_pixels(files, tmp_path):
    """A gray answer is shown as gray, not as the true mean of each hidden patch."""
    full, given = files / "full.safetensors", {"heads": 4, "decoder_heads": 4}
    model = mimjax.load(full, **given)
    assert np.isfinite(model.encode(IMAGES)).all()
    with pytest.raises(ConfigError, match=r"pixels as they are or normalized .* pixel_norm='none'"):
        model.reconstruct(IMAGES)
    mask = np.ones((2, 16), bool)
    mask[:, :4] = False
    gray = 255 * np.array(IMAGENET_MEAN)

    def hidden(model):
        shown = model.reconstruct(IMAGES, mask=mask).columns["reconstruction"]
        factor = shown.shape[1] // SIZE
        return shown[:, ::factor, ::factor][:, 2:]

    assert np.abs(hidden(mimjax.load(full, **given, pixel_norm="none")) - gray).max() <= 1
    assert np.abs(hidden(mimjax.load(full, **given, pixel_norm="patch")) - gray).max() > 20
    told = copy(files, "full.safetensors", tmp_path, norm_pix_loss=False, num_attention_heads=4)
    assert np.abs(hidden(mimjax.load(told, decoder_heads=4)) - gray).max() <= 1
    assert any("config.json: heads=4, norm_pix=False" in s for s in mimjax.load(told, 4, 4).report)
    with pytest.raises(
        ConfigError, match=r"pixel_norm: 'patch'; allowed: 'none', as .*config.json"
    ):
        mimjax.load(told, 4, 4, pixel_norm="patch")
    with pytest.raises(ConfigError, match=r"pixel_norm: 'none', but .* holds no decoder"):
        mimjax.load(files / "encoder.safetensors", 4, pixel_norm="none")
    with pytest.raises(ConfigError, match=r"heads: 8; allowed: 4, as .*config.json has"):
        mimjax.load(told, 8, 4)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "pixels normalized per patch as the config says .*; the file does not tell"),
        pytest.param(True, "", marks=pytest.mark.gate),
        (
            False,
            "WARNING: pixels normalized per patch as .* norm_pix_loss=False: its decoder|"
            r"from .*config.json: method.pixel_target.norm=none \(config: patch\)",
        ),
    ],
)
def test_the_config_s_pixels_are_said_where_a_decoder_is_taken_over(told, words, files, tmp_path):
    """`mimjax convert` and a run that begins with the file take its pixels over and say so."""
    full, facts = "full.safetensors", {"num_attention_heads": 4}
    path = str(
        copy(files, full, tmp_path, **facts | ({} if told is None else {"norm_pix_loss": told}))
    )
    c = helpers.config_of("--config=configs/mae.py:demo")
    c.unlock().method.encoder.update({"depth": 1, "heads": 4})
    c.method.pixel_target.norm = "patch"
    choice = published.Choice(heads=4, decoder_heads=4)
    said = {"convert": convert.convert(path, c, str(tmp_path / "run"), "auto", choice)}
    if told is False:
        made = json.loads((tmp_path / "run" / "config.json").read_text())
        assert made["method"]["pixel_target"]["norm"] == "none"
    imported = published.fit(c, published.open_file(path, "auto", "--model")[0], None, choice)
    like = jax.eval_shape(imported.task.init, jax.random.key(0))[0]
    said["init_from"] = []
    weights.read_params(path, like, "init_from", said["init_from"].append, c=imported.config)
    for lines in said.values():
        found = [line for line in lines if "method.pixel_target.norm=" in line]
        assert len(found) == bool(words), lines
        assert not words or re.match(words, found[0])
    alone = str(files / "encoder.safetensors")
    lines = convert.convert(alone, c, str(tmp_path / "alone"), "auto", choice)
    assert not any("pixels" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'; allowed: gelu"),
        ({"model_args": {"act_layer": "gelu_tanh"}}, "activation 'gelu_tanh'"),
        ({"layer_norm_eps": 1e-3}, "epsilon of norms 0.001; allowed: at most 1e-05"),
        ({"layer_norm_eps": float("nan")}, "config.json: eps: nan; allowed: numbers above 0"),
        ({"num_attention_heads": 0}, "config.json: heads: 0; allowed: numbers above 0"),
        # the config of another network
        ({"hidden_size": 64}, "config.json: width 64, but the tensors of .* have 32"),
        ({"num_hidden_layers": 2}, "config.json: depth 2, but the tensors of .* have 1"),
        ({"patch_size": 4}, "config.json: patch 4, but the tensors of .* have 2"),
        ({"num_channels": 1}, "config.json: channels 1, but the tensors of .* have 3"),
        ({"qkv_bias": False}, "config.json: biases False, but the tensors of .* have True"),
        ({"more": {"norm_pre.weight": np.ones(32, np.float32)}}, "no place for: norm_pre.weight"),
        ({"more": {"reg_token": np.ones((1, 4, 32), np.float32)}}, "no place for: reg_token"),
        (
            {"more": {"norm.bias": np.full(32, np.nan, np.float32)}},
            "norm.bias holds numbers that are not finite",
        ),
    ],
)
def test_another_function_is_refused(settings, match, files, tmp_path):
    path = copy(files, "encoder.safetensors", tmp_path, **settings)
    with pytest.raises(ConfigError, match=match) as error:
        mimjax.load(path, heads=4)
    assert "\n" not in str(error.value)


def test_statistics_are_those_beside_the_file(files, tmp_path):
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4)
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    assert mimjax.load(path).statistics == ((0.5,) * 3, (0.25,) * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts | {"do_normalize": False}))
    assert mimjax.load(path).statistics == ((0.0,) * 3, (1.0,) * 3)
    (tmp_path / "preprocessor_config.json").unlink()
    pretrained = {"pretrained_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(pretrained))
    assert mimjax.load(path, heads=4).statistics == ((0.4,) * 3, (0.2,) * 3)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{")
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read \(Expecting .*or none"):
            mimjax.load(path, heads=4)
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"std: None with mean \(0.5, 0.5, 0.5\); allowed: both"):
        mimjax.load(path, heads=4, mean=[0.5] * 3)
    assert beside.read(str(path)) == beside.Beside()


HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        (HALF | {"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),  # one number for all channels
        (HALF | {"rescale_factor": 1 / 127.5}, 0.25, 0.125),
        (HALF | {"image_mean": [102] * 3, "image_std": [51] * 3, "do_rescale": False}, 0.4, 0.2),
        ({"do_normalize": False, "do_rescale": False}, 0, 1 / 255),
        ({"image_mean": [0.5] * 3}, None, None),
        ({"rescale_factor": 1 / 127.5}, None, None),
        (HALF | {"image_mean": "x"}, None, None),
    ],
)
def test_pixels_are_scaled_as_a_processor_says(processor, mean, std, files, tmp_path):
    """Transformers compute (x * rescale_factor - mean) / std; incomplete settings are refused."""
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    if mean is None:
        with pytest.raises(ConfigError, match="allowed: numbers for image_mean and image_std"):
            mimjax.load(path)
        return
    found = np.asarray(mimjax.load(path).statistics)
    np.testing.assert_allclose(found, [[mean] * 3, [std] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "view", "line"),
    [
        (
            "preprocessor_config.json",
            HALF
            | {"resample": 2, "do_center_crop": True}
            | {"size": {"shortest_edge": 10}, "crop_size": {"height": 8, "width": 8}},
            ("bilinear", 0.8),
            "resample=bilinear, crop=0.8",
        ),
        (
            "preprocessor_config.json",
            HALF | {"resample": 0, "size": {"height": 8, "width": 8}},
            ("bicubic", 1.0),
            "resample as elsewhere here; .* has resample=nearest",
        ),
        (
            "config.json",
            {"pretrained_cfg": {"interpolation": "bilinear", "crop_pct": 0.9}},
            ("bilinear", 0.9),
            "from .*config.json: resample=bilinear, crop=0.9",
        ),
    ],
)
def test_images_are_resized_and_cropped_as_said(name, settings, view, line, files, tmp_path):
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4)
    (tmp_path / name).write_text(json.dumps({"num_heads": 4} | settings))
    model = mimjax.load(path, heads=4)
    assert (model.view.resample, model.reader.augment.eval_crop) == view
    assert any(re.search(line, text) for text in model.report), model.report


def test_the_caller_s_statistics_are_said_to_be_taken(files, tmp_path):
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF))
    model = mimjax.load(path, mean=[0.4] * 3, std=[0.2] * 3)
    assert model.statistics == ((0.4,) * 3, (0.2,) * 3)
    assert not any("from" in s and "mean=" in s for s in model.report)
    assert any("mean, std as elsewhere here; " in s for s in model.report)


def test_convert_takes_over_the_statistics_beside_a_file(files, tmp_path):
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | {"resample": 2}))
    c = helpers.config_of("--config=configs/mae.py:demo")
    c.unlock().method.encoder.update({"depth": 1, "heads": 4})
    lines = convert.convert(str(path), c, str(tmp_path / "run"), "auto", published.Choice(heads=4))
    made = json.loads((tmp_path / "run" / "config.json").read_text())["method"]
    assert (made["mean"], made["std"]) == ([0.5] * 3, [0.25] * 3)
    found = [s for s in lines if "method.mean=(0.5, 0.5, 0.5) (config: " in s]
    assert "preprocessor_config.json" in found[0], lines


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"head.weight": np.ones((5, 16), np.float32)}, r"head.weight: shape \[5, 16\], and the"),
        ({"head.bias": None}, "head.weight: no bias beside it"),
    ],
)
def test_a_head_of_another_network_is_not_applied(change, match, files, tmp_path):
    head = {"head.weight": np.ones((5, 32), np.float32), "head.bias": np.ones(5, np.float32)}
    more = {k: v for k, v in (head | change).items() if v is not None}
    model = mimjax.load(copy(files, "encoder.safetensors", tmp_path, num_heads=4, more=more))
    assert np.isfinite(model.encode(IMAGES)).all()
    assert any("is not read" in s for s in model.report)
    with pytest.raises(ConfigError, match=f"classify: {match}"):
        model.classify(IMAGES)


def test_heads_pool_as_their_file_says(files, tmp_path):
    """timm's: the class token, the mean of normed patches, a norm behind the mean; or refused."""
    rng = np.random.default_rng(2)
    head = {"head.weight": rng.normal(size=(5, 32)).astype(np.float32)}
    head["head.bias"] = rng.normal(size=5).astype(np.float32)
    linear = lambda x: x @ head["head.weight"].T + head["head.bias"]
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4, more=head)
    unsaid = mimjax.load(path)
    tokens = unsaid.encode(IMAGES, pool="all")
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(ConfigError, match=r"classify: .* says how its head pools; .*head_pool="):
        unsaid.classify(IMAGES)
    model = mimjax.load(path, head_pool="token")
    near(model.classify(IMAGES), linear(tokens[:, 0]))
    assert "its head, which reads the first token after the norm" in model.report[0]
    assert not any("pool=" in line for line in model.report)  # the file did not say it
    near(mimjax.load(path, head_pool="avg").classify(IMAGES), linear(tokens[:, 1:].mean(1)))
    say = lambda **x: (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4} | x))
    say(global_pool="avg", model_args={"fc_norm": False})
    near(mimjax.load(path).classify(IMAGES), linear(tokens[:, 1:].mean(1)))
    with pytest.raises(ConfigError, match=r"head_pool: 'token', but .*config.json says 'avg'"):
        mimjax.load(path, head_pool="token")
    with pytest.raises(ConfigError, match="head_pool: 'mean'; allowed: token, avg, or None"):
        mimjax.load(path, head_pool="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"head_pool: 'avg', but .* no timm file with a class"):
        mimjax.load(files / "encoder.safetensors", heads=4, head_pool="avg")
    for pool in ("map", "avgmax"):
        say(global_pool=pool)
        refused = mimjax.load(path)
        near(refused.encode(IMAGES, pool="all"), tokens)
        with pytest.raises(ConfigError, match=f"classify: .*config.json: it pools by '{pool}'"):
            refused.classify(IMAGES)
    norm = {f"fc_norm.{k}": np.ones(32, np.float32) for k in ("weight", "bias")}
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4, more=head | norm)
    with pytest.raises(ConfigError, match=r"classify: fc_norm\.weight: a norm of its own behind"):
        mimjax.load(path).classify(IMAGES)


NAMES = [*"abcdefghijkl"]  # 12, so that "10" stands before "2" as text
TEXT = dict(sorted((str(n), name) for n, name in enumerate(NAMES)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"id2label": TEXT}, "class names from .*config.json: a, b, "),  # transformers
        ({"label_names": NAMES}, "class names from .*config.json: a, b, "),  # timm
        ({"pretrained_cfg": {"label_names": TEXT}}, "class names from .*config.json: a, b, "),
        ({"id2label": {str(n): f"LABEL_{n}" for n in range(12)}}, ""),
        ({"id2label": {"one": "a"}}, ""),
        ({"label_names": NAMES[:2]}, "not taken: it names 2 classes, 0 to 1, and the head has 12"),
        ({"label_names": {"1": "b"}}, "not taken: it names 1 classes, 1 to 1, and the head has 12"),
        ({}, ""),
    ],
)
def test_classes_have_their_names(settings, said, files, tmp_path):
    """Names come in the order of the head's outputs; those of another head are not taken."""
    rng = np.random.default_rng(2)
    head = {"head.weight": rng.normal(size=(12, 32)).astype(np.float32)}
    head["head.bias"] = rng.normal(size=12).astype(np.float32)
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4, more=head, **settings)
    model = mimjax.load(path, head_pool="token")
    named = bool(said) and not said.startswith("not")
    assert model.class_names == (tuple(NAMES) if named else None)
    assert any(re.search(said, line) for line in model.report) if said else True
    assert said or not any("class names" in line for line in model.report)
    if settings not in ({"id2label": TEXT}, {}):
        return
    logits = model.classify(IMAGES).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, found in zip(shares, model.classify(IMAGES, top=3), strict=True):
        order = np.argsort(-row)[:3]
        assert [name for name, _ in found] == [NAMES[i] if named else str(i) for i in order]
        np.testing.assert_allclose([p for _, p in found], row[order], rtol=1e-5)
    whole = model.classify(IMAGES[0], top=12)
    assert sum(p for _, p in whole[0]) == pytest.approx(1)
    for wrong in (0, 13, True, 2.0):
        with pytest.raises(ConfigError, match=rf"^top: {wrong}; allowed: 1 to 12, or None$"):
            model.classify(IMAGES, top=wrong)


def test_logits_that_are_not_finite_name_no_class(files, tmp_path, monkeypatch):
    head = {"head.weight": np.ones((2, 32), np.float32), "head.bias": np.ones(2, np.float32)}
    path = copy(files, "encoder.safetensors", tmp_path, num_heads=4, more=head)
    model = mimjax.load(path, head_pool="token")
    monkeypatch.setattr(model, "_logits", lambda params, x: np.full((len(x), 2), np.nan))
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(RunError, match="the logits of image 0 are not finite"),
    ):
        model.classify(IMAGES, top=1)


def test_the_norm_of_beit_s_pooler_is_none_of_tokens(tmp_path):
    """Transformers' BeitModel: features are its pooler's, tokens after a norm there are none."""
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        **SIZES, layer_norm_eps=1e-6, use_mean_pooling=True, use_relative_position_bias=True
    )
    net = transformers.BeitModel(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        x = np.asarray(normalize(IMAGES, IMAGENET_MEAN, IMAGENET_STD)).transpose(0, 3, 1, 2)
        out = net(torch.tensor(x))
    net.save_pretrained(tmp_path)
    told = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(told.replace('heads": 4', 'heads": 8'))
    with pytest.raises(ConfigError, match=r"config.json: heads 8, but the tensors of .* have 4"):
        mimjax.load(tmp_path)
    (tmp_path / "config.json").write_text(told)
    model = mimjax.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(model.encode(IMAGES), out.pooler_output.numpy(), atol=1e-4)
    last = model.encode(IMAGES, pool="all", layer=-1)
    np.testing.assert_allclose(last, out.last_hidden_state.numpy(), atol=1e-4)
    with pytest.raises(ConfigError, match="has no norm for tokens"):
        model.encode(IMAGES, pool="all")
