"""Settings of version 3, whose methods had options, as compositions of parts."""

import dataclasses
import functools
import json

import helpers
import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.losses import MSE, Cosine, CrossEntropy, SmoothL1
from mimjax.masking.base import Random, Regular
from mimjax.masking.block import Block, BlockAtMost, BlockRandom
from mimjax.masking.salient import Salient
from mimjax.masking.views import Complementary
from mimjax.methods.bootmae import Lambda, Momentum
from mimjax.methods.mrmae import DirectionMSE
from mimjax.methods.parts import Average
from mimjax.models.vit import ViT
from mimjax.schedules import Constant
from mimjax.storage import config_version, settings
from mimjax.storage.config_from_3 import moved_rules
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.joint import Joint
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import PCA, Pixels
from mimjax.task import Clock

OLD = json.loads((helpers.ROOT / "tests/golden/configs_version_3.json").read_text())


@functools.cache
def published(name):
    """The method of a published config of today."""
    return schema.make_task(helpers.CONFIGS[name].get_config(), Clock(1, 1))


def from_3(name, changed, path=None):
    """The method of a published config of version 3 in which settings were changed."""
    old = json.loads(json.dumps(OLD[name]))
    for key, value in changed.items():
        node, (*parents, last) = old["method"], key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    old["teacher"]["path"] = path
    new = config_version.upgrade(old | {config_version.KEY: 3}, "config.json")
    assert "teacher" not in new
    # every setting stands there, so that nothing seems to have changed since
    flat, today = (set(settings.flatten(x)) for x in (new, shown(new)))
    assert flat == today
    return schema.make_task(ConfigDict(new), Clock(1, 1))


def shown(new):
    """Settings as they are written after they were read."""
    task = schema.build(schema.find_class(new["task"], "task"), new["method"], "method")
    return new | {"method": json.loads(settings.to_json(schema.section(task)))}


def term(name, field, **changed):
    """A term of a published method with other settings."""
    return {field: dataclasses.replace(getattr(published(name), field), **changed)}


def network(name, field, **changed):
    return {field: getattr(published(name), field).clone(**changed)}


def lagging(decay):
    return {
        "align_target": OwnFeatures("average", masked_share=1.0, noise=True),
        "average": Average(decay=Constant(decay), takes="old"),
    }


PIXELS_3 = {"type": "mimjax.targets.pixels:Pixels", "norm": "mae"}
CLIP_3 = OLD["caev2"]["method"]["target"]
DINO_3 = {
    "type": "mimjax.targets.dino:DINO",
    "network": OLD["mae"]["method"]["encoder"] | {"pos_embed": "learned", "depth": 2},
    "feature": "pre_norm",
    "size": None,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
VIT_3 = OLD["mae"]["method"]["encoder"]
ENCODER_3 = {
    "type": "mimjax.targets.encoder:EncoderFeatures",
    "network": VIT_3 | {"depth": 2},
    "size": None,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
MASKS = {  # kinds of masks with the settings that each reads
    "random": Random(0.6, weights="neighbors"),
    "grid": Regular(weights="neighbors"),
    "block": Block(0.6, 8, 60, 0.5, weights="neighbors"),
    "block_random": BlockRandom(0.6, 8, 60, 0.5, "neighbors", 100, 2),
}
VISIBLE, MASKED, ALL = 98, 98, 197  # patches of 196, and all tokens, of CAE v2
VARIANTS = [
    ("mae", {"pixel_norm": "none"}, {"pixel_target": Pixels("none")}),
    ("mae", {"target": "pca", "pca_components": 12}, {"pixel_target": PCA(12)}),
    (
        "mae",
        {"target": "features"},
        {
            "pixel_target": EncoderFeatures(
                layer=-1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), path="/t"
            ),
            **term("mae", "pixel", normalize="target"),
        },
    ),
    (
        "mae",
        {"masking.kind": "random", "masking.ratio": 0.15, "masking.rounding": "cae"},
        {"masking": Random(0.15, rounding="cae")},
    ),
    ("mae", {"masking.kind": "grid"}, {"masking": Regular()}),
    (
        "mae",
        {"encoder.use_mask_token": True, "decoder.depth": 3},
        network("mae", "encoder", use_mask_token=True) | network("mae", "decoder", depth=3),
    ),
    ("mcmae", {"fast": True}, {"masking": Complementary(0.75)}),
    (
        "beit",
        {"masking.kind": "block_at_most", "masking.max_block": 75},
        {"masking": BlockAtMost(0.38, max_block=75)},
    ),
    (
        "beit",
        {"target": PIXELS_3},
        {"code_target": Pixels("patch"), **term("beit", "code", loss=MSE())},
    ),
    (
        "beit",
        {"target": ENCODER_3, "distance": "smooth_l1"},
        {
            "code_target": EncoderFeatures(
                ViT(depth=2), mean=(0.5,) * 3, std=(0.5,) * 3, path="/t"
            ),
            **term("beit", "code", loss=SmoothL1(1.0)),
        },
    ),
    ("bootmae", {"weighted_mask": False}, {"masking": BlockRandom(weights="none")}),
    ("bootmae", {"divide_by_weight": True}, {"masking": BlockRandom(weights="neighbors_mean")}),
    (
        "bootmae",
        {"pixel_layer": 3, "feature_decoder.inject": False, "feature_decoder.heads": 6},
        network("bootmae", "pixel_decoder", inject=3)
        | network("bootmae", "feature_decoder", inject=None, heads=6),
    ),
    (
        "bootmae",
        {"pixel_decoder.width": None, "feature_weight": 0.5, "lambda_ramp": 0.0},
        network("bootmae", "pixel_decoder", width=512)
        | term("bootmae", "feature", weight=0.5, schedule=Lambda(0.0)),
    ),
    (
        "bootmae",
        {"teacher_fraction": 0.5, "feature_norm": "none", "pixel_norm": "mae"},
        {
            "feature_target": OwnFeatures("average", (-1,), masked_share=98 / 147),
            "pixel_target": Pixels("patch"),
            **term("bootmae", "feature", normalize="none"),
        },
    ),
    (
        "bootmae",
        {"ema_start": 0.9, "ema_mid": 0.95, "ema_end": 0.99, "ema_per_step": True},
        {"average": Average(decay=Momentum(0.9, 0.95, 0.99, True))},
    ),
    (
        "cae",
        {"align_target": "stale", "align_weight": 1.0},
        lagging(0.0) | term("cae", "align", weight=1.0),
    ),
    ("cae", {"align_target": "ema", "ema_decay": 0.9}, lagging(0.9)),
    (
        "cae",
        {"regressor.width": 384, "decoder.depth": 0},
        network("cae", "encoder", project=384) | network("cae", "decoder", depth=0),
    ),
    (
        "cae",
        {"regressor.width": 768, "target": CLIP_3, "distance": "cosine"},
        {"code_target": CLIP(path="/t"), **term("cae", "code", loss=Cosine())},
    ),
    (
        "caev2",
        {"loss_form": "paper", "visible_weight": 0.5, "head_order": "fc_ln"},
        term("caev2", "token", at="visible", weight=0.5)
        | term("caev2", "masked", weight=1.0)
        | network("caev2", "head", order="fc_ln"),
    ),
    (
        "caev2",
        {"masked_weight": 0.0, "visible_weight": 2.0},
        {"regressor": None, **term("caev2", "token", at="cls+visible", weight=2.0)},
    ),
    (
        "caev2",
        {"regressor.depth": 0, "loss_form": "paper"},
        {"regressor": None, **term("caev2", "token", at="visible")},
    ),
    ("caev2", {"visible_weight": 0.0}, term("caev2", "token", at="masked")),
    (
        "caev2",
        {"visible_weight": 2.0, "masked_weight": 2.0, "distance": "mse"},
        term("caev2", "token", weight=2.0, loss=MSE()) | term("caev2", "masked", loss=MSE()),
    ),
    (
        "caev2",
        {"visible_weight": 0.5, "masked_weight": 2.0},
        term("caev2", "token", at="cls+visible", weight=0.5 * (1 + VISIBLE) / ALL)
        | term("caev2", "masked", weight=2.0 * MASKED / ALL),
    ),
    (
        "mrmae",
        {"select": "sample", "target_norm": "layernorm", "mimic_weight": 0.25},
        {
            "masking": Salient(0.75, select="sample"),
            **term("mrmae", "mimic", normalize="target", weight=0.25),
        },
    ),
    (
        "mrmae",
        {"select": "random", "target_norm": "l2", "pixel_weight": 0.0},
        {
            "masking": Random(0.75),
            **term("mrmae", "mimic", loss=DirectionMSE()),
            **term("mrmae", "pixel", weight=0.0),
        },
    ),
    (
        "mrmae",
        {"mimic_at": "decoder"},
        {
            "pixel_target": Joint(Pixels("patch"), CLIP(project=False, path="/t")),
            **term("mrmae", "pixel", weight=1.0),
            **term("mrmae", "mimic", weight=0.0),
        },
    ),
    (
        "mrmae",
        {"encoder": {"type": "mimjax.models.vit:ViT"} | VIT_3},
        {"encoder": ViT()},
    ),
]
VARIANTS += [
    (
        "bootmae",
        {"masking.kind": kind, "masking.ratio": 0.75 if kind == "grid" else 0.6}
        | {"masking.min_block": 8, "masking.max_block": 60, "masking.min_aspect": 0.5}
        | {"masking.num_block": 100, "masking.roll_max": 2},
        {"masking": masking},
    )
    for kind, masking in MASKS.items()
]


@pytest.mark.parametrize(
    ("name", "changed", "expected"), VARIANTS, ids=[f"{v[0]}-{'-'.join(v[1])}" for v in VARIANTS]
)
def test_options_of_version_3_become_parts(name, changed, expected):
    """All seven methods; every part that is not named is as in the published config."""
    known = published(name)
    owners = {"beit": "code_target", "cae": "code_target", "caev2": "teacher_target"}
    owner = owners.get(name, "mimic_target" if name == "mrmae" else None)
    if owner and owner not in expected:
        expected = expected | {owner: dataclasses.replace(getattr(known, owner), path="/t")}
    assert from_3(name, changed, path="/t") == dataclasses.replace(known, **expected)


def test_paths_of_version_3_go_to_their_targets():
    """Paths go to targets in the order of the parts; pixels own no network."""
    joint = {"type": "mimjax.targets.joint:Joint", "first": CLIP_3, "second": DINO_3}
    found = from_3("mrmae", {"target": joint}, path="/a,/b").mimic_target
    dino = DINO(ViT(pos_embed="learned", depth=2), "pre_norm", path="/b")
    assert found == Joint(CLIP(path="/a"), dino)
    inner = joint | {"first": joint, "second": PIXELS_3}
    found = from_3("mrmae", {"target": inner}, path="/a,/b").mimic_target
    assert found == Joint(Joint(CLIP(path="/a"), dino), Pixels("patch"))
    found = from_3("mrmae", {"target": joint}, path="random").mimic_target
    assert (found.first.path, found.second.path) == ("random", "random")
    # one file, whose name has a comma
    assert from_3("caev2", {}, path="/a,/b").teacher_target.path == "/a,/b"
    with pytest.raises(ConfigError, match=r"teacher.path: '/a,/b,/c' .* 3 files for 2 networks"):
        from_3("mrmae", {"target": joint}, path="/a,/b,/c")


def test_codes_of_a_user_s_target(tmp_path):
    """The target's class says what it gives; one that cannot be read keeps its section."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom mimjax.targets.dalle import DallE\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(DallE):\n    pass\n"
    )
    dalle = OLD["beit"]["method"]["target"]
    task = from_3("beit", {"target": dalle | {"type": f"{file}:Mine", "digest": ""}}, path="/t")
    assert (type(task.code_target).__name__, task.code_target.path) == ("Mine", "/t")
    assert task.code.loss == CrossEntropy()
    gone = dict(OLD["beit"], method=OLD["beit"]["method"] | {"target": {"type": "no.py:Mine"}})
    new = config_version.upgrade(gone | {config_version.KEY: 3}, "config.json")
    assert new["method"]["code_target"] == {"type": "no.py:Mine"}


@pytest.mark.parametrize(
    ("name", "changed", "line"),
    [
        ("mrmae", {"mimic_at": "decoder", "mimic_weight": 0.25}, "pixel_weight 0.5 of 768 numbers"),
        ("mrmae", {"mimic_at": "decoder", "target_norm": "l2"}, "and target_norm l2; allowed: "),
        ("cae", {"target": PIXELS_3 | {"mean": [0.5] * 3}}, r"method.target.mean: \[0.5, 0.5, 0.5"),
    ],
)
def test_what_no_composition_does_is_said(name, changed, line):
    with pytest.raises(ConfigError, match=line) as found:
        from_3(name, changed)
    assert "\n" not in str(found.value)


def test_sections_are_apart():
    """One can be changed in a config without another, and the old settings stay as they were."""
    before = json.dumps(OLD["mrmae"])
    c = ConfigDict(config_version.upgrade(OLD["mrmae"] | {config_version.KEY: 3}, "config.json"))
    c.method.pixel.schedule.value = 0.5
    assert c.method.mimic.schedule.value == 1.0
    assert json.dumps(OLD["mrmae"]) == before


def test_a_network_of_a_user_keeps_its_settings():
    mine = {"type": "mine.py:Mine", "digest": "0", "size": 3}
    old = dict(OLD["cae"], method=OLD["cae"]["method"] | {"decoder": mine, "encoder": mine})
    old["method"]["regressor"] = old["method"]["regressor"] | {"width": None}
    new = config_version.upgrade(old | {config_version.KEY: 3}, "c")["method"]
    assert (new["decoder"], new["encoder"]) == (mine, mine)


@pytest.mark.parametrize("name", ["pixel_norm", "masking"])
def test_settings_that_are_damaged_are_one_line(name):
    old = dict(OLD["mae"], method={k: v for k, v in OLD["mae"]["method"].items() if k != name})
    with pytest.raises(ConfigError, match=f"method: '{name}' in the settings of an older version"):
        config_version.upgrade(old | {config_version.KEY: 3}, "c")


def test_a_user_s_task_keeps_its_settings():
    old = {"task": "mine.py:Mine", "method": {"a": 1}, "teacher": {"path": None}}
    assert config_version.upgrade(old | {config_version.KEY: 3}, "c") == {
        "task": "mine.py:Mine",
        "method": {"a": 1},
        "compile_cache_dir": "auto",
        "attention": "auto",
        "stream": "compute",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([[".*/bias", 0.0], [".*", 1.0]], None),
        ([["encoder/.*", 0.5], ["head/.*", 1.0], [".*", 0.5]], None),
        (
            [["projection/.*", 0.5], [".*", 1.0]],
            [["encoder/projection/.*", 0.5], [".*", 1.0]],
        ),
        (
            [["encoder/.*", 0.5], [".*", 1.0]],
            [
                *(
                    [f"encoder/projection/{name}", 1.0]
                    for name in ("linear/kernel", "linear/bias", "norm/scale", "norm/bias")
                ),
                ["encoder/.*", 0.5],
                [".*", 1.0],
            ],
        ),
    ],
)
def test_rules_for_the_projection_keep_their_meaning(old, new):
    assert moved_rules(old) == (old if new is None else new)


def test_rules_are_moved_where_there_is_a_projection():
    old = dict(OLD["cae"], method=json.loads(json.dumps(OLD["cae"]["method"])))
    old["optimizer"] = old["optimizer"] | {"decay": [["projection/.*", 0.5], [".*", 1.0]]}
    up = lambda: config_version.upgrade(old | {config_version.KEY: 3}, "c")["optimizer"]["decay"]
    assert up()[0] == ["projection/.*", 0.5]
    old["method"]["regressor"]["width"] = 384
    assert up()[0] == ["encoder/projection/.*", 0.5]
