"""Readers of exported files: the libraries that the files are for, and mimjax itself.

A reader takes an export, the path of its file or folder, normalized images [b h w c] and noise
[b n], loads the file, and returns the library's name and version and its outputs under the names of
`verify.features`. It raises ImportError if its library is missing, and ConfigError if the file does
not load completely. The outputs are compared in `verify.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.vit import ViT
from mimjax.rules import paths
from mimjax.torch_io.read import load
from mimjax.torch_io.write.export import Export

Outputs = dict[str, np.ndarray]
PyTree = Any


def read_back(export: Export, path: str) -> PyTree:
    """Return the networks of an exported file, read by mimjax.

    Raises:
      ConfigError: a tensor differs from the exported one, is missing, or is not part of the export.
    """
    state, like = load.read_file(export.weights_file(path)), export.trees
    where = f"--format: {export.format}"
    if unlike := sorted(state.keys() ^ export.tensors.keys()):
        raise ConfigError(
            f"{where}: {len(unlike)} keys differ between file and run: {', '.join(unlike[:20])}"
        )
    read = load.from_torch(state, like, export.layout, where)
    for name, a, b in zip(paths(like), jax.tree.leaves(like), jax.tree.leaves(read), strict=True):
        if not np.array_equal(np.asarray(a, np.float32), b, equal_nan=True):
            raise ConfigError(f"{where}: {name} is not the same when read back")
    return read


def imported(name: str) -> Any:
    """Return a library.

    Raises:
      ImportError: it is missing, or fails while it is imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:  # as where torchvision is of another build than torch
        raise ImportError(f"{name} cannot be imported here: {error}") from error


def channels_first(images: np.ndarray) -> Any:
    """Return images [b h w c] as a tensor [b c h w]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def read_timm(export: Export, path: str, images: np.ndarray, noise: np.ndarray):
    """Read a file by timm's `checkpoint_path`, or a folder by "local-dir:"; all keys must fit."""
    import torch

    timm = imported("timm")
    name, args = export.timm
    try:
        if path.endswith(export.kind.suffixes):
            options = {"num_classes": 0, "checkpoint_path": path} | args
            model: Any = timm.create_model(name, **options)
        else:
            model = timm.create_model(f"local-dir:{path}", pretrained=True)
            check_names(export, model.pretrained_cfg.get("label_names"), "timm")
    except RuntimeError as error:
        raise refused("timm", error) from None
    x = channels_first(images)
    with torch.no_grad():
        tokens, pooled = model.eval().forward_features(x), model(x)
    if export.head:
        out = {"logits": pooled}
    elif export.pool == "avg":
        out = {"raw": tokens, "pooled": pooled}
    else:
        out = {"tokens": tokens}
    return f"timm {timm.__version__}", numbers(out)


def read_transformers(export: Export, path: str, images: np.ndarray, noise: np.ndarray):
    """Read a folder by transformers; no key may be missing or unused."""
    import torch

    transformers = imported("transformers")
    layout = export.layout
    known = {
        "vitmae_transformers": (transformers.AutoModelForPreTraining, {}),
        "beit_transformers": (transformers.BeitForMaskedImageModeling, {}),
        "vit_transformers": (transformers.AutoModel, {"add_pooling_layer": False}),
    }
    auto, options = known.get(layout, (transformers.AutoModel, {}))
    if export.head:
        auto, options = transformers.AutoModelForImageClassification, {}
    model, info = auto.from_pretrained(path, output_loading_info=True, **options)
    if wrong := {k: sorted(map(str, v))[:4] for k, v in info.items() if v}:
        raise refused("transformers", wrong)
    if export.head:
        labels = model.config.id2label
        check_names(export, [labels.get(i) for i in range(len(labels))], "transformers")
    x = channels_first(images)
    with torch.no_grad():
        if export.head:
            out = {"logits": model.eval()(x).logits}
        elif layout == "vitmae_transformers":
            output = model.eval()(x, noise=torch.from_numpy(noise))
            rows = output.mask.bool()
            logits = output.logits[rows].view(len(x), -1, output.logits.shape[-1])
            out = {"prediction": logits, "loss": output.loss[None]}
        elif layout == "beit_transformers":
            out = {"logits": model.eval()(x).logits}
        else:
            output = model.eval()(x)
            pooled = layout.endswith("_pooled")
            out = {"raw" if pooled else "tokens": output.last_hidden_state}
            out |= {"pooled": output.pooler_output} if pooled else {}
    return f"transformers {transformers.__version__}", numbers(out)


def check_names(export: Export, found: Any, library: str) -> None:
    """Check that a library names the classes as the run does.

    Raises:
      ConfigError: it does not.
    """
    names = export.head.names if export.head else None
    if names is not None and found != list(names):
        raise refused(library, f"its classes are {found}, they were {list(names)}")


def read_convmae(export: Export, path: str, images: np.ndarray, noise: np.ndarray):
    """Read a file by mimjax's PyTorch module, `write.convmae_module`."""
    import torch

    from mimjax.torch_io.write.convmae_module import ConvMAE

    model = ConvMAE.from_file(path, heads=export.written[0].heads).eval()
    with torch.no_grad():
        tokens = model(channels_first(images))
    return f"torch {torch.__version__} (convmae_torch)", numbers({"tokens": tokens})


def read_mmpretrain(export: Export, path: str, images: np.ndarray, noise: np.ndarray):
    """Read a file by mmpretrain's backbone, whose keys have the prefix "backbone."."""
    import torch
    from mmpretrain.models.backbones.beit import BEiTViT
    from mmpretrain.models.backbones.vision_transformer import VisionTransformer

    encoder, pooled = export.written[0], export.pool == "avg"
    options = {
        "img_size": tuple(encoder.image_size),
        "patch_size": encoder.patch,
        "in_channels": export.channels,
        "out_type": "avg_featmap" if pooled else "raw",
        "final_norm": not pooled,
        "arch": mm_arch(encoder),
    }
    if export.layout.startswith("mmpretrain_beit"):
        options |= {
            "use_abs_pos_emb": encoder.pos_embed != "none",
            "use_rel_pos_bias": encoder.rel_pos == "per_block",
            "layer_scale_init_value": encoder.layer_scale or 0.0,
        }
        model = BEiTViT(**options)
    else:
        model = VisionTransformer(**options)
    state = torch.load(path, weights_only=True)["state_dict"]
    load_mm(model, {k.removeprefix("backbone."): v for k, v in state.items()}, ())
    model.eval()  # returns nothing
    with torch.no_grad():
        out = model(channels_first(images))[-1]
    return f"mmpretrain {version('mmpretrain')}", numbers({"pooled" if pooled else "tokens": out})


def mm_arch(encoder: ViT) -> dict[str, int]:
    """Return an encoder's sizes under OpenMMLab's names."""
    return {
        "embed_dims": encoder.width,
        "num_layers": encoder.depth,
        "num_heads": encoder.heads,
        "feedforward_channels": int(encoder.width * encoder.mlp_ratio),
    }


def read_mmseg(export: Export, path: str, images: np.ndarray, noise: np.ndarray):
    """Read a file by mmseg's MAE or BEiT."""
    import torch
    from mmseg.models.backbones.beit import BEiT
    from mmseg.models.backbones.mae import MAE

    encoder = export.written[0]
    sizes = mm_arch(encoder)
    beit = export.layout == "mmseg_beit"
    make: Any = BEiT if beit else MAE  # the types that mmseg annotates are too narrow
    model = make(
        img_size=tuple(encoder.image_size),
        patch_size=encoder.patch,
        in_channels=export.channels,
        embed_dims=sizes["embed_dims"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_heads"],
        mlp_ratio=int(encoder.mlp_ratio),
        out_indices=(encoder.depth - 1,),
        init_values=encoder.layer_scale or 1.0,
        norm_cfg={"type": "LN", "eps": 1e-6},
    )
    state = torch.load(path, weights_only=True)["state_dict"]
    # MAE's relative tables are its own and begin at zero; without layer scales so do these, at one
    fresh = () if beit else ("relative_position_bias_table",)
    load_mm(model, state, fresh if encoder.layer_scale else (*fresh, "gamma_1", "gamma_2"))
    model.eval()
    with torch.no_grad():
        maps = model(channels_first(images))[-1]
    patches = maps.flatten(2).transpose(1, 2)
    return f"mmsegmentation {version('mmsegmentation')}", numbers({"patches": patches})


def load_mm(model: Any, state: dict[str, Any], fresh: tuple[str, ...]) -> None:
    """Load a state dict into a model of OpenMMLab; no key may be unused.

    Args:
      model: torch module.
      state: {key: tensor}.
      fresh: ends of the names that the file may lack.

    Raises:
      ConfigError: another key is missing, a key is unused, or a shape differs.
    """
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise refused("OpenMMLab", error) from None
    buffers = "relative_position_index"
    missing = [k for k in missing if not k.endswith((*fresh, buffers))]
    if missing or unexpected:
        raise refused("OpenMMLab", f"missing {missing[:4]}, unexpected {unexpected[:4]}")


def refused(library: str, reason: Any) -> ConfigError:
    """Return the error of a file that a library cannot load."""
    text = " ".join(str(reason).split())[:400]
    return ConfigError(f"--format: {library} does not load the file, it was not kept: {text}")


def numbers(outputs: dict[str, Any]) -> Outputs:
    """Return tensors as float32 arrays."""
    return {k: v.detach().float().numpy() for k, v in outputs.items()}


Reader = Callable[[Export, str, np.ndarray, np.ndarray], tuple[str, Outputs]]
READERS: dict[str, Reader] = {
    "timm": read_timm,
    "transformers": read_transformers,
    "torch": read_convmae,
    "mmpretrain": read_mmpretrain,
    "mmseg": read_mmseg,
}
