"""The command line: the table of programs, the parser's two passes, and errors in one line."""

import dataclasses
import functools
import re
import shutil
import subprocess
import sys
from typing import Annotated, ClassVar, Literal

import helpers
import pytest
from ml_collections import ConfigDict

from mimjax import __main__ as front
from mimjax import schema, stopping
from mimjax.errors import ConfigError, UserCodeError
from mimjax.losses import Cosine, SmoothL1
from mimjax.masking.base import Random
from mimjax.methods.bootmae import Lambda
from mimjax.methods.mae import MAE
from mimjax.methods.parts import Average, Term
from mimjax.models.conv_vit import ConvViT
from mimjax.models.heads import LinearHead
from mimjax.models.vit import ViT
from mimjax.programs import cli, completion, config, parser, usage
from mimjax.programs.parser import Override
from mimjax.run import config_files
from mimjax.schedules import Cosine as CosineSchedule
from mimjax.schedules import Linear
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.joint import Joint
from mimjax.task import Clock
from mimjax.values import Count, Number, Size, Text


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(helpers.ROOT)


# ------------------------------------------------------------------ programs
def test_without_a_program_all_are_listed(capsys):
    front.main([])
    shown = capsys.readouterr().out
    modules = {p.stem for p in (helpers.ROOT / "mimjax/programs").glob("*.py")}
    assert set(usage.PROGRAMS) <= modules
    for name, text in usage.PROGRAMS.items():
        assert f"  {name:12} {text}\n" in shown
        module = helpers.module_of(name)
        assert callable(module.main)
        assert isinstance(module.REQUIRED, tuple)
    assert shown.count("\n") < 24


def test_an_unknown_program_is_one_line(capsys):
    with pytest.raises(SystemExit) as found:
        front.main(["trian", "--config=mae"])
    assert found.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 'trian': no program (did you mean train?); allowed: train, plan")


@pytest.mark.parametrize(
    ("module", "name"),
    [("export", "export"), ("embedding_map", "map"), ("data.stats", "stats")],
)
def test_old_forms_say_the_new_one(module, name):
    command = [sys.executable, "-m", f"mimjax.{module}", "--workdir=x"]
    out = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 2
    assert out.stderr == f"error: python -m mimjax.{module}: use mimjax {name} ...\n"
    assert out.stdout == ""


LIGHT = """
import runpy, sys
sys.argv[1:] = WORDS
try:
    runpy.run_module("mimjax", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert "jax" not in sys.modules, "jax is imported"
"""


@pytest.mark.parametrize("words", [[], ["train", "--help"], ["features", "--help"]])
def test_help_needs_no_jax(words):
    code = LIGHT.replace("WORDS", repr(words))
    out = subprocess.run([sys.executable, "-c", code], cwd=helpers.ROOT, capture_output=True)
    assert out.returncode == 0, out.stderr.decode()


def test_completion_in_bash(tmp_path):
    script = tmp_path / "mimjax.bash"
    script.write_text(completion.script("bash"))
    lines = {
        ("mimjax", "tra"): ["train"],
        ("mimjax", "train", "--workd"): ["--workdir="],
        ("mimjax", "train", "--config", "=", "boot"): ["bootmae"],
        ("mimjax", "config", "mcm"): ["mcmae"],
        ("mimjax", "map", "--nosuch"): [],
    }
    for words, wanted in lines.items():
        setting = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        code = f'source {script}; {setting}; _mimjax 2>/dev/null; echo "${{COMPREPLY[@]}}"'
        out = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert out.stdout.split() == wanted, words


# zsh's own functions, which work in its line editor alone: what would be offered, and the flags
ZSH = """
autoload() {}; compinit() {}; compdef() {}; _files() {}
compset() { words[CURRENT]=${words[CURRENT]#*=} }
compadd() {
  while [[ $1 != -- ]]; do shift; done; shift
  for w in "$@"; do [[ $w == ${words[CURRENT]}* ]] && print -r -- "$w"; done
}
"""


def test_completion_in_zsh(tmp_path):
    text, bash = completion.script("zsh"), completion.script("bash")
    words = lambda script: set(re.findall(r"--[a-z_]+=?", script)) - {"--config="}
    assert words(text) == words(bash)
    if not shutil.which("zsh"):
        return
    (tmp_path / "mimjax.zsh").write_text(ZSH + text)
    lines = {
        ("mimjax", "tra"): ["train"],
        ("mimjax", "train", "--workd"): ["--workdir="],
        ("mimjax", "train", "--config=boot"): ["bootmae"],
        ("mimjax", "train", "--config", "boot"): ["bootmae"],
        ("mimjax", "config", "mcm"): ["mcmae"],
        ("mimjax", "map", "--nosuch"): [],
    }
    for line, wanted in lines.items():
        code = (
            f"source {tmp_path}/mimjax.zsh; words=({' '.join(line)}); CURRENT={len(line)}; _mimjax"
        )
        out = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=False)
        assert out.stdout.split() == wanted, (line, out.stderr)


# ------------------------------------------------------------------ words
def test_words_and_values_of_their_own():
    line = "p --config mae --config.steps 3 --config.a.b=x=y -config.c -1.5 --config.flag"
    rest, found = parser.split(
        [*line.split(), "--workdir=w", "--config.last", "--", "--config.no=1"]
    )
    assert rest == ["p", "--config", "mae", "--workdir=w", "--", "--config.no=1"]
    assert found == [
        *(Override("steps", "3"), Override("a.b", "x=y"), Override("c", "-1.5")),
        *(Override("flag", None), Override("last", None)),
    ]


@pytest.mark.parametrize("words", [["--config=mae:demo"], ["--config", "configs/mae.py:demo"]])
def test_names_and_paths(words):
    c = helpers.config_of(*words, "--config.steps", "7", "--config.eval.probes=None")
    assert (c.steps, c.eval.probes) == (7, None)
    assert c.data.source.type == "mimjax.data.sources:Digits"


def test_a_name_beside_a_folder_and_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae").mkdir()
    assert config_files.find("mae") == str(helpers.ROOT / "configs/mae.py")
    (tmp_path / "mine.py").write_text("")
    assert config_files.find("mine.py") == "mine.py"
    (tmp_path / "text").write_text("")
    for name, text in (("text", "is no Python file"), ("none", "not found"), ("", "not found")):
        with pytest.raises(ConfigError, match=f"config {name!r}: {text}; allowed: .*bootmae"):
            config_files.find(name)


def test_a_comma_that_is_quoted(monkeypatch):
    config_file = helpers.CONFIGS["caev2"]
    assert config_file.get_config('path="a,b",size=l').method.teacher_target.path == "a,b"
    with pytest.raises(ConfigError, match=r"config argument path=.*a quote that is closed"):
        config_file.get_config('path="a,b')


def test_a_part_that_may_be_left_out_says_so():
    with pytest.raises(ConfigError, match=r"config.eval.probes: 'False'; allowed: .*, or None$"):
        helpers.config_of("--config=mae:demo", "--config.eval.probes=False")


def test_two_configs_are_refused():
    with pytest.raises(ConfigError, match="--config: 'mae' and 'cae'; allowed: one of them"):
        helpers.config_of("--config=mae", "--config=cae")


# ------------------------------------------------------------------ overrides
def test_the_last_value_wins():
    c = helpers.config_of(
        "--config=configs/mae.py:demo",
        "--config.method.encoder.image_size=(16,16)",
        "--config.seed=1",
        "--config.method.encoder.fuse_layers=(1,3)",
        "--config.sharding=(('a','fsdp'),)",
        "--config.optimizer.decay=(('a',0.5),('b',0.0))",
        "--config.method.encoder.image_size=(8,8)",
        "--config.seed=2",
        "--config.method.encoder.fuse_layers=(3,)",
        "--config.sharding=(('b','fsdp'),('c','fsdp'))",
        "--config.optimizer.decay=(('.*',1.0),)",
    )
    assert c.method.encoder.image_size == (8, 8)
    assert c.method.encoder.fuse_layers == (3,)
    assert c.sharding == (("b", "fsdp"), ("c", "fsdp"))
    assert c.optimizer.decay == ((".*", 1.0),)
    assert c.seed == 2


def method_of(name, *texts):
    """The method that a command line describes."""
    words = [f"--config.method.{text}" for text in texts]
    c = helpers.config_of(f"--config={name}", *words)
    return schema.make_task(c, Clock(10, 100))


def test_a_target_is_swapped_and_its_options_are_set():
    """The order on the command line plays no part; options of the old target are unknown."""
    key = "config.method.teacher_target"
    words = [f"--{key}.network.depth=5", f"--{key}=dino"]
    c = helpers.config_of("--config=caev2", *words, f"--{key}.feature=pre_norm")
    target = c.method.teacher_target
    assert target.type == "mimjax.targets.dino:DINO"
    assert (target.network.depth, target.feature, target.network.width) == (5, "pre_norm", 768)
    with pytest.raises(ConfigError, match=f"{key}.project: unknown; allowed: feature"):
        helpers.config_of("--config=caev2", *words, f"--{key}.project=False")
    with pytest.raises(ConfigError, match=f"{key}: 'dinoo'; allowed: CLIP, DallE"):
        helpers.config_of("--config=caev2", f"--{key}=dinoo")


SWAPS = [
    ("mae", ["masking=Random", "masking.ratio=0.6"], {"masking": Random(0.6)}),
    # nothing of the section before is kept: BEiT's own encoder has relative positions
    (
        "beit",
        ["encoder.use_mask_token=True", "encoder=ViT"],
        {"encoder": ViT(use_mask_token=True)},
    ),
    ("beit", ["code_target=DVAE", "code_target.path=X"], {"code_target": DVAE(path="X")}),
    ("mae", ["encoder=ConvViT"], {"encoder": ConvViT()}),
    (
        "mae",
        ["encoder.use_mask_token=True", "decoder=LinearHead"],
        {"encoder": ViT(use_mask_token=True), "decoder": LinearHead()},
    ),
    (
        "mae",
        ["pixel.loss=SmoothL1", "pixel.loss.beta=2.0"],
        {"pixel": Term("pixel_target", "decoder", loss=SmoothL1(2.0))},
    ),
    # one name, two kinds of classes
    (
        "mae",
        ["pixel.loss=Cosine", "pixel.schedule=cosine", "pixel.schedule.end=0.5"],
        {"pixel": Term("pixel_target", "decoder", loss=Cosine(), schedule=CosineSchedule(1, 0.5))},
    ),
    (
        "mae",
        [
            "average=Average",
            "average.evaluate=True",
            "average.decay=Linear",
            "average.decay.end=0.9",
        ],
        {"average": Average(decay=Linear(end=0.9), evaluate=True)},
    ),
    (
        "mae",
        ["pixel.schedule.share=0.5", "pixel.schedule=mimjax.methods.bootmae:Lambda"],
        {"pixel": Term("pixel_target", "decoder", schedule=Lambda(0.5))},
    ),
    ("caev2", ["regressor=None", "token.at=cls+visible"], {"regressor": None}),
    (
        "mrmae",
        [
            *("mimic_target.first=Dino", "mimic_target=Joint", "mimic_target.first.path=a"),
            *("mimic_target.second=CLIP", "mimic_target.second.project=False"),
        ],
        {"mimic_target": Joint(DINO(path="a"), CLIP(project=False))},
    ),
    (
        "mae",
        [
            "pixel_target=EncoderFeatures",
            "pixel_target.network=ViT",
            "pixel_target.network.depth=3",
        ],
        {"pixel_target": EncoderFeatures(ViT(depth=3))},
    ),
]


@pytest.mark.parametrize(("name", "texts", "expected"), SWAPS, ids=lambda x: str(x)[:40])
def test_parts_of_a_method_are_swapped(name, texts, expected):
    """Options, nested ones too, are those of the new class, as is the section."""
    task = method_of(name, *texts)
    assert {key: getattr(task, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("mae", "encoder=Salient", "config.method.encoder: 'Salient'; allowed: ViT, ConvViT, "),
        ("mae", "average=Mean", "config.method.average: 'Mean'; allowed: Average, .*, or None"),
        ("mae", "average.decay=Linear", "config.method.average.decay: unknown; allowed: after --"),
        ("mae", "pixel.loss=None", "config.method.pixel.loss: 'None'; allowed: MSE, L1, SmoothL1"),
        ("mae", "pixel.loss=mimjax.schedules:Cosine", "'mimjax.schedules:Cosine' is no Loss; all"),
        (
            "mae",
            "pixel=None",
            "config.method.pixel: is a section; allowed: --config.method.pixel.N",
        ),
        ("mae", "decoder=LinearHead", r"method.pixel.at: 'masked' of pixel_target and decoder; a"),
        ("bootmae", "average=None", r"method.feature_target.of: 'average'; allowed: "),
    ],
)
def test_parts_that_cannot_stand_there(name, text, line):
    with pytest.raises(ConfigError, match=line) as found:
        method_of(name, text)
    assert "\n" not in str(found.value)


MINE = """
import dataclasses
from mimjax.losses import MSE
from mimjax.masking.base import Random
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.schedules import Constant
from mimjax.targets.pixels import Pixels

@dataclasses.dataclass(frozen=True)
class Mine(Pixels):
    sharpness: float = 2.0

@dataclasses.dataclass(frozen=True)
class Half(MSE):
    factor: float = 0.5

@dataclasses.dataclass(frozen=True)
class Rows(Random):
    every: int = 2

@dataclasses.dataclass(frozen=True)
class Slow(Constant):
    pass

class Net(ViT):
    extra: int = 1

class Deep(MAEDecoder):
    layers: int = 1
"""
OWN = [("pixel_target", "Mine", "sharpness", 3.0), ("pixel.loss", "Half", "factor", 2.0)]
OWN += [("masking", "Rows", "every", 3), ("pixel.schedule", "Slow", "value", 0.5)]
OWN += [("encoder", "Net", "extra", 4), ("decoder", "Deep", "layers", 5)]


@pytest.mark.parametrize(("key", "name", "option", "value"), OWN)
def test_a_part_of_a_file_of_ones_own(key, name, option, value, tmp_path, monkeypatch):
    """The section of each kind holds the file's absolute path and digest, and is read back."""
    monkeypatch.syspath_prepend(helpers.ROOT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    word = f"--config.method.{key}"
    c = helpers.config_of("--config=mae", f"{word}=mine.py:{name}", f"{word}.{option}={value}")
    section = functools.reduce(lambda node, part: node[part], key.split("."), c.method)
    assert section.type == f"{tmp_path / 'mine.py'}:{name}"
    assert (section[option], len(section.digest)) == (value, 16)
    part = functools.reduce(getattr, key.split("."), schema.build(MAE, c.method, "method"))
    assert (type(part).__name__, getattr(part, option)) == (name, value)
    assert schema.section(part).to_dict() == section.to_dict()


def test_a_file_of_ones_own_that_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserCodeError) as found:
        helpers.config_of("--config=beit", "--config.method.code_target=broken.py:Mine")
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    out = helpers.answer("train", "--config=beit", f"--config.method.head={tmp_path}/broken.py:X")
    assert out.returncode == 2
    trace, _, line = out.stderr.rpartition("error: ")
    assert f'File "{tmp_path}/broken.py", line 1' in trace
    assert "cli.py" not in trace
    assert "ZeroDivisionError while it was imported" in line


@dataclasses.dataclass(frozen=True)
class Rule:
    """A plug."""

    PLUGGABLE: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Fast(Rule):
    rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Slow(Rule):
    steps: Count = 3
    clip: Number | None = None


@dataclasses.dataclass(frozen=True)
class Rules:
    """Sections that a user names hold rules, too."""

    EXTRA: ClassVar[type] = Rule
    rule: Rule = Fast()
    spare: Rule | None = None
    every: Count = 5


@dataclasses.dataclass(frozen=True)
class Whole:
    rules: Rules = Rules()
    size: Size = (8, 8)
    kind: Literal["a", "none"] = "a"
    level: Literal[1, 2] = 1
    path: Annotated[str, Text("a folder")] | None = None
    names: tuple[str, ...] = ()
    on: bool = False


def applied(monkeypatch, *texts):
    """The small config above with overrides."""
    monkeypatch.setattr("mimjax.run.sections.Settings", Whole)
    c = schema.section(Whole).lock()
    words = [f"--config.{text}" for text in texts]
    parser.apply(c, parser.split(words)[1])
    return c


def test_plugs_of_any_section(monkeypatch):
    """They fill fields that were None, and sections that the user names."""
    c = applied(
        monkeypatch,
        *("rules.mine=SLOW", "rules.mine.steps=9", "rules.spare=slow", "rules.spare.clip=0.5"),
        *("rules.rule.steps=4", "rules.rule=fast", "rules.rule=slow"),
    )
    assert (c.rules.mine.steps, c.rules.spare.clip, c.rules.rule.steps) == (9, 0.5, 4)
    assert c.rules.every == 5
    assert applied(monkeypatch, "rules.spare=slow", "rules.spare=None").rules.spare is None
    with pytest.raises(ConfigError, match=r"config.rules.rule: 'None'; allowed: Fast, Slow"):
        applied(monkeypatch, "rules.rule=None")
    with pytest.raises(
        ConfigError, match=r"config.rules.spare.clip: unknown; allowed: after --con"
    ):
        applied(monkeypatch, "rules.spare.clip=1")
    with pytest.raises(
        ConfigError, match=r"config.rules: is a section; allowed: --config.rules.NA"
    ):
        applied(monkeypatch, "rules=3")
    with pytest.raises(ConfigError, match=r"config.nothing: unknown; allowed: kind, level, names"):
        applied(monkeypatch, "nothing.at.all=3")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("size=16", "size", (16, 16)),
        ("size=(4,6)", "size", (4, 6)),
        ("size=[4,6]", "size", (4, 6)),
        ("kind=none", "kind", "none"),
        ("level=2", "level", 2),
        ("path=None", "path", None),
        ("path=/a=b", "path", "/a=b"),
        ("names=('a','b')", "names", ("a", "b")),
        ("names=()", "names", ()),
        ("on", "on", True),
        ("on=TRUE", "on", True),
        ("on=0", "on", False),
        ("rules.rule.rate=1e-3", "rules.rule.rate", 1e-3),
        ("rules.rule.rate=2", "rules.rule.rate", 2.0),
    ],
)
def test_values_by_their_annotations(monkeypatch, text, key, value):
    c = applied(monkeypatch, text)
    for name in key.split("."):
        c = c[name]
    assert c == value
    assert type(c) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rules.every=many", "config.rules.every: 'many'; allowed: 1 or more"),
        ("rules.every=2.5", "config.rules.every: '2.5'; allowed: 1 or more"),
        ("rules.every", "config.rules.every: no value; allowed: 1 or more"),
        ("level=x", r"config.level: 'x'; allowed: 1, 2"),
        ("on=maybe", "config.on: 'maybe'; allowed: True, False"),
        ("size=(1,", r"config.size: '\(1,'; allowed: 2 values"),
    ],
)
def test_texts_that_are_no_values(monkeypatch, text, line):
    with pytest.raises(ConfigError, match=line):
        applied(monkeypatch, text)


# ------------------------------------------------------------------ config NAME
def test_config_says_where_settings_come_from(capsys):
    helpers.program("config", "mae:demo", "--config.seed=3", "--config.optimizer.weight_decay=0.05")
    shown = capsys.readouterr().out
    origin = {line.split()[0]: line.split(None, 2)[1:] for line in shown.splitlines()[1:] if line}
    assert origin["seed"] == ["3", "command line"]
    assert origin["optimizer.weight_decay"] == ["0.05", "command line"]
    assert origin["steps"] == ["1500", "config file"]
    assert origin["accum"] == ["1", "default"]
    assert origin["method.encoder.width"] == ["96", "config file"]
    c = helpers.config_of("--config=mae:demo")
    count = lambda node: sum(count(v) if isinstance(v, ConfigDict) else 1 for v in node.values())
    assert len(config.rows(c, [])) == count(c)


def test_config_lists_plugs(capsys):
    """What each part may be, and which class's default a setting has."""
    key = "--config.method.teacher_target"
    average = "--config.method.average=Average", "--config.method.average.evaluate=True"
    helpers.program("config", "caev2", f"{key}=DINO", *average)
    shown = capsys.readouterr().out
    assert "  method.teacher_target: CLIP, DallE, DINO, DVAE, EncoderFeatures, Joint, Own" in shown
    assert "  method.teacher_target.network: ViT\n" in shown
    assert "  method.encoder: ViT, ConvViT\n" in shown
    assert "  method.token.loss: MSE, L1, SmoothL1, Cosine, " in shown
    assert "  method.token.schedule: Linear, Cosine, Constant, " in shown
    assert "  method.masking: Random, Regular, Block, " in shown
    assert "  method.average: Average, None\n" in shown
    assert "  method.average.decay: Linear, " in shown
    assert "  method.regressor: MAEDecoder, InjectedDecoder, Regressor, " in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  method.")}
    target = rows["method.teacher_target.type"].split()[1:]
    assert target == ["mimjax.targets.dino:DINO", "command", "line"]
    assert rows["method.teacher_target.feature"].endswith("default")
    assert rows["method.average.takes"].endswith("default")
    assert rows["method.encoder.type"].endswith("default")
    assert rows["method.encoder.layer_scale"].endswith("default")  # CAE v2's, not ViT's


def test_plugs_of_sections_that_a_user_names(monkeypatch):
    monkeypatch.setattr("mimjax.run.sections.Settings", Whole)
    c = schema.section(Whole)
    with c.unlocked():
        c.task = "mimjax.methods.mae:MAE"
    lines = ["rules.NAME: Fast, Slow", "rules.rule: Fast, Slow", "rules.spare: Fast, Slow, None"]
    assert config.plug_lines(c) == lines


@pytest.mark.parametrize("name", config_files.shipped())
def test_every_config_can_be_printed(name, capsys):
    argument = ":path=x" if name == "recipes/continued" else ""
    helpers.program("config", name + argument)
    assert f"{name}{argument} of " in capsys.readouterr().out


# ------------------------------------------------------------------ errors
def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    """The line says where, and train.log has the traceback."""
    told, signals = [], stopping.Signals()
    signals.tell = told.append
    monkeypatch.setattr(stopping, "SIGNALS", signals)

    def main():
        raise KeyError("blocks")

    with pytest.raises(SystemExit) as found:
        cli.guard(main)
    assert found.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: KeyError: 'blocks' (")
    assert "test_cli.py" in line
    assert "Traceback" in told[0]
    assert told[1] == line


def test_flags_of_one_program_stay_its_own():
    before = set(cli.FLAGS)
    helpers.program("features", parse_only=True)
    helpers.program("attention", parse_only=True)
    assert set(cli.FLAGS) == before
