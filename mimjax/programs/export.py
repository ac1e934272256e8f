"""Write a run's weights as a file for PyTorch libraries, and verify that file.

  mimjax export --model=WORKDIR --format=FORMAT --output=PATH [--weights=online|ema]
    [--step=N] [--pool=token|avg] [--image_size=512] [--decoder] [--overwrite]
  mimjax export --format=list

The library that a file is meant for loads it, and its features are compared with the run's on the
same images; a file that differs is deleted. --overwrite replaces only an earlier export that nobody
changed. --format=list prints which encoders go into which formats.
"""

from __future__ import annotations

import hashlib
import re

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import cli, opening

REQUIRED = ("format",)
LIBRARIES = {"timm": "pip install 'mimjax[timm]'", "transformers": "pip install 'mimjax[torch]'"}


def define_flags() -> None:
    """Define all flags of the program."""
    cli.define_base_flags()
    flags.DEFINE_string("model", None, "Workdir of the run.")
    opening.define_weights_flag()
    flags.DEFINE_integer("step", None, "Which checkpoint; without it the newest.")
    flags.DEFINE_string("format", None, "timm, hf, mae, ...; list prints encoders and formats.")
    flags.DEFINE_string("output", None, "File or folder to make; the suffix says which.")
    flags.DEFINE_enum("pool", "token", ["token", "avg"], "avg: the norm stands after mean pooling.")
    flags.DEFINE_string("image_size", None, "Resize positions for images of 512 or HxW pixels.")
    flags.DEFINE_bool("decoder", False, "Write every network of the run, not the encoder alone.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier export wrote there, unchanged.")


def main() -> None:
    """Write and verify the file, or print the table of formats."""
    from mimjax.storage import outputs
    from mimjax.torch_io.write import formats

    f = flags.FLAGS
    if f.format == "list":
        print(formats.table())
        return
    if f.format not in formats.FORMATS:
        raise ConfigError(
            f"--format: {f.format!r}; allowed: {', '.join(formats.FORMATS)}, or list for the table"
        )
    for name in ("model", "output"):
        if f[name].value is None:
            raise ConfigError(f"--{name}: missing; allowed: see --help")
    formats.check_output(f.format, f.output)
    spare = {"the run": opening.workdir_of(f.model)}
    outputs.check(f.output, f.overwrite, spare=spare, hint="--overwrite")  # before anything is read
    print("\n".join(write(make_export(), f.output, f.overwrite)))


def write(job, output: str, overwrite: bool = False) -> list[str]:
    """Write the file, verify it and only then put it in its place.

    Returns:
      Lines that say what was made, how it was verified, and the next command.

    Raises:
      ConfigError: it cannot be written or is wrong; then nothing is left of it.
    """
    from mimjax.storage import outputs
    from mimjax.torch_io import verify

    with outputs.staged(output, overwrite) as path:
        job.write(path)
        found = verify.prove(job, path)
    about = f"{job.method}, step {job.about['step']}, {job.about['weights']} weights"
    lines = [f"{output}: {len(job.tensors)} tensors in the layout {job.layout!r} ({about})"]
    if found.verified:
        lines.append(f"verified: {found}")
    else:
        library = job.kind.library
        needed = f"{LIBRARIES.get(library, f'install {library}')} to load it in {library}"
        lines.append(
            f"written, not verified: {found.why or needed} (read back by mimjax alone: {found})"
        )
    lines += [f"note: {line}" for line in notes(job)]
    return [*lines, "next:", next_step(job, output)]


def make_export():
    """Return the export that the flags ask for, with the run's parameters."""
    import jax
    import numpy as np

    from mimjax.inference import own_files
    from mimjax.inference.encoders import EncoderAlone
    from mimjax.storage.classes import Classes
    from mimjax.task import Pretraining
    from mimjax.torch_io.write import classifier, export

    f = flags.FLAGS
    run = opening.read_run()
    options, head = (f.format, f.pool, f.decoder, image_size(f.image_size)), None
    found, task = run.task.classified, run.task
    if found and not isinstance(task, Pretraining):  # the encoder is none of its own
        module, mean, std = found.reader
        task = EncoderAlone(encoder=module, mean=mean or (), std=std or ())
    classes = Classes.read(run.workdir) if found else None
    blank = lambda x: np.broadcast_to(np.float32(0), x.shape)
    shapes = jax.tree.map(blank, run.abstract_state.params)
    if found:
        shapes, head = classifier.blank(found, run.abstract_state, run.abstract_frozen, classes)
    export.Export(task, shapes, *options, head=head).check()  # before anything is read
    whole = f.decoder or not isinstance(task, Pretraining)
    if found:
        averaged, state = run.takes_average(opening.asked_average()), run.state()
        params, frozen = state.ema if averaged else state.params, {}
        frozen = run.frozen() if task is not run.task else frozen
        params, head = classifier.of_run(found, params, state.model_state, frozen, classes)
        weights = "ema" if averaged else "online"
    else:
        params, weights = parameters(run, opening.asked_average(), whole)
    text = run.workdir.read_text("config.json")
    described = {"settings": own_files.describe(run.config)} if whole else {}
    return export.Export(
        task,
        jax.tree.map(np.asarray, params),
        *options,
        {
            "method": type(run.task).__name__.lower(),
            "step": str(run.step),
            "weights": weights,
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            **described,
        },
        run.config.data.augment.eval_crop,
        head,
    )


def parameters(run, ema: bool | None, whole: bool):
    """Return the parameters that are exported, and which these are, "online" or "ema".

    Args:
      ema: whether the moving average is asked for; None = what the run's evaluators read, but for
        networks of which no average is kept.
      whole: all networks, not the encoder alone.

    Raises:
      ConfigError: an average is asked for that there is not.
    """
    state = run.abstract_state
    lacking = [name for name in state.params if whole and name not in state.ema]
    if ema and "encoder" not in state.ema:
        raise ConfigError(
            f"--weights: ema, but {run.config.task} as configured keeps no average of its encoder; "
            "allowed: online"
        )
    if ema and lacking:
        raise ConfigError(
            f"--weights: ema with --decoder, but {', '.join(lacking)} are not averaged; allowed: "
            "online"
        )
    averaged = not lacking and run.takes_average(ema)
    if whole:
        params = run.state().ema if averaged else run.state().params
    else:
        params = {"encoder": run.encoder(averaged)}
    return params, "ema" if averaged else "online"


def image_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width in pixels from "512" or "384x640" (height x width).

    Raises:
      ConfigError: something else.
    """
    if not text:
        return None
    m = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if not m:
        raise ConfigError(f"--image_size: {text!r}; allowed: pixels, as 512 or 384x640 (HxW)")
    return int(m[1]), int(m[2] or m[1])


def notes(job) -> list[str]:
    """Return what a user of the file has to know and cannot see in it."""
    out = []
    if job.is_encoder:
        statistics = f"mean {list(job.task.mean)}, std {list(job.task.std)}"
        out.append(f"normalize images with {statistics}; {job.encoder.heads} heads")
    if job.is_encoder and job.encoder.fuses and not job.decoder:
        out.append(
            "pretraining sums several blocks or stages before the final norm; as in fine-tuning, "
            "the features of this file are those of the last block"
        )
    if job.head:
        names = job.head.names or ()
        said = f": {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else " by number"
        out.append(f"classifies {job.head.network.classes:,} classes{said}")
    elif job.format == "timm" and job.pool == "token":
        out.append(
            "with global_pool='avg' timm drops this file's norm; for mean pooling export --pool=avg"
        )
    height, width = job.written[0].image_size if job.is_encoder else (1, 1)
    if job.format == "hf" and height != width:
        out.append(
            f"transformers' processor squeezes images to {height}x{width}, where the run's "
            "evaluators crop them: crop images to that shape before it, or export at a square "
            "--image_size; mimjax.load crops as the run does"
        )
    if job.format in ("detectron2", "mmseg"):
        out.append("without the final norm, which a pyramid of features does not use")
    return out


def next_step(job, output: str) -> str:
    """Return the next command to type."""
    from mimjax.torch_io.write import settings

    weights = f"mimjax train --config=... --config.init_from={output}"
    if not job.is_encoder:
        return weights
    encoder = job.written[0]
    if job.format == "timm":
        if not output.endswith(job.kind.suffixes):
            return f'model = timm.create_model("local-dir:{output}", pretrained=True)'
        name, args = job.timm
        unlike = {"num_classes": 0, "checkpoint_path": output, **settings.unlike_preset(name, args)}
        options = ", ".join(f"{k}={v!r}" for k, v in unlike.items())
        return f"model = timm.create_model({name!r}, {options})"
    if job.format == "hf":
        known = {
            "vitmae_transformers": ("AutoModelForPreTraining", ""),
            "beit_transformers": ("BeitForMaskedImageModeling", ""),
            "vit_transformers": ("AutoModel", ", add_pooling_layer=False"),
        }
        auto, more = known.get(job.layout, ("AutoModel", ""))
        auto, more = ("AutoModelForImageClassification", "") if job.head else (auto, more)
        return f'model = transformers.{auto}.from_pretrained("{output}"{more})'
    if job.head:
        return f'model = mimjax.load("{output}"); model.classify(images, top=1)'
    if job.format == "convmae" and not job.decoder:
        module = "mimjax.torch_io.write.convmae_module"
        return f'model = {module}.ConvMAE.from_file("{output}", heads={encoder.heads})'
    if job.format == "mmpretrain":
        return f"init_cfg=dict(type='Pretrained', checkpoint='{output}', prefix='backbone.')"
    if job.format == "mmseg":
        kind = "BEiT" if job.layout == "mmseg_beit" else "MAE"
        start = f"num_heads={encoder.heads}, init_values={encoder.layer_scale or 1.0}"
        start = f"type='{kind}', {start}, norm_cfg=dict(type='LN', eps=1e-6)"
        weights = f"init_cfg=dict(type='Pretrained', checkpoint='{output}')"
        return f"backbone=dict({start}, {weights}, ...)"
    if job.format == "detectron2":
        return f'train.init_checkpoint = "{output}"  # ViTDet, num_heads={encoder.heads}'
    return f"mimjax train --config=... --config.init_from={output}"
