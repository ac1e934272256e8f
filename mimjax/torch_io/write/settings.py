"""JSON settings beside exported weights: config.json of timm and transformers.

Each config states the number of attention heads, which cannot be derived from the weights: CAE's
small encoders have 12 where timm's presets have 3 and 6, so the keys would match and the features
would be wrong. The weights are written by `export.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mimjax.errors import ConfigError
from mimjax.losses import LN_EPS, MSE
from mimjax.methods.mim import MIM
from mimjax.models.vit import ViT
from mimjax.schema import brief
from mimjax.torch_io.write.classifier import Learned

Settings = dict[str, Any]
# timm's presets by (width, depth, heads, patch); other sizes use the first preset with settings
TIMM_VIT = {
    (768, 12, 12, 16): "vit_base_patch16_224",
    (192, 12, 3, 16): "vit_tiny_patch16_224",
    (384, 12, 6, 16): "vit_small_patch16_224",
    (1024, 24, 16, 16): "vit_large_patch16_224",
    (1280, 32, 16, 14): "vit_huge_patch14_224",
}
TIMM_BEIT = {
    (768, 12, 12, 16): "beit_base_patch16_224",
    (1024, 24, 16, 16): "beit_large_patch16_224",
}
# settings of the presets besides their sizes
PRESET: Settings = {"img_size": [224, 224], "in_chans": 3, "mlp_ratio": 4.0}
VIT_PRESET = PRESET | {"init_values": None, "pos_embed": "learn", "global_pool": "token"}
BEIT_PRESET = PRESET | {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "global_pool": "avg"}
RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
SIZES = ("embed_dim", "depth", "num_heads", "patch_size")


def timm_model(encoder: ViT, beit: bool, pool: str, channels: int) -> tuple[str, Settings]:
    """Return the name of a timm model and all its settings.

    Args:
      encoder: the exported encoder, with the positions that are in the file.
      beit: whether the model is timm's Beit and not its VisionTransformer.
      pool: "token" or "avg".
      channels: number of image channels.
    """
    sizes = encoder.width, encoder.depth, encoder.heads, encoder.patch
    presets = TIMM_BEIT if beit else TIMM_VIT
    name = presets.get(sizes, next(iter(presets.values())))
    args: Settings = {
        "img_size": list(encoder.image_size),
        "in_chans": channels,
        **dict(zip(SIZES, sizes, strict=True)),
        "mlp_ratio": encoder.mlp_ratio,
        # timm drops a None, and Beit's presets have layer scales
        "init_values": encoder.layer_scale or (0.0 if beit else None),
        "global_pool": pool,
    }
    if beit:
        args["use_abs_pos_emb"] = encoder.pos_embed != "none"
        args["use_rel_pos_bias"] = encoder.rel_pos != "none"
    else:
        args["pos_embed"] = "none" if encoder.pos_embed == "none" else "learn"
    return name, args


def unlike_preset(name: str, args: Settings) -> Settings:
    """Return the settings in which a model differs from its preset; a call must state them."""
    beit = name.startswith("beit")
    sizes = next(k for k, v in (TIMM_BEIT if beit else TIMM_VIT).items() if v == name)
    preset = dict(zip(SIZES, sizes, strict=True)) | (BEIT_PRESET if beit else VIT_PRESET)
    preset["num_classes"] = 1000
    if beit:
        preset["init_values"] = 1e-5 if "large" in name else 0.1
    return {k: v for k, v in args.items() if k not in preset or preset[k] != v}


class Images(NamedTuple):
    """How a run brings images to its encoder outside of training.

    Attributes:
      mean, std: statistics, one number per channel.
      resample: name of the filter, a key of RESAMPLE.
      crop: side of the center crop relative to the resized image (`data.augment.eval_crop`).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bicubic"
    crop: float = 1.0


def timm_head(head: Learned, beit: bool) -> Settings:
    """Return the settings of a timm model that are its classifier's."""
    out: Settings = {"num_classes": head.network.classes, "global_pool": head.pool}
    if head.network.mean:  # timm moves the norm behind the pooling otherwise
        out["use_fc_norm" if beit else "fc_norm"] = False
    return out


def timm_config(name: str, args: Settings, images: Images, head: Learned | None = None) -> Settings:
    """Return config.json of a folder that `timm.create_model("local-dir:...")` reads.

    Args:
      name, args: see `timm_model`.
      images: the run's.
      head: its classifier, if any.
    """
    args = dict(args)
    classes = args.pop("num_classes", 0)
    names = {"label_names": list(head.names)} if head and head.names else {}
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": args["embed_dim"],
        "global_pool": args["global_pool"],
        **names,
        "model_args": args,
        "pretrained_cfg": {
            "num_classes": classes,
            "input_size": [args["in_chans"], *args["img_size"]],
            "pool_size": None,
            "crop_pct": images.crop,
            "crop_mode": "center",
            "interpolation": images.resample,
            "fixed_input_size": True,
            "mean": list(images.mean),
            "std": list(images.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def hf_config(encoder: ViT, layout: str, channels: int) -> Settings:
    """Return config.json for transformers' AutoModel.

    Args:
      encoder: the exported encoder.
      layout: a layout of transformers.
      channels: number of image channels.

    Raises:
      ConfigError: the images are not square and the class is transformers' BEiT, whose positions
        are then wrong (it takes absolute ones for square and mixes up the axes of relative ones).
    """
    height, width = encoder.image_size
    kind = {"vit_transformers": "ViT", "vitmae_transformers": "ViTMAE"}.get(layout, "Beit")
    out: Settings = {
        "model_type": {"ViT": "vit", "ViTMAE": "vit_mae", "Beit": "beit"}[kind],
        "architectures": [f"{kind}Model"],
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": LN_EPS,  # the library's default is 1e-12
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch,
        "num_channels": channels,
    }
    if kind != "Beit":
        return out | {"qkv_bias": True}
    if height != width:
        raise ConfigError(
            "--format: hf writes transformers' BEiT class, whose positions are those of square "
            f"images only, not of {height}x{width}; allowed: timm, or a square --image_size"
        )
    return out | {
        "use_mask_token": False,
        "use_absolute_position_embeddings": encoder.pos_embed != "none",
        "use_relative_position_bias": encoder.rel_pos == "per_block",
        "use_shared_relative_position_bias": encoder.rel_pos == "shared",
        "layer_scale_init_value": encoder.layer_scale or 0.0,
        "drop_path_rate": 0.0,
        "use_mean_pooling": not layout.endswith(("_bare", "_token")),
    }


def hf_head(head: Learned, layout: str) -> Settings:
    """Return the settings of a class for classification that are added to the encoder's.

    Args:
      head: the run's classifier.
      layout: of BEiT, or of the ViT whose keys begin with "vit.".
    """
    kind = ("vit", "ViT") if layout == "vitmae_transformers" else ("beit", "Beit")
    names = {"model_type": kind[0], "architectures": [f"{kind[1]}ForImageClassification"]}
    return names | head.labels


def hf_mae(task: MIM) -> Settings:
    """Return the settings of ViTMAEForPreTraining that are added to the encoder's.

    Args:
      task: the run's, whose one network behind the encoder is a decoder as MAE's.

    Raises:
      ConfigError: what the decoder learns, or from what, is not what the class computes.
    """
    (term,) = task.terms.values()
    target: Any = task.targets[term.target]
    decoder = task.network(term.network)
    # pixels alone have such a norm
    known = getattr(target, "norm", "") in ("none", "patch")
    same = (term.at, term.loss, term.normalize) == ("masked", MSE(), "none")
    if not (known and same and task.masking.weights == "none") or task.encoder.use_mask_token:
        raise ConfigError(
            "--decoder: transformers' ViTMAE predicts pixels, plain or normalized per patch, of "
            f"masked patches from visible ones, by their mean squared error; the run has "
            f"{brief(target)}, {brief(term)}, {brief(task.masking)}, use_mask_token "
            f"{task.encoder.use_mask_token}; allowed: without --decoder"
        )
    patches, ratio = task.encoder.num_patches, task.num_masked / task.encoder.num_patches
    # the class computes int(patches * (1 - ratio)) visible patches, which may round differently
    if int(patches * (1 - ratio)) != patches - task.num_masked:
        ratio = 1 - (patches - task.num_masked + 0.5) / patches
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": int(decoder.width * decoder.mlp_ratio),
        "mask_ratio": ratio,
        "norm_pix_loss": target.norm == "patch",
    }


def hf_pretraining_beit(task: MIM) -> Settings:
    """Return the settings of BeitForMaskedImageModeling that are added to the encoder's.

    Args:
      task: the run's, whose one network behind the encoder is a linear head.

    Raises:
      ConfigError: the head predicts something else than scores of codes.
    """
    (term,) = task.terms.values()
    if term.loss.kind == "vectors":
        raise ConfigError(
            "--decoder: transformers' BEiT predicts codes of a tokenizer; the run has "
            f"{brief(task.targets[term.target])}, {brief(term)}; allowed: without --decoder"
        )
    vocabulary = task.network(term.network).out
    return {
        "architectures": ["BeitForMaskedImageModeling"],
        "vocab_size": vocabulary,
        "use_mask_token": True,
        "use_mean_pooling": True,  # the final norm is then outside of the model, beside its head
    }


def hf_processor(encoder: ViT, images: Images) -> Settings:
    """Return preprocessor_config.json: the run's center crop, in the class that can describe it.

    The short side is resized and the middle is cropped (transformers rounds its place down, so that
    it may be one pixel off). No class covers a rectangle: images are then squeezed into it.
    """
    height, width = encoder.image_size
    size: Settings = {"height": height, "width": width}
    square = height == width
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(images.mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": int(height / images.crop)} if square else size,
        "resample": RESAMPLE[images.resample],
        "do_center_crop": square,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
