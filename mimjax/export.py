"""Writes a run's weights as a file for PyTorch libraries, and proves that file.

  python -m mimjax.export --workdir=DIR --format=F --output=PATH [--step=N]
    [--weights=online|ema] [--pool=token|avg] [--image_size=512] [--decoder] [--overwrite]

What was written is loaded by the library it is meant for, and its features are compared with the
run's on the same images; a file that differs is not kept. `--format=list` prints which methods go
into which formats.
"""

from __future__ import annotations

import hashlib
import re

from absl import flags

from mimjax import cli
from mimjax.errors import ConfigError

LIBRARIES = {"timm": "mimjax[timm]", "transformers": "mimjax[torch]"}


def main() -> None:
    from mimjax.torch_io import formats

    f = flags.FLAGS
    if f.format == "list":
        print(formats.table())
        return
    for name in ("workdir", "output"):
        if f[name].value is None:
            raise ConfigError(f"--{name}: missing; allowed: see --help")
    formats.check_output(f.format, f.output)

    from mimjax.torch_io import proof, save

    job = make_export()
    with save.staged(f.output, f.overwrite) as path:
        job.write(path)
        count = len(job.tensors)
        found = proof.prove(job, path)
    print(f"{f.output}: {count} tensors, layout {job.layout} ({job.about['weights']} weights)")
    if not found.reader:
        library = job.kind.library
        package = LIBRARIES.get(library, library)
        print(f"written, not verified: install {package} (read back by mimjax: {found})")
    else:
        print(f"verified: {found}")
    for line in notes(job):
        print(f"note: {line}")
    print(f"next:\n{next_step(job, f.output)}")


def make_export():
    """What the flags ask for, with the run's parameters."""
    import jax
    import numpy as np

    from mimjax import trained
    from mimjax.torch_io import exporting, formats

    f = flags.FLAGS
    run = trained.open_run(f.workdir, f.step)
    method = exporting.method_of(run.program.task)
    # before anything is read
    formats.choose_layout(method, f.format, f.pool, f.decoder)
    whole = f.decoder or method == "discretevae"
    if f.weights == "ema":
        params = averaged(run, f.decoder)
    elif whole:
        params = run.state().params
    else:
        params = {"encoder": run.encoder()}
    text = run.workdir.read_text("config.json")
    return exporting.Export(
        run.program.task,
        jax.tree.map(np.asarray, params),
        f.format,
        f.pool,
        f.decoder,
        image_size(f.image_size),
        {
            "step": str(run.step),
            "weights": f.weights,
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
    )


def averaged(run, decoder: bool):
    """The moving average of the encoder.

    Raises:
      ConfigError: the method keeps none, or the decoder is asked for too.
    """
    if "encoder" not in run.program.abstract_state.ema:
        raise ConfigError(
            f"--weights: ema, but {run.config.task} as configured keeps no average of its encoder; "
            "allowed: online"
        )
    if decoder:
        raise ConfigError("--weights: ema with --decoder: only the encoder is averaged")
    return {"encoder": run.state().ema["encoder"]}


def image_size(text: str | None) -> tuple[int, int] | None:
    """"512" or "384x640" (height x width) in pixels.

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
    """What a user of the file has to know and cannot see in it."""
    out = []
    trained_on = f"normalize images with mean {list(job.task.mean)}, std {list(job.task.std)}"
    if job.is_encoder:
        out.append(f"{trained_on}; {job.carried[0].heads} heads")
    encoder = getattr(job.task, "encoder", None)
    fused = getattr(encoder, "fuse_layers", (-1,)) != (-1,) or getattr(encoder, "fuse_stages", 0)
    if fused and not job.decoder:
        out.append(
            "pretraining sums several blocks or stages before the final norm; as in fine-tuning, "
            "the features of this file are those of the last block"
        )
    if job.format == "timm" and job.pool == "token":
        out.append(
            "with global_pool='avg' timm drops this file's norm; for mean pooling export --pool=avg"
        )
    if job.format in ("detectron2", "mmseg"):
        out.append("without the final norm, which a pyramid of features does not use")
    return out


def next_step(job, output: str) -> str:
    """The next command to type."""
    from mimjax.torch_io import hub

    encoder = job.carried[0] if job.is_encoder else None
    if job.format == "timm":
        if not output.endswith(job.kind.suffixes):
            return f'model = timm.create_model("local-dir:{output}", pretrained=True)'
        name, args = job.timm
        unlike = {"num_classes": 0, "checkpoint_path": output, **hub.unlike_preset(name, args)}
        options = ", ".join(f"{k}={v!r}" for k, v in unlike.items())
        return f"model = timm.create_model({name!r}, {options})"
    if job.format == "hf":
        auto, more = {
            "vitmae_transformers": ("AutoModelForPreTraining", ""),
            "beit_transformers": ("BeitForMaskedImageModeling", ""),
            "vit_transformers": ("AutoModel", ", add_pooling_layer=False"),
        }.get(job.layout, ("AutoModel", ""))
        return f'model = transformers.{auto}.from_pretrained("{output}"{more})'
    if job.format == "convmae" and not job.decoder:
        module = "mimjax.torch_io.convmae_torch"
        return f'model = {module}.ConvMAE.from_file("{output}", heads={encoder.heads})'
    if job.format == "mmpretrain":
        return f"init_cfg=dict(type='Pretrained', checkpoint='{output}', prefix='backbone.')"
    if job.format == "mmseg":
        kind = "BEiT" if job.layout == "mmseg_beit" else "MAE"
        start = f"type='{kind}', num_heads={encoder.heads}, init_values={encoder.layer_scale or 1.0}"
        return f"backbone=dict({start}, init_cfg=dict(type='Pretrained', checkpoint='{output}'), ...)"
    if job.format == "detectron2":
        return f'train.init_checkpoint = "{output}"  # ViTDet, num_heads={encoder.heads}'
    return f"python -m mimjax.main --config=... --config.init_from={output}"


if __name__ == "__main__":
    cli.define_base_flags()
    flags.DEFINE_string("format", None, "timm, hf, mae, ...; list prints methods and formats.")
    flags.DEFINE_string("output", None, "File or folder to make; the suffix says which.")
    flags.DEFINE_integer("step", None, "Which checkpoint; without it the newest.")
    flags.DEFINE_enum("weights", "online", ["online", "ema"], "ema: the averaged encoder.")
    flags.DEFINE_enum("pool", "token", ["token", "avg"], "avg: the norm stands after mean pooling.")
    flags.DEFINE_string("image_size", None, "Resize positions for images of 512 or HxW pixels.")
    flags.DEFINE_bool("decoder", False, "Write every network of the run, not the encoder alone.")
    flags.DEFINE_bool("overwrite", False, "Replace an output that exists.")
    cli.run(main, required=("format",))
