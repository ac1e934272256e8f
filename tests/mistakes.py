"""What people type wrongly: programs, arguments, and what the one line of the answer must name."""

import dataclasses
import os

from mimjax.errors import Exit

MAE, BOOT, CAE = (f"--config=configs/{name}.py:demo" for name in ("mae", "bootmae", "cae"))
SHORT = ["--config.steps=2", "--config.eval.probes=None", "--config.eval.error=None"]
SHORT += ["--config.eval.health=None", "--config.eval.pictures=None", "--config.batch_size=16"]
SHORT += ["--config.optimizer.schedule.warmup_steps=0"]
SHORT += ["--config.method.encoder.width=32", "--config.method.encoder.depth=2"]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One command, with {names} of the places that `test_bad_input.py` makes.

    Attributes:
      key: what the line must name.
      process: a process of its own; others run in the process of the tests.
      begun: the run had begun when it failed: what it wrote until then may stay.
      disk: writes to a small disk; where none can be mounted, files are limited in size instead.
      machine: not a setting is at fault, but a disk without any space.
      slow: much like another one, or one that trains; `make test` leaves it out.
    """

    program: str
    args: tuple[str, ...]
    key: str
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    devices: int = 8
    process: bool = False
    begun: bool = False
    disk: bool = False
    machine: bool = False
    slow: bool = False

    @property
    def alone(self) -> bool:
        """Whether it needs a process of its own: another platform, other devices, limited files."""
        return self.process or self.disk or bool(self.env) or self.devices != 8

    @property
    def code(self) -> Exit:
        """A setting is refused before anything is written; what goes wrong later is an error."""
        return Exit.ERROR if self.begun or self.machine else Exit.REFUSED


def main(key, *args, config=MAE, workdir="{new}", **options):
    """A mistake of training; it stands last, so that it wins over the shortening flags."""
    args = (config, *SHORT, *args, f"--workdir={workdir}")
    return Mistake("train", args, key, **options)


def typed(program, key, *args, **options):
    """A mistake of another program."""
    return Mistake(program, args, key, **options)


def look(program, key, *args, run="{run}", **options):
    """A mistake of a program that looks at a run."""
    return typed(program, key, f"--model={run}", *args, **options)


def folder(path):
    return ("--config.data.source=folder", f"--config.data.path={path}")


KEYS = {
    "mistyped key": main("config.method.encoder.widht", "--config.method.encoder.widht=3"),
    "unknown section": main("config.optimiser", "--config.optimiser.lr=3", slow=True),
    "mistyped flag": main("--wrkdir: no flag (did you mean --workdir?)", "--wrkdir=runs/a"),
    "override without dashes": main("config.steps=3", "config.steps=3"),
    "no workdir": typed("train", "--workdir: missing", MAE, process=True),
    "no such config": main("'configs/nothing.py'", config="--config=configs/nothing.py"),
    "config argument": main("size='xxl'", config="--config=configs/mae.py:size=xxl"),
    "unknown tokenizer": main(
        "tokenizer='dallee'", config="--config=configs/beit.py:tokenizer=dallee", slow=True
    ),
    "a folder of the config's name": main(
        "'{images}': is a folder", config="--config={images}", slow=True
    ),
    "two configs": main("'configs/mae.py:demo' and 'cae'", "--config=cae"),
    "no config": typed("train", "--config: missing", "--config.steps=3", "--workdir={new}"),
    "config that is no Python": main("{unfinished}, line 2: ", config="--config={unfinished}"),
    "config that writes after lock": main("{locked}, line 8: ", config="--config={locked}"),
    "config without get_config": main(
        "{empty_py}, line 1: the file has no function `get_config`", config="--config={empty_py}"
    ),
    "no such target": main(
        "config.method.code_target: 'dinoo'; allowed: CLIP, DallE, DINO",
        "--config.method.code_target=dinoo",
        config=CAE,
    ),
    "target of a module that fails": main(
        "{failing}", "--config.method.code_target={failing}:Mine", config=CAE, process=True
    ),
    "no such task": main("task: 'mae'", "--config.task=mae", slow=True),
}
VALUES = {
    "value of another type": main("config.batch_size", "--config.batch_size=many"),
    "image and patch": main("method.encoder.image_size", "--config.method.encoder.patch=3"),
    "heads and width": main("method.encoder.heads", "--config.method.encoder.heads=5"),
    "batch and accumulation": main("batch_size", "--config.accum=3", slow=True),
    "ratio above one": main("method.masking.ratio", "--config.method.masking.ratio=1.5", slow=True),
    "ratio that leaves nothing": main(
        "masking.ratio", "--config.method.masking.ratio=0.99", slow=True
    ),
    "unknown kind of mask": main(
        "method.masking.kind", "--config.method.masking.kind=blok", slow=True
    ),
    "injected layer": main(
        "method.pixel_layer", "--config.method.pixel_layer=9", config=BOOT, slow=True
    ),
    "two means for three channels": main("method.mean", "--config.method.mean=(0.5,0.5)"),
    "warm-up longer than the run": main(
        "optimizer.schedule.warmup", "--config.optimizer.schedule.warmup_steps=99"
    ),
    "negative warm-up": main(
        "optimizer.schedule.warmup_epochs: -1",
        "--config.optimizer.schedule.warmup_epochs=-1.0",
        slow=True,
    ),
    "negative rate": main("optimizer.lr: -1", "--config.optimizer.lr=-1.0", slow=True),
    "unknown schedule": main("optimizer.schedule", "--config.optimizer.schedule=poly", slow=True),
    "decay rule": main(
        "optimizer.decay: no rule", "--config.optimizer.decay=(('.*/bias',0.0),)", slow=True
    ),
    "broken rule": main("sharding: '('", "--config.sharding=(('(','fsdp'),)", slow=True),
    "negative epochs": main("epochs: -1", "--config.steps=None", "--config.epochs=-1.0"),
    "negative interval": main("eval.every: -5", "--config.eval.every=-5"),
    "no threads": main("data.threads: 0", "--config.data.threads=0", slow=True),
    "no checkpoint kept": main("keep_checkpoints: 0", "--config.keep_checkpoints=0", slow=True),
    "unknown dtype": main("dtype", "--config.dtype=float8", slow=True),
    "unknown answer to NaN": main("on_nonfinite: 'skip'", "--config.on_nonfinite=skip", slow=True),
    "no retry": main("on_nonfinite_retries: 0", "--config.on_nonfinite_retries=0", slow=True),
    "unknown board": main("boards.wandb.mode: 'on'", "--config.boards.wandb.mode=on", slow=True),
}
DEVICES = {
    "batch and devices": main(
        "batch_size: 12 is not divisible by devices 8", "--config.batch_size=12"
    ),
    "mesh that does not fit": main("mesh", "--config.mesh.fsdp=3"),
    "no GPU": main("JAX_PLATFORMS: 'cuda'", env={"JAX_PLATFORMS": "cuda"}),
    "no such platform": look(
        "reconstruct", "JAX_PLATFORMS: 'gpuu'", env={"JAX_PLATFORMS": "gpuu"}, slow=True
    ),
    "processes without an address": main("--coordinator", "--num_processes=2"),
    "address without a port": main(
        "--coordinator: 'node1'", "--coordinator=node1", "--num_processes=2", slow=True
    ),
    "process number": main(
        "--process_id: 5", "--coordinator=localhost:1", "--num_processes=2", "--process_id=5"
    ),
    "no cluster": main("--distributed=auto", "--distributed=auto", process=True),
    "topology": typed("plan", "h100:8", MAE, "--topology=h100:8", slow=True),
}
DATA = {
    "unknown source": main("data.source", "--config.data.source=digit", slow=True),
    "no path": main("data.path", "--config.data.source=folder", slow=True),
    "missing folder": main("data.path: '/no'", *folder("/no")),
    "file for a folder": main("{file}", *folder("{file}")),
    "empty folder": main("{empty}", *folder("{empty}"), slow=True),
    "no image can be read": main(
        "{broken}", *folder("{broken}"), "--config.batch_size=8", begun=True, slow=True
    ),
    "channels": main(
        "data.channels: 4", *folder("{images}"), "--config.data.channels=4", slow=True
    ),
    "share of bad files": main(
        "data.max_bad_fraction", "--config.data.max_bad_fraction=2.0", slow=True
    ),
    "statistics of nothing": typed("stats", "--config, --images", slow=True),
    "statistics of broken files": typed("stats", "{broken}", "--images={broken}"),
    "prepare: missing folder": typed(
        "prepare", "path: '/no'", "--path=/no", "--output={new}", slow=True
    ),
    "prepare: into its source": typed(
        "prepare", "{images}/small", "--path={images}", "--output={images}/small"
    ),
    "prepare: into a file": typed("prepare", "{file}", "--path={images}", "--output={file}"),
    "prepare: no number": typed(
        *("prepare", "--short_side", "--path={images}", "--output={new}", "--short_side=big")
    ),
}
WORKDIRS = {
    "workdir is a file": main("{file}", workdir="{file}"),
    "workdir that cannot be made": main("--workdir: /proc", workdir="/proc/mimjax/run"),
    "full disk": main("{full}/run", workdir="{full}/run", disk=True, machine=True),
    "disk too small for a checkpoint": main("{small}/run", workdir="{small}/run", disk=True),
    "disk full after some steps": main(
        "{tight}/run",
        *("--config.checkpoint_every=1", "--config.keep_checkpoints=9", "--config.steps=9"),
        workdir="{tight}/run",
        disk=True,
        begun=True,
        slow=True,
    ),
    "two runs on one workdir": main(
        f"in use by another run, process {os.getpid()} on", workdir="{held}", process=True
    ),
    "another method's workdir": main("task", config=BOOT, workdir="{run}"),
    "another depth": main(
        "method.encoder.depth", "--config.method.encoder.depth=3", workdir="{run}", slow=True
    ),
    "another target": main(
        "method.pixel_norm", "--config.method.pixel_norm=channel", workdir="{run}", slow=True
    ),
    "a store without its package": main(
        "--workdir: 'gs://bucket/run' needs gcsfs: pip install \"mimjax[gcs]\"",
        workdir="gs://bucket/run",
    ),
    "workdir on the web": main(
        "--workdir: 'https://h/run': nothing can be written", workdir="https://h/run", slow=True
    ),
    "mistyped store": main("--workdir: 'gs:/bucket/run'", workdir="gs:/bucket/run", slow=True),
    "resume: missing": main("resume: /no/workdir", "--config.resume=/no/workdir", slow=True),
    "resume: no workdir": main("{images}", "--config.resume={images}"),
}
WEIGHTS = {
    "init_from: missing": main(
        "/no/file.safetensors", "--config.init_from=/no/file.safetensors", slow=True
    ),
    "init_from: cut short": main("{cut}", "--config.init_from={cut}"),
    "init_from: another method": main("init_from: {run}", "--config.init_from={run}", config=BOOT),
    "no tokenizer": main("method.code_target.path: none", config=CAE),
    "no teacher": main(
        "method.pixel_target.path: none",
        "--config.method.pixel_target=EncoderFeatures",
        slow=True,
    ),
    "the old name of a teacher": main(
        "config.teacher.path: unknown; allowed: method.code_target.path",
        "--config.teacher.path=w.pth",
        config=CAE,
        slow=True,
    ),
    "an encoder's run as a tokenizer": main(
        "method.pixel_target.path: {run} ",
        "--config.method.pixel_target=DVAE",
        "--config.method.pixel_target.path={run}",
        slow=True,
    ),
    "a tokenizer's grid": main(
        "method.code_target.size",
        "--config.method.code_target.size=(12,12)",
        config=f"{CAE},path=random",
        slow=True,
    ),
    "teacher of no known layout": main(
        "method.code_target.path: {foreign}", config=f"{CAE},path={{foreign}}"
    ),
    "convert: foreign file": typed(
        "convert", "--model: {foreign}", MAE, "--model={foreign}", "--workdir={new}"
    ),
    "convert: cut short": typed(
        "convert", "{cut}", MAE, "--model={cut}", "--workdir={new}", slow=True
    ),
    "convert: no weights": typed(
        "convert", "{file}", MAE, "--model={file}", "--workdir={new}", slow=True
    ),
    "convert: heads not told": typed(
        *("convert", "--heads", MAE, "--model={headless}", "--workdir={new}"),
        "--image_size=8,8",
    ),
    "convert: workdir taken": typed(
        "convert", "{run} holds a run", MAE, "--model={headless}", "--workdir={run}"
    ),
}
LOOKS = {
    "reconstruct: no workdir": look("reconstruct", "{images}", run="{images}"),
    "reconstruct: no checkpoint": look("reconstruct", "{bare}", run="{bare}", slow=True),
    "reconstruct: broken checkpoint": look("reconstruct", "{unreadable}", run="{unreadable}"),
    "reconstruct: no such step": look("reconstruct", "--step: 99", "--step=99", process=True),
    "reconstruct: no image": look("reconstruct", "--count: 0", "--count=0", slow=True),
    "reconstruct: no PNG": look("reconstruct", "--output: 'x.jpg'", "--output=x.jpg"),
    "reconstruct: place": look(
        "reconstruct", "/proc/x.png", "--output=/proc/x.png", "--count=1", slow=True
    ),
    "reconstruct: broken image": look("reconstruct", "{broken}/0.jpg", "--images={broken}"),
    "attention: no such block": look("attention", "--layers: '9'", "--layers=9"),
    "attention: no such head": look("attention", "--show_heads: '9'", "--show_heads=9", slow=True),
    "attention: share": look("attention", "--mass=2", "--mass=2"),
    "export: format": look("export", "'onnx'", "--format=onnx", "--output={new}.pth"),
    "export: not this method": look(
        "export", "--format: beit", "--format=beit", "--output={new}.pth"
    ),
    "export: suffix": look("export", "{new}.bin", "--format=mae", "--output={new}.bin", slow=True),
    "export: output exists": look(
        "export", "{foreign}", "--format=safetensors", "--output={foreign}"
    ),
    "export: a folder of photographs": look(
        *("export", "{images} holds 0.png, which mimjax has no record of writing", "--format=hf"),
        *("--output={images}", "--overwrite"),
    ),
    "export: over its run": look(
        *("export", "{run} is the run", "--format=hf", "--output={run}", "--overwrite"), slow=True
    ),
    "plan: a file of the user": typed(
        *("plan", "--hlo: {file} exists, and mimjax", MAE, "--topology=cpu:1", "--hlo={file}"),
        slow=True,
    ),
    "reconstruct: a PNG of the user": look(
        *("reconstruct", "--output: {images}/0.png exists", "--output={images}/0.png"), slow=True
    ),
    "features: weights on a store": typed(
        *("features", "--model: 'gs://b/w.pth'", "--model=gs://b/w.pth", "--output=x.npz"),
        slow=True,
    ),
    "export: image size": look(
        *("export", "--image_size: 'big'", "--format=timm", "--output={new}.safetensors"),
        "--image_size=big",
        slow=True,
    ),
    "export: broken checkpoint": look(
        *("export", "{unreadable}", "--format=safetensors", "--output={new}.safetensors"),
        run="{unreadable}",
        slow=True,
    ),
}
MISTAKES = KEYS | VALUES | DEVICES | DATA | WORKDIRS | WEIGHTS | LOOKS
