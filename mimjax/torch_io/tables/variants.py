"""Names that another version or library gives to the same tensors, changed into those of a table.

transformers 5 names layers in memory (`model.state_dict()`) otherwise than in its files, timm names
DINOv2 and DINOv3 otherwise than the official code, and training programs put prefixes in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.published_vit import frequencies

State = dict[str, np.ndarray]


# ------------------------------------------------------------------ transformers
PATCHES = "embeddings.patch_embeddings."
# a block in memory: "layers.0." in front of the names of transformers' blocks
IN_MEMORY = re.compile(r"(^|\.)layers\.(\d+)\.(?=attention\.|layernorm_|mlp\.|lambda_|relative_)")
BLOCK = r"((?:encoder\.layer|decoder_layers|decoder_encoder\.layer)\.\d+\.)"
TABLE = "relative_position_bias.relative_position_bias_table"
# of all models, then of those whose blocks have no `layer_scale`
ATTENTION = [
    (rf"{BLOCK}attention\.q_proj\.", r"\1attention.attention.query."),
    (rf"{BLOCK}attention\.k_proj\.", r"\1attention.attention.key."),
    (rf"{BLOCK}attention\.v_proj\.", r"\1attention.attention.value."),
    (rf"{BLOCK}attention\.o_proj\.", r"\1attention.output.dense."),
    (rf"{BLOCK}{re.escape(TABLE)}", rf"\1attention.attention.{TABLE}"),
    (r"(^|\.)shared_position_bias\.", r"\1encoder.relative_position_bias."),
]
VIT = [
    (rf"{BLOCK}mlp\.fc1\.", r"\1intermediate.dense."),
    (rf"{BLOCK}mlp\.fc2\.", r"\1output.dense."),
    (rf"{BLOCK}norm1\.", r"\1layernorm_before."),  # Pixio's files
    (rf"{BLOCK}norm2\.", r"\1layernorm_after."),
]


def transformers_names(state: State) -> State:
    """Return the names that transformers' files have; other files are returned unchanged."""
    if not any(PATCHES in k for k in state):
        return state
    rules = ATTENTION + ([] if any("layer_scale1" in k for k in state) else VIT)

    def renamed(key: str) -> str:
        key = IN_MEMORY.sub(r"\1encoder.layer.\2.", key)
        key = re.sub(r"(^|\.)model\.(layer\.\d+\.)", r"\1\2", key)  # DINOv3
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        return re.sub(r"^data2vec_vision\.", "beit.", key)  # the same network

    state = {renamed(k): v for k, v in state.items()}
    # the two halves of a gated MLP in DINOv2, which its files have in one tensor
    gate, value = ".mlp.gate_proj.", ".mlp.up_proj."
    for key in [k for k in state if gate in k and k.startswith("encoder.layer.")]:
        parts = state.pop(key), state.pop(key.replace(gate, value))
        state[key.replace(gate, ".mlp.weights_in.")] = np.concatenate(parts)
    down = lambda k: k.startswith("encoder.layer.") and ".mlp.down_proj." in k
    return {
        k.replace(".down_proj.", ".weights_out.") if down(k) else k: v for k, v in state.items()
    }


# ------------------------------------------------------------------ DINOv2 and DINOv3
def dino_names(state: State) -> State:
    """Return the official names of DINOv2 and DINOv3 for timm's, and for files of training."""
    if "blocks.0.0.norm1.weight" in state:  # blocks in chunks, which keep their numbers
        state = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", k): v for k, v in state.items()}
    if {"cls_token", "reg_token", "blocks.0.gamma_1"} <= state.keys() and "pos_embed" not in state:
        names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
        if "blocks.0.mlp.fc1_g.weight" in state:
            names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
        state = {substituted(k, names): v for k, v in state.items()}
    first, second = (state.get(f"blocks.0.mlp.{n}.weight") for n in ("fc1", "fc2"))
    scaled = {"cls_token", "pos_embed", "blocks.0.ls1.gamma"} <= state.keys()
    if scaled and first is not None and second is not None and len(first) == 2 * second.shape[-1]:
        names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}  # both halves of a gated MLP
        state = {substituted(k, names): v for k, v in state.items()}
    if scaled and "reg_token" in state:
        state = {substituted(k, {"reg_token": "register_tokens"}): v for k, v in state.items()}
    return masked_biases(with_frequencies(state))


def substituted(key: str, names: dict[str, str]) -> str:
    """Return a key in which the parts `names` are replaced."""
    for old, new in names.items():
        key = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, key)
    return key


def masked_biases(state: State) -> State:
    """Return DINOv3's biases as its layers add them: a mask beside them leaves out those of k."""
    out = {k: v for k, v in state.items() if not k.endswith(".qkv.bias_mask")}
    for key in state.keys() - out.keys():
        name = key.removesuffix("_mask")
        out[name] = np.where(state[key] == 0, np.float32(0), state[name] * state[key])
    return out


def with_frequencies(state: State) -> State:
    """Return the periods that DINOv3's files hold as frequencies, [2, channels of a head]."""
    if "rope_embed.periods" not in state:
        return state
    rest = {k: v for k, v in state.items() if k != "rope_embed.periods"}
    periods = state["rope_embed.periods"]
    return rest | {"rope_embed.turns": frequencies(4 * len(periods), periods)}


# ------------------------------------------------------------------ prefixes
# names under which training programs and models hold an encoder
WRAPPERS = ("module", "model", "base_encoder", "encoder", "backbone", "net", "network", "_orig_mod")
WRAPPERS += ("target_encoder", "momentum_encoder", "online_encoder", "student", "teacher", "ema")
WRAPPERS += ("ijepa", "pixio", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_encoder")
# The first key of an encoder that a table knows
FIRST = ("patch_embed.proj.weight", "patch_embed1.proj.weight", "patch_embed.weight")
FIRST += (f"{PATCHES}projection.weight", f"{PATCHES}weight")
PREFIX = re.compile(rf"((?:(?:{'|'.join(WRAPPERS)})\.)+)(?:{'|'.join(map(re.escape, FIRST))})")


def prefixes(keys: Collection[str]) -> list[str]:
    """Return the prefixes, made of WRAPPERS, under which a file holds encoders, sorted."""
    return sorted({m[1] for k in keys if (m := PREFIX.fullmatch(k))})


def stripped(state: State, known: Callable[[Collection[str]], bool], where: str) -> State:
    """Return a state dict without the prefix of its encoder.

    Other keys stay as they are. A prefix is removed only if the table of no layout has it.

    Args:
      state: {key: array}.
      known: whether keys are those of a layout.
      where: name of the file, for errors.

    Raises:
      ConfigError: there are several encoders, or a key would stand there twice.
    """
    found = prefixes(state)
    if not found or known(state):
        return state
    if "momentum" in "".join(found) and len(found) == 2:  # MoCo: what is evaluated is the other
        found = [p for p in found if "momentum" not in p]
    if len(found) > 1:
        raise ConfigError(
            f"{where}: encoders under {', '.join(found)}; allowed: one of them, saved alone"
        )
    (prefix,) = found
    out = {k: v for k, v in state.items() if not k.startswith(prefix)}
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if twice := sorted(out.keys() & inner.keys()):
        raise ConfigError(
            f"{where}: {twice[0]} and {prefix}{twice[0]}; allowed: one encoder in a file"
        )
    return out | inner
