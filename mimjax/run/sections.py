"""The settings of a run that no method owns, and what config files are written and read with.

The dataclasses are the schema of a config's top level; `run.setup.check_settings` checks a config
against them. What a task reads stands in `config.method`, whose schema is the class that `task`
names. Below them stand the helpers that a config file calls: `base`, `arguments`, `find_target`,
and `load`, which returns another config by its name.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Annotated, Any, ClassVar, Literal

from ml_collections import ConfigDict

from mimjax.data.augment import Augment
from mimjax.data.decoding import MAX_PIXELS, Decoding
from mimjax.data.sources import Folder, SourceConfig
from mimjax.errors import ConfigError
from mimjax.evaluators.base import Evaluator
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.health import Health
from mimjax.evaluators.pictures import Pictures
from mimjax.models.attention import Form
from mimjax.models.clip import CLIP_SIZES, CLIPVision
from mimjax.models.vqgan import VQGAN_SIZES, VQGANModel
from mimjax.run.config_files import find as find
from mimjax.run.config_files import load as load
from mimjax.schedules import BEiTCosine
from mimjax.schema import Config, section
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.dino import DINO
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels
from mimjax.targets.vqgan import VQGAN
from mimjax.targets.vqkd import VQKD
from mimjax.train.boards import Board, TensorBoard, WandB
from mimjax.train.optimizers import OptimizerConfig
from mimjax.values import Count, Number, Positive, Range, Rate, Text, Whole

# jax keeps 32 bits of a seed: a larger one would begin with the weights of a smaller one
Seed = Annotated[int, Range(0, 2**32 - 1)]
Weights = Annotated[str, Text("a workdir, .safetensors, .pth")]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The grid of devices.

    Attributes:
      data: groups of devices that hold different images; None = as many as `fsdp` leaves.
      fsdp: devices of a group, which hold different parts of the parameters.
    """

    data: Count | None = None
    fsdp: Count = 1


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from.

    Attributes:
      source: its class and settings, see `mimjax/data/sources.py`.
      splits: "auto" = folders as train/ and val/ below `path` are splits; "none" = classes like
        others.
      channels: others than 3 need `method.mean` and `std` of as many numbers, see
        `mimjax/programs/stats.py`.
      value_range, max_pixels: see `decoding.Decoding`.
      max_bad_fraction: files that may be skipped; 0 = the first bad one is an error.
      trust_index: True = the workdir's list of files is taken, none is looked at.
      repeats: how often an image stands in a batch, augmented anew each time (repeated
        augmentation); an epoch has as many batches as with 1.
      workers: processes that decode; 0 = threads in this one.
    """

    source: SourceConfig = Folder()
    path: Annotated[str, Text("a folder, local or gs://")] | None = None
    splits: Literal["auto", "none"] = "auto"
    channels: Count = Decoding.channels
    value_range: tuple[Number, Number] | None = Decoding.value_range
    max_pixels: Count = MAX_PIXELS
    max_bad_fraction: Rate = 0.01
    trust_index: bool = False
    augment: Augment = Augment()
    repeats: Count = 1
    workers: Whole = 0
    threads: Count = 8


class Named:
    """Sections of plugs by name: shipped ones are fields, those of other names stand in `extra`."""

    EXTRA: ClassVar[type]  # the base class of the plugs
    DERIVED: ClassVar[tuple[str, ...]] = ("extra",)
    extra: dict[str, Any]

    @property
    def by_name(self) -> dict[str, Any]:
        """The plugs that are there, by section name and in the order of the fields."""
        return {k: v for k, v in (vars(self) | self.extra).items() if isinstance(v, self.EXTRA)}


@dataclasses.dataclass(frozen=True)
class Eval(Named):
    """What is measured beside training: one section per evaluator, None = it is off.

    A section of any other name holds an evaluator of the user's own; `mimjax/evaluators/base.py`
    describes how one is written.

    Attributes:
      every: steps between two evaluations; 0 = at the first and the last step only (5000 steps are
        16 epochs of ImageNet at batch 4096).
      batch_size: images at once; None = batch_size / accum, what a step has in memory at once.
      max_images: images that are read of each split, drawn once.
      error: held-out masked error beside naive predictors.
      health: spread and rank of the features, variance of the run's own targets.
      probes: k-NN and a linear probe, for a labeled source.
      pictures: reconstructions of a few images.
      extra: the evaluators of sections of other names, by name.
    """

    EXTRA = Evaluator

    every: Whole = 5000
    batch_size: Count | None = None
    max_images: Annotated[int, Range(2)] = 2000
    error: Evaluator | None = MaskedError()
    health: Evaluator | None = Health()
    probes: Evaluator | None = None
    pictures: Evaluator | None = Pictures()
    extra: dict[str, Evaluator] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Boards(Named):
    """Where curves and pictures are shown besides the workdir's own files; None = not there.

    A section of any other name holds a board of the user's own; `mimjax/train/boards.py` describes
    how one is written.

    Attributes:
      extra: the boards of sections of other names, by name.
    """

    EXTRA = Board

    tensorboard: Board | None = dataclasses.field(default_factory=TensorBoard)
    wandb: Board | None = dataclasses.field(default_factory=WandB)
    extra: dict[str, Board] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is recorded for a profiler.

    Attributes:
      steps: the first and the last update of a trace, "10..15"; None = none. It lies in profile/ of
        the workdir.
    """

    steps: Annotated[str, Text("10..15")] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The top level of a config: everything but the task's own settings.

    Attributes:
      task: the class whose settings `method` holds.
      dtype: the type of computation; "auto" = bfloat16 on accelerators, float32 on CPU.
      stream: the type of the tokens that the blocks of an encoder add to: "compute" = `dtype`, or
        "float32". Against float32 throughout, a ViT of width 192 with random weights in bfloat16 is
        off by 0.94 % of its tokens' norm at depth 12 and 1.27 % at depth 32 with "compute", by 0.51
        % and 0.56 % with "float32"; its gradients by 1.05 and 1.51 %, by 0.66 and 0.74 %
        (`python -m benchmarks.stream`).
      attention: how attention is computed: "auto" chooses by platform, "manual", "xla" or
        "dot_product" (cuDNN on GPUs), see `mimjax.models.attention.attend`.
      batch_size: images per update, over all devices and accumulation steps.
      accum: micro-batches per update.
      epochs, steps: the run's length; `steps` counts unless it is None.
      init_from: where the first weights come from.
      resume: an earlier run whose whole state this one continues.
      restart: True = begin anew where a workdir's checkpoints are lost; other files are kept.
      sharding: rules (regex, "fsdp" or "replicate"): whether a parameter is divided among the
        `mesh.fsdp` devices of a group; with 1 device every parameter is replicated.
      log_every, checkpoint_every: steps; 0 = never.
      keep_checkpoints: how many of the newest checkpoints are kept.
      keep_every: steps; a checkpoint whose step it divides is kept for good.
      on_nonfinite: "rollback" = return to the last good checkpoint and leave the batch out.
      on_nonfinite_retries: rollbacks in the whole run.
      boards: where curves and pictures are shown besides the workdir's own files.
      compile_cache_dir: a folder, local or remote, of compiled programs, which later starts read;
        "auto" = mimjax/compiled in the user's cache folder, None = none are kept.
    """

    task: Annotated[str, Text("module:Class of a task")] = ""
    seed: Seed = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    stream: Literal["compute", "float32"] = "compute"
    attention: Form = "auto"
    batch_size: Count = 4096
    accum: Count = 1
    epochs: Positive = 800.0
    steps: Count | None = None
    init_from: Weights | None = None
    resume: Annotated[str, Text("a workdir of an earlier run")] | None = None
    restart: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: Mesh = Mesh()
    sharding: tuple[
        tuple[Annotated[str, Text("a regular expression")], Literal["fsdp", "replicate"]], ...
    ] = ((".*", "fsdp"),)
    data: Data = Data()
    log_every: Whole = 50
    checkpoint_every: Whole = 2000
    keep_checkpoints: Count = 2
    keep_every: Count | None = None
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    on_nonfinite_retries: Count = 3
    boards: Boards = Boards()
    eval: Eval = Eval()
    profile: Profile = Profile()
    compile_cache_dir: Annotated[str, Text("auto, or a folder")] | None = "auto"


# ------------------------------------------------------------------ what a config is written with
def base() -> Config:
    """Return an unlocked config with the defaults of `Settings` and an empty `method`."""
    c = section(Settings)
    c.method = ConfigDict()
    return c


def beit_recipe(c: Config) -> None:
    """Set batch and optimizer of BEiT's scripts, which those of CAE and CAE v2 take over."""
    c.batch_size = 2048
    c.optimizer.lr = 1.5e-3  # absolute; for 2048 images
    c.optimizer.schedule = section(BEiTCosine)
    c.optimizer.schedule.min_lr = 1e-5
    c.optimizer.weight_decay = 0.05
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.999  # PyTorch's; CAE's scripts set none
    c.optimizer.clip_norm = 3.0


TARGETS: dict[str, Target] = {
    "dalle": DallE(),
    "dvae": DVAE(),  # trained by configs/dvae.py, or CAE's "customized" file
    "vqkd": VQKD(),
    "vqgan": VQGAN(),  # Gumbel f8, 8192 codes (CAE, Table 7)
    "vqgan_f16_1024": VQGAN(network=VQGANModel(**VQGAN_SIZES["vq_f16_1024"])),
    "vqgan_f16_16384": VQGAN(network=VQGANModel(**VQGAN_SIZES["vq_f16_16384"])),
    "pixels": Pixels(norm="patch"),
    "clip": CLIP(),  # ViT-B/16
    "clip_l14": CLIP(network=CLIPVision(**CLIP_SIZES["l14"])),  # reads 196 px for a 14x14 grid
    "dino": DINO(),
    "encoder": EncoderFeatures(),  # an encoder of this project, of the sizes of its workdir
}


def find_target(
    name: str, path: str = "", known: dict[str, Target] = TARGETS, argument: str = "tokenizer"
) -> Target:
    """Return the target of this name, with its published settings.

    Args:
      path: file or workdir of its frozen network; "" = not given.
      known: where it is looked up.
      argument: which argument of the config gave the name, for errors.

    Raises:
      ConfigError: there is none, or a path for one that does not read a single file.
    """
    if name not in known:
        raise ConfigError(f"config argument {argument}={name!r}; allowed: {', '.join(known)}")
    target = known[name]
    if not path:
        return target
    if not any(field.name == "path" for field in dataclasses.fields(target)):
        keys = [part.key for part in target.frozen("--config.method.TARGET").values() if part.key]
        allowed = f"{' and '.join(keys)}, with the target's field" if keys else "none"
        raise ConfigError(
            f"config argument path={path!r} with {argument}={name}; allowed: {allowed}"
        )
    changes: Any = {"path": path}
    return dataclasses.replace(target, **changes)


# ------------------------------------------------------------------ arguments of a config
# name, and value: in double or single quotes, or up to the next comma
ARGUMENT = re.compile(r"""([^,=]*)(?:=("[^"]*"|'[^']*'|[^,]*))?(?:,|$)""")


def arguments(arg: str | None, *, default: str = "", **known: Any) -> Config:
    """Parse what stands behind the colon of `--config=mae:size=l,demo`.

    A name without a value means True. A value with commas stands in quotes: `path="a,b"`.

    Args:
      arg: the text; None or "" = no argument.
      default: which key of the dict is taken where no argument names one: `size=SIZES`.
      known: each argument with its default (a bool, number or string); with its type, None where it
        is not given; or with its allowed words, a tuple, of which the first is the default, or a
        dict.

    Returns:
      A ConfigDict with the value of each argument.

    Raises:
      ConfigError: an unknown name, or a value that is not allowed.
    """
    words = {k: tuple(v) for k, v in known.items() if isinstance(v, tuple | dict)}
    values = known | {k: default if isinstance(known[k], dict) else v[0] for k, v in words.items()}
    values |= {k: None for k, v in known.items() if isinstance(v, type)}
    chosen: dict[str, Any] = {}
    for match in ARGUMENT.finditer(arg or ""):
        name, text = match[1].strip(), match[2] or ""
        if not name and not text:
            continue  # two commas, or the end
        if name not in values:
            allowed = ", ".join(sorted(values))
            raise ConfigError(f"config argument {name!r}: unknown; allowed: {allowed}")
        if text[:1] in ("'", '"'):
            if len(text) == 1 or text[-1] != text[0]:
                raise ConfigError(f"config argument {name}={text}; allowed: a quote that is closed")
            text = text[1:-1]
        if text not in words.get(name, (text,)):
            allowed = ", ".join(words[name])
            raise ConfigError(f"config argument {name}={text!r}; allowed: {allowed}")
        chosen[name] = text if name in words else _typed(name, text, known[name])
    if "data" in chosen and not (values | chosen).get("demo", True):
        raise ConfigError(f"config argument data={chosen['data']!r}; allowed: beside demo alone")
    return ConfigDict(values | chosen)


# how an error names what is allowed
WORDS = {bool: "True or False", int: "a whole number", float: "a number"}


def _typed(name: str, text: str, default: Any) -> Any:
    """Return an argument's text as a value of the default's type, or of the type itself."""
    kind = default if isinstance(default, type) else type(default)
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text or "True")
    except (ValueError, SyntaxError):
        value = text
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind:
        raise ConfigError(
            f"config argument {name}={text!r}; allowed: {WORDS.get(kind, kind.__name__)}"
        )
    return value
