"""Settings against their annotations: misspelt and impossible values, None, plain numbers.

The tables hold one row per wrong value: the config, what is typed, the line of the answer.
"""

import copy
import dataclasses
import functools
import json
import pickle
import typing
from typing import Annotated, Literal

import flax.linen as nn
import helpers
import jax
import pytest
from ml_collections import ConfigDict

from mimjax import plugs, schema, values
from mimjax.data import configured
from mimjax.data.decoding import Decoding
from mimjax.data.sources import Photos, SourceConfig, Synthetic
from mimjax.errors import ConfigError
from mimjax.losses import MSE, Cosine, Loss
from mimjax.masking.base import Masking, Random
from mimjax.masking.block import Block
from mimjax.methods.beit import BEiT
from mimjax.methods.cae import CAE
from mimjax.methods.mae import MAE
from mimjax.methods.parts import Average, Term
from mimjax.models.clip import CLIPVision
from mimjax.models.decoders import InjectedDecoder, MAEDecoder
from mimjax.models.vit import ViT
from mimjax.run import setup
from mimjax.run.sections import Settings, load
from mimjax.schedules import Constant, Linear, Schedule
from mimjax.sharding import make_mesh
from mimjax.storage import config_version, settings
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.own import OwnFeatures
from mimjax.targets.vqgan import VQGAN
from mimjax.task import Clock, EncoderNetwork, Predictor
from mimjax.train.boards import Board
from mimjax.train.optimizers import AdamW, OptimizerConfig
from mimjax.train.optimizers import Rule as OptimizerRule
from mimjax.values import Count, Length, Positive, Range, Size, Text

TARGETS = "CLIP, DallE, DINO, DVAE, EncoderFeatures, Joint, OwnFeatures, Pixels, PCA, VQGAN, VQKD"
MASKINGS = "Random, Regular, Block, BlockAtMost, BlockRandom, Salient, Complementary"
LOSSES = "MSE, L1, SmoothL1, Cosine, CrossEntropy, SoftCrossEntropy"
PIXELS = " (pixel values are scaled to 0 to 1: divide by 255)"
WRONG = {
    "mae": [
        ("method.encoder.pos_embed=learnt", "sincos_xy, sincos_yx, learned, none"),
        ("method.encoder.pos_embed=sincos2d", "sincos_xy, sincos_yx, learned, none"),
        ("method.encoder.bias=qkv", "full, qv"),
        ("method.encoder.rel_pos=Shared", "none, shared, per_block"),
        ("method.encoder.init_scheme=foo", "mae, bootmae, cae, beit"),
        ("method.encoder.drop_path=1.0", "0 up to below 1"),
        ("method.encoder.layer_scale=0.0", "above 0, or None"),
        ("method.encoder.mlp_ratio=-4.0", "above 0"),
        ("method.encoder.depth=0", "1 or more"),
        ("method.encoder.remat=True", "none, full, dots, attention"),
        ("method.encoder.remat=half", "none, full, dots, attention"),
        ("attention=flash", "auto, manual, xla, dot_product"),
        ("stream=bfloat16", "compute, float32"),
        ("method.encoder.width=None", "whole numbers, 1 or more"),
        ("method.encoder.image_size=(8,8,8)", "2 values, each 1 or more"),
        ("method.encoder.image_size=None", "2 values, each 1 or more"),
        ("method.encoder.width=54", "multiples of 4 (sine-cosine positions)"),
        ("method.decoder.pos_embed=none", "sincos_xy, sincos_yx"),
        ("method.decoder.pos_embed=learned", "sincos_xy, sincos_yx"),
        ("method.decoder.bias=Full", "full, qv"),
        ("method.decoder.init_scheme=MAE", "mae, bootmae, cae, beit"),
        ("method.decoder.depth=-1", "1 or more"),
        ("method.encoder.type=vits", "ViT, ConvViT, "),
        ("method.decoder.type=ViT", "MAEDecoder, InjectedDecoder, Regressor, LatentDecoder, "),
        ("method.masking.type=blocks", MASKINGS),
        ("method.masking.ratio=nan", "above 0 and below 1"),
        ("method.masking.rounding=floor", "mae, cae"),
        ("method.masking.weights=near", "none, neighbors, neighbors_mean"),
        ("method.mean=(123.7,116.3,103.5)", "0 to 1" + PIXELS),
        ("method.std=(58.4,57.1,57.4)", "above 0 up to 1" + PIXELS),
        ("method.std=(0.2,0.2,0)", "above 0 up to 1" + PIXELS),
        ("method.pixel_target.norm=None", "none, patch, channel"),
        ("method.pixel_target.norm=mae", "none, patch, channel"),
        ("method.pixel_target.type=pixel", TARGETS),
        ("method.pixel_target=PCA method.pixel_target.components=0", "1 or more"),
        ("method.pixel.loss.type=l2", LOSSES),
        ("method.pixel.loss=SmoothL1 method.pixel.loss.beta=0.0", "above 0"),
        ("method.pixel.normalize=layer", "none, target, both"),
        ("method.pixel.schedule.type=ramp", "Linear, Cosine, Constant, "),
        ("method.average=Average method.average.takes=next", "new, old"),
        ("method.average=Average method.average.decay.type=EMA", "Linear, Cosine, Constant, "),
        ("optimizer.rule.type=adam", "AdamW, Lion, LARS, SGD"),
        (
            "optimizer.schedule.type=poly",
            "Linear, Cosine, Constant, MAECosine, BEiTCosine, CAPICosine, ",
        ),
        ("optimizer.rule.b1=2.0", "0 up to below 1"),
        ("optimizer.rule.b2=-0.1", "0 up to below 1"),
        ("optimizer.rule.eps=0.0", "above 0"),
        ("optimizer.lr=inf", "0 or more, or None"),
        ("optimizer.weight_decay=-0.1", "0 or more"),
        ("optimizer.weight_decay_end=-1.0", "0 or more, or None"),
        ("optimizer.clip_norm=0.0", "above 0, or None"),
        ("optimizer.decay=(('.*',-1.0),)", "0 or more"),
        ("sharding=(('.*','split'),)", "fsdp, replicate"),
        ("data.source.type=imagenet", "Folder, Digits, ShiftedDigits, Photos, Synthetic, Tfds"),
        ("data.augment.crop=center", "random_resized, fixed, none"),
        ("data.augment.flip=1.5", "0 to 1"),
        ("data.augment.scale=(0.0,1.0)", "above 0 up to 1"),
        ("data.augment.scale=(0.5,0.2)", "the smaller number first"),
        ("data.augment.color_jitter=-0.4", "0 or more"),
        ("data.value_range=(5.0,5.0)", "(low, high) with low < high"),
        ("data.channels=0", "1 or more"),
        ("data.max_bad_fraction=1.0", "0 up to below 1"),
        ("data.workers=-1", "0 or more"),
        ("eval.batch_size=0", "1 or more, or None"),
        ("eval.pictures.count=-1", "1 or more"),
        ("eval.max_images=0", "2 or more"),
        ("mesh.data=-1", "1 or more, or None"),
        ("mesh.fsdp=0", "1 or more"),
        ("seed=-1", "0 to 4294967295"),
        ("seed=4294967296", "0 to 4294967295"),
        ("seed=18446744073709551616", "0 to 4294967295"),
        ("epochs=0.0", "above 0"),
        ("epochs=nan", "above 0"),
        ("steps=0", "1 or more, or None"),
        ("batch_size=0", "1 or more"),
        ("accum=0", "1 or more"),
        ("dtype=float16", "auto, float32, bfloat16"),
        ("on_nonfinite=skip", "stop, rollback"),
        ("boards.wandb.mode=on", "off, offline, online"),
        ("keep_every=0", "1 or more, or None"),
    ],
    "bootmae": [
        ("method.masking.max_block=0", "1 or more, or None"),
        ("method.masking.min_aspect=0.0", "above 0 up to 1"),
        ("method.masking.roll_max=-1", "0 or more"),
        ("method.masking.roll=row", "image, batch"),
        ("method.pixel.weight=-1.0", "0 or more"),
        ("method.feature.schedule.share=1.5", "0 to 1"),
        ("method.feature_target.of=mean", "average, current"),
        ("method.feature_target.masked_share=0.0", "above 0 up to 1, or None"),
        ("method.average.decay.end=1.001", "0 up to below 1"),
        ("method.average.networks=()", "numbers, each the name of a field of the method"),
        ("method.pixel_decoder.width=0", "1 or more, or None"),
        ("method.pixel_decoder.head=conv", "linear, pixel, mlp"),
        ("method.pixel_decoder.width=50", "multiples of 4 (sine-cosine positions)"),
        ("method.feature_decoder.pos_embed=sincos", "sincos_xy, sincos_yx"),
    ],
    "beit": [
        ("method.head.init_scheme=torch", "mae, bootmae, cae, beit"),
        ("method.code_target.resample=cubic", "bicubic, bilinear, lanczos"),
        ("method.code_target.size=(0,0)", "1 or more"),
        ("method.code_target.encoder.vocab=0", "1 or more"),
        ("method.code_target.mean=(127.5,127.5,127.5)", "0 to 1" + PIXELS),
    ],
    "cae": [
        ("method.regressor.drop_path=1.0", "0 up to below 1"),
        ("method.encoder.project=0", "1 or more, or None"),
        ("method.encoder.project=54", "multiples of 4 (the regressor's sine-cosine positions)"),
        ("method.regressor.depth=0", "1 or more"),
        ("method.regressor.mlp_ratio=0.0", "above 0"),
        ("method.decoder.drop_path=-0.1", "0 up to below 1"),
        ("method.decoder.heads=0", "1 or more"),
        ("method.align.weight=-2.0", "0 or more"),
        ("method.align_target.of=stale", "average, current"),
    ],
    "caev2": [
        ("method.head.order=fc", "ln_fc, fc_ln"),
        ("method.token.at=vis", "cls, visible, masked"),
        ("method.token.weight=-1.0", "0 or more"),
        ("method.teacher_target.network.pos_embed=learnt", "sincos_xy, sincos_yx, learned, none"),
        ("method.teacher_target.network.drop_path=1.0", "0 up to below 1"),
        # DINO's is a ViT, and no other encoder
        ("method.teacher_target=DINO method.teacher_target.network.type=ConvViT", "ViT, "),
    ],
    "dvae": [
        ("method.reconstruction=l1", "mse, smooth_l1"),
        ("method.temperature=0.0", "above 0"),
        ("method.kl_weight=-1.0", "0 or more"),
        ("method.encoder.num_resblocks=-1", "0 or more"),
    ],
    "mcmae": [
        ("method.encoder.pos_embed=none", "sincos_xy, learned"),
        ("method.encoder.strides=(4,4)", "3 values, each 1 or more"),
        ("method.encoder.stage_widths=(8,0)", "1 or more"),
        ("method.encoder.stage_mlp_ratios=(4.0,)", "2 values, each above 0"),
        ("method.encoder.width=54", "multiples of 4 (sine-cosine positions)"),
    ],
    "mrmae": [
        ("method.masking.select=best", "topk, sample"),
        ("method.masking.reads=mimic", "mimic_target"),
        ("method.mimic.normalize=l2", "none, target, both"),
        ("method.mimic.weight=-0.5", "0 or more"),
    ],
}
ROWS = [(name, typed, line) for name, rows in WRONG.items() for typed, line in rows]


def parse(monkeypatch, *typed, config="configs/mae.py:demo"):
    """The config of a command line, by the parser that the programs use."""
    monkeypatch.chdir(helpers.ROOT)
    return helpers.config_of(f"--config={config}", *(f"--config.{t}" for t in typed))


def checked(c):
    """The task of a config whose every setting is checked."""
    setup.check_settings(c)
    configured.decoding(c)
    return schema.make_task(c, Clock(1, 1))


@pytest.mark.parametrize(("name", "typed", "line"), ROWS, ids=[f"{r[0]}-{r[1]}" for r in ROWS])
def test_wrong_values_are_refused(name, typed, line, monkeypatch):
    c = parse(monkeypatch, *typed.split(), config=f"configs/{name}.py:demo")
    with pytest.raises(ConfigError) as e:
        checked(c)
    key = typed.split()[-1].partition("=")[0]
    assert str(e.value).startswith(f"{key}: ")
    assert f"; allowed: {line}" in str(e.value)
    assert "\n" not in str(e.value)


def of_codes(target):
    """BEiT with vectors in place of codes."""
    return BEiT(code_target=target, code=Term("code_target", "head", loss=MSE()))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: MAE(decoder=MAEDecoder(heads=0)), "method.decoder.heads: 0"),
        (lambda: MAE(mean=(123.7, 116.3, 103.5)), "method.mean: 123.7 in"),
        (
            lambda: MAE(pixel=Term("pixel_target", "decoder", weight=-1.0)),
            "method.pixel.weight: -1",
        ),
        (lambda: CAE(align_target=OwnFeatures("current", (12,))), "method.align_target.blocks: 12"),
        (lambda: of_codes(CLIP(CLIPVision(width=64, heads=5))), "method.code_target.network.heads"),
        (
            lambda: of_codes(DINO(ViT(width=53, heads=2, pos_embed="learned"))),
            "method.code_target.network.heads: 2",
        ),
        (lambda: BEiT(code_target=VQGAN(size=(8, -8))), "method.code_target.size: -8 in"),
        (lambda: MAE(masking=Random(ratio=float("nan"))), "method.masking.ratio: nan"),
        (lambda: BEiT(masking=Block(min_block=True)), "method.masking.min_block: True"),
        (lambda: MAE(masking=MSE()), "method.masking: 'MSE'; allowed: Masking"),
        (lambda: MAE(decoder=ViT()), "method.decoder: 'ViT'; allowed: Predictor"),
        (lambda: MAE(average=ViT()), "method.average: 'ViT'; allowed: Average, or None"),
        (lambda: OptimizerConfig(rule=AdamW(b2=1.0)), "optimizer.rule.b2: 1.0"),
        (lambda: Decoding(channels=0), "data.channels: 0"),
        (lambda: Synthetic(length=0), "data.source.length: 0"),
        (lambda: Photos(length=0), "data.source.length: 0"),
    ],
)
def test_objects_made_in_python_are_checked(make, line):
    with pytest.raises(ConfigError) as e:
        make()
    assert str(e.value).startswith(line)


def test_learned_positions_have_any_width():
    """Only sine-cosine tables come in quarters."""
    dino = of_codes(DINO(ViT(width=54, heads=2, pos_embed="learned")))
    assert dino.width("head") == 54
    assert MAE(encoder=ViT(width=54, heads=2, pos_embed="learned")).encoder.width == 54
    with pytest.raises(ConfigError, match=r"method\.encoder\.width: 54; allowed: multiples of 4"):
        MAE(encoder=ViT(width=54, heads=2))


def test_what_is_none_can_be_given_and_taken_back(monkeypatch):
    """Settings of every kind are given on the command line; the last of two values counts."""
    given = parse(
        monkeypatch,
        *("steps=10", "data.path=/images", "optimizer.lr=1e-3", "optimizer.clip_norm=3"),
        *("mesh.data=1", "method.encoder.layer_scale=1e-5"),
        *("method.masking=Block", "method.masking.max_block=4"),
        *("data.value_range=(0.0,4095.0)", "method.encoder.fuse_layers=(0,1)"),
        "method.encoder.fuse_layers=(1,)",
    )
    assert (given.steps, given.data.path, given.optimizer.lr) == (10, "/images", 1e-3)
    assert (given.optimizer.clip_norm, given.mesh.data) == (3.0, 1)
    assert given.data.value_range == (0.0, 4095.0)
    assert given.method.encoder.fuse_layers == (1,)
    task = checked(given)
    assert (task.encoder.layer_scale, task.masking.max_block) == (1e-5, 4)
    back = parse(
        monkeypatch,
        *(
            "steps=None",
            "data.path=None",
            "optimizer.lr=none",
            "optimizer.schedule.warmup_steps=None",
        ),
        *("method.masking=Block", "method.masking.max_block=4", "method.masking.max_block=None"),
        *("data.value_range=None", "eval.batch_size=None"),
        "steps=7",
        "steps=None",
    )
    task = checked(back)
    found = (
        back.steps,
        back.optimizer.lr,
        back.optimizer.schedule.warmup_steps,
        back.eval.batch_size,
    )
    assert found == (None,) * 4
    assert task.masking.max_block is None
    assert configured.decoding(back).value_range is None
    assert schema.build(Settings, {"data": {"path": back.data.path}}, "").data.path is None


@pytest.mark.parametrize("typed", [f"method.encoder.image_size={n}" for n in ("16", "(16,)")])
def test_a_plain_number_is_a_square(typed, monkeypatch):
    c = parse(monkeypatch, typed)
    assert checked(c).encoder.image_size == (16, 16)
    assert json.loads(settings.to_json(c))["method"]["encoder"]["image_size"] == [16, 16]


def test_a_plain_number_in_a_config_is_a_square():
    c = helpers.CONFIGS["caev2"].get_config("demo").unlock()
    c.method.encoder.image_size = c.method.teacher_target.size = 16
    assert c.method.encoder.image_size == (16, 16)
    task = checked(c)
    assert (task.encoder.image_size, task.teacher_target.size) == ((16, 16), (16, 16))
    c.method.encoder.update({"image_size": 24})
    assert schema.section(MAE, encoder={"image_size": 32}).encoder.image_size == (32, 32)
    plain = ConfigDict({"encoder": {"image_size": 32}})  # as from a file
    assert schema.build(MAE, plain, "method").encoder.image_size == (32, 32)


def test_copies_of_a_config_know_their_settings():
    c = helpers.CONFIGS["mae"].get_config("demo")
    for other in (copy.deepcopy(c), pickle.loads(pickle.dumps(c))):
        other = other.unlock()
        other.method.encoder.image_size, other.steps = 16, None
        assert other.method.encoder.image_size == (16, 16)
        assert (c.method.encoder.image_size, c.steps) == ((8, 8), 1500)
        other.steps = 3


def test_the_config_is_read_back_from_its_file():
    for name, config in helpers.ALL.items():
        c = config.get_config("demo")
        again = ConfigDict(json.loads(settings.to_json(c)))
        assert checked(again) == checked(c), name


def test_every_32_bit_seed_begins_elsewhere():
    """Larger seeds are refused: jax keeps 32 bits."""
    keys = [jax.random.key_data(jax.random.key(s)) for s in (0, 2**31, 2**32 - 1, 2**32)]
    assert len({tuple(map(int, k)) for k in keys[:3]}) == 3
    assert keys[3].tolist() == keys[0].tolist()


def test_the_mesh_takes_all_devices():
    assert dict(make_mesh(None, 2).shape) == {"data": len(jax.devices()) // 2, "fsdp": 2}


# ------------------------------------------------------------------ settings of version 1
OLD = {  # of a config.json that the version before wrote, what is now None and what stays
    "steps": 0,
    "init_from": "",
    "keep_every": 0,
    "log_every": 0,
    "seed": 0,
    "teacher": {"path": ""},
    "mesh": {"data": -1, "fsdp": 1},
    "data": {"path": "", "value_range": [0.0, 0.0], "options": {"length": 0}, "workers": 0},
    "eval": {"every": 0, "batch_size": 0, "pictures": 0},
    "optimizer": {
        "lr": 0.0,
        "min_lr": 0.0,
        "clip_norm": 0.0,
        "warmup_steps": 0,
        "warmup_epochs": 0.0,
        "weight_decay_end": -1.0,
    },
    "method": {
        "encoder": {"layer_scale": 0.0, "drop_path": 0.0, "width": 32},
        "pixel_decoder": {"width": 0, "heads": 0, "depth": 2},
        "regressor": {"width": 0, "depth": 0},
        "masking": {"max_block": 0, "roll_max": 0},
        "target": {"feature": "", "size": [0, 0], "network": {"heads": 0, "proj_dim": 0}},
        "pixel_weight": 0.0,
    },
}
STAYS = {
    *("log_every", "seed", "data.workers", "eval.every", "eval.pictures", "mesh.fsdp"),
    *("optimizer.min_lr", "optimizer.warmup_epochs", "method.encoder.drop_path"),
    *("method.encoder.width", "method.pixel_decoder.depth", "method.regressor.depth"),
    *("method.masking.roll_max", "method.pixel_weight"),
}


def test_sentinels_of_version_1_are_none():
    before = copy.deepcopy(OLD)
    new = settings.flatten(config_version.from_1(OLD))
    assert before == OLD
    old = settings.flatten(OLD)
    # settings that version 1 had not, as it behaved
    later = {"restart": False, "data.splits": "auto", "method.masking.rounding": "mae"}
    assert new.keys() == old.keys() | later.keys()
    assert new == later | {k: v if k in STAYS else None for k, v in old.items()}


@pytest.mark.parametrize("name", ["bootmae", "beit", "cae", "mrmae"])
def test_a_config_of_version_1_is_the_same_task(name):
    """Published configs as version 1 wrote them into a config.json."""
    text = (helpers.ROOT / "tests/golden/configs_version_1.json").read_text()
    c = ConfigDict(config_version.upgrade(json.loads(text)[name], "config.json"))
    ours = helpers.CONFIGS[name].get_config()
    unset = lambda c: {
        k for k, v in settings.flatten(json.loads(settings.to_json(c))).items() if v is None
    }
    assert unset(c) == unset(ours)
    old, new = checked(c), checked(ours)
    assert (old.encoder, old.masking, old.views) == (new.encoder, new.masking, new.views)


# ------------------------------------------------------------------ every setting has an annotation
SHIPPED = [
    *(config.get_config(arg) for config in helpers.ALL.values() for arg in (None, "demo")),
    *(load(f"mrmae:{arg}") for arg in ("teacher=joint,backbone=vit", "teacher=dino")),
    *(load(f"recipes/{name}") for name in ("small_data", "one_gpu", "multi_channel")),
    load("recipes/continued:path=/weights"),
    *(
        helpers.CONFIGS["cae"].get_config(f"tokenizer={name}")
        for name in ("dalle", "dvae", "vqkd", "vqgan", "pixels", "clip", "encoder")
    ),
]


@functools.cache
def reachable():
    """All dataclasses and modules that stand in a shipped config."""
    found = {Settings}

    def add(thing):
        found.add(type(thing))
        for name in values.fields(type(thing)):
            if dataclasses.is_dataclass(getattr(thing, name)):
                add(getattr(thing, name))

    add(Settings())
    for c in SHIPPED:
        add(checked(c))
    bases = (EncoderNetwork, Predictor, Masking, Target, Loss, Average)
    for base in (*bases, OptimizerRule, Schedule, SourceConfig, Board):
        for cls in plugs.shipped(base).values():
            add(cls())
    return sorted(found, key=lambda cls: cls.__qualname__)


def unsaid(hint):
    """What an annotation leaves open: text of no meaning, numbers without a range."""
    inner, marks, _ = values.parts(hint)
    if typing.get_origin(inner) is Literal or inner is bool or dataclasses.is_dataclass(inner):
        return []
    if typing.get_origin(inner) is tuple:
        args = [a for a in typing.get_args(inner) if a is not Ellipsis]
        return [x for a in args for x in unsaid(a)]
    wanted = {str: Text, int: Range, float: Range}.get(inner)
    return [] if wanted and any(isinstance(m, wanted) for m in marks) else [hint]


def test_every_setting_says_what_it_allows():
    """A new field gets a Literal, a range or, if it is free text, its meaning."""
    assert len(reachable()) >= 25
    found = {
        f"{cls.__name__}.{name}"
        for cls in reachable()
        for name, hint in values.fields(cls).items()
        if unsaid(hint)
    }
    assert found == set()


def test_the_walk_finds_what_says_nothing():
    """The test above can fail."""

    @dataclasses.dataclass(frozen=True)
    class Careless:
        kind: str = "a"
        size: "tuple[int, int]" = (1, 1)
        rate: "float | None" = None
        good: Count = 1

    assert [n for n, h in values.fields(Careless).items() if unsaid(h)] == ["kind", "size", "rate"]


def test_no_config_holds_a_value_that_its_annotation_refuses():
    for c in SHIPPED:
        checked(c)


# ------------------------------------------------------------------ the annotations themselves
@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Count | None, None, None),
        (Positive, 3, 3.0),
        (Size, 8, (8, 8)),
        (Size | None, [8], (8, 8)),
        (Size, [8, 16], (8, 16)),
        (tuple[Positive, ...], [1, 2], (1.0, 2.0)),
        (Annotated[tuple[Count, ...], Length(1)], (3,), (3,)),
        (Literal["a", "b"], "a", "a"),
        (Literal["a", "none"] | None, "none", "none"),
        (Annotated[str, Text("a path")] | None, "None", None),
        (tuple[tuple[str, float], ...], [[".*", 1]], ((".*", 1.0),)),
        (dict[str, int], {"a": 1}, {"a": 1}),
    ],
)
def test_values_that_fit(hint, value, expected):
    found = values.fit(hint, value, "key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "line"),
    [
        (Count, 0, "key: 0; allowed: 1 or more"),
        (Count, 1.0, "key: 1.0; allowed: whole numbers, 1 or more"),
        (Count, True, "key: True; allowed: whole numbers, 1 or more"),
        (Count, "1", "key: '1'; allowed: whole numbers, 1 or more"),
        (Count, None, "key: None; allowed: whole numbers, 1 or more"),
        (Positive, "1", "key: '1'; allowed: numbers, above 0"),
        (Positive, 10**400, "key: 1000"),
        (float, float("inf"), "key: inf; allowed: numbers"),
        (bool, 1, "key: 1; allowed: True, False"),
        (Literal["a", "b"], "c", "key: 'c'; allowed: a, b"),
        (Literal["a"] | None, "c", "key: 'c'; allowed: a, or None"),
        (Literal[1, 2], True, "key: True; allowed: 1, 2"),
        (Size, (8, 8, 8), "key: (8, 8, 8); allowed: 2 values, each 1 or more"),
        (Size, (8, 0), "key: 0 in (8, 0); allowed: 1 or more"),
        (Annotated[tuple[Count, ...], Length(1)], (), "key: (); allowed: "),
        (Annotated[str, Text("a path")], 3, "key: 3; allowed: a path"),
        (tuple[str, float], ("a",), "key: ('a',); allowed: (text, numbers)"),
    ],
)
def test_values_that_do_not(hint, value, line):
    with pytest.raises(ConfigError) as e:
        values.fit(hint, value, "key")
    assert str(e.value).startswith(line)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Range(), "0 or more"),
        (Range(0, low_open=True), "above 0"),
        (Range(0, 1), "0 to 1"),
        (Range(0, 1, high_open=True), "0 up to below 1"),
        (Range(0, 1, low_open=True), "above 0 up to 1"),
        (Range(0, 1, True, True), "above 0 and below 1"),
        (Range(float("-inf"), 5), "5 or less"),
        (Range(float("-inf")), "any finite number"),
        (Range(1, note="one or two"), "1 or more (one or two)"),
    ],
)
def test_ranges_in_words(given, text):
    assert str(given) == text


def test_a_module_s_settings_are_not_flax_s():
    names = set(values.fields(ViT))
    assert "width" in names
    assert not names & {"parent", "name", "dtype"}
    assert "out" not in values.fields(MAEDecoder)  # derived
    assert issubclass(ViT, nn.Module)
    assert "rule" in values.fields(OptimizerConfig)


@dataclasses.dataclass(frozen=True)
class WithPart:
    """What a method may look like whose network may be left out."""

    part: Random | None = None
    both: Size | None = None


def test_a_part_may_be_left_out():
    for thing in (WithPart(), WithPart(Random(ratio=0.5))):
        found = schema.build(WithPart, schema.section(thing), "method")
        assert found == thing
    assert schema.build(WithPart, {"part": {"ratio": 0.25}}, "method").part == Random(ratio=0.25)
    with pytest.raises(ConfigError, match=r"method\.part\.ratio: 2\.0; allowed: above 0"):
        schema.build(WithPart, {"part": {"ratio": 2.0}}, "method")
    values.check(WithPart(Random(), (8, 8)), "method")


def test_sections_name_what_is_no_section():
    with pytest.raises(ConfigError, match=r"method\.encoder: 3; allowed: a section"):
        schema.build(MAE, ConfigDict({"encoder": 3}), "method")


# ------------------------------------------------------------------ parts of a method
def test_a_section_without_a_class_has_that_of_the_default():
    """Networks in older config.json files have such sections, and so may a user's config."""
    beit = schema.build(BEiT, {"encoder": {"depth": 3}, "head": {"init_scheme": "mae"}}, "method")
    assert beit.encoder == BEiT().encoder.clone(depth=3)  # the rest is BEiT's, not ViT's
    assert beit.head == BEiT().head.clone(init_scheme="mae")
    assert schema.build(MAE, {"average": {"evaluate": True}}, "method").average == Average(
        evaluate=True
    )
    with pytest.raises(
        ConfigError, match=r"method\.regressor\.type: missing; allowed: the class of"
    ):
        schema.build(MAE, {"regressor": {"depth": 2}}, "method")


def test_a_class_in_a_config_brings_its_own_defaults():
    """Short names are found, and nothing of the default part is kept."""
    found = schema.build(BEiT, {"encoder": {"type": "vit", "use_mask_token": True}}, "method")
    assert found.encoder == ViT(use_mask_token=True)
    with pytest.raises(ConfigError, match=r"method\.encoder\.type: 'Salient'; allowed: ViT, ConvV"):
        schema.build(BEiT, {"encoder": {"type": "Salient"}}, "method")


def test_a_name_means_a_class_of_the_base_that_stands_there():
    """There is a loss and a schedule that are called Cosine."""
    term = {"loss": {"type": "cosine"}, "schedule": {"type": "Cosine", "end": 0.5}}
    found = schema.build(MAE, {"pixel": term}, "method").pixel
    assert (found.loss, found.schedule.end) == (Cosine(), 0.5)


def test_annotations_of_parts_that_are_swapped():
    """The class that stands in a section decides, or the default's where the section names none."""
    c = load("mae:demo").unlock()
    hint = functools.partial(schema.annotation, Settings, c)
    assert schema.plug_base(hint("method.pixel.schedule")) is Schedule
    assert schema.plug_base(hint("method.encoder")) is EncoderNetwork
    assert schema.plug_base(hint("method.average")) is Average
    assert schema.plug_base(hint("method.average.decay")) is Schedule
    assert values.parts(hint("method.decoder.mlp_ratio"))[2]
    c.method.decoder = ConfigDict({"type": "InjectedDecoder"})
    assert values.parts(hint("method.decoder.inject"))[2]
    del c.method.decoder["type"]  # the default's, MAE's decoder
    assert hint("method.decoder.inject") is None
    assert hint("method.decoder.heads") == Count


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (ViT(), "ViT"),
        (ViT(width=96, layer_scale=None, drop_path=0.10), "ViT(width=96, drop_path=0.1)"),
        (InjectedDecoder(width=512, inject=None), "InjectedDecoder(width=512, inject=None)"),
        (MAEDecoder().sized(ViT(), 768), "MAEDecoder(mlp_ratio=4)"),  # not what it derives
        (Average(decay=Linear(end=0.5)), "Average(decay=Linear(end=0.5))"),
        (Average(decay=Constant(0.99999)), "Average(decay=Constant(value=0.99999))"),
        (CLIP(path="a b"), "CLIP(path='a b')"),
        (Settings(seed=3), "Settings(seed=3)"),  # boards are made anew each time
        (None, "None"),
    ],
)
def test_a_part_in_one_line(thing, text):
    assert schema.brief(thing) == text


class Own(nn.Module):
    """A network without a type of computation that could be set."""


@dataclasses.dataclass(frozen=True)
class WithNetwork:
    network: nn.Module = Own()
    other: ViT = ViT()


def test_a_network_without_a_dtype_decides_by_itself():
    found = schema.with_dtype(WithNetwork(), "bfloat16")
    assert (found.network, found.other.dtype) == (Own(), "bfloat16")
