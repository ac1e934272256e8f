"""Files that are broken, hostile or half precise: one line each, and no memory for empty claims."""

import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mimjax.errors import ConfigError
from mimjax.torch_io.read import detect, load

X = np.linspace(-3, 3, 4096, dtype=np.float32).reshape(64, 64)


def header(entries, data=b"\0" * 16, length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "absurd size": header({"a": entry([10**12], 0, 4 * 10**12)}),
    "overflowing size": header({"a": entry([2**40, 2**40], 0, 16)}),
    "shape and bytes differ": header({"a": entry([2], 0, 16)}),
    "overlap": header({"a": entry([4], 0, 16), "b": entry([2], 4, 12)}),
    "cut short": header({"a": entry([4], 0, 16)}, b"\0" * 7),
    "huge header": header({}, length=2**60),
    "no header": b"abc",
    "empty": b"",
    "unknown type": header({"a": entry([4], 0, 16, "Q99")}),
}


@pytest.mark.parametrize("data", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors(data, tmp_path):
    refused(tmp_path / "f.safetensors", data, "cannot be read .* copy or download it again")


def test_eight_bit_floats(tmp_path):
    data = header({"a": entry([16], 0, 16, "F8_E4M3")})
    refused(tmp_path / "f.safetensors", data, "numbers of type float8_e4m3fn; allowed: float32")


def refused(path, data, match):
    """Check that one line, which begins with the file, refuses it before memory is asked for."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=match) as e:
            load.read_file(str(path))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert str(e.value).startswith(str(path))
    assert "\n" not in str(e.value)


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "whole.pth", **options)
    return (tmp_path / "whole.pth").read_bytes()


def test_broken_archives(tmp_path):
    data = saved(tmp_path, {"model": {"a": torch.tensor(X)}})
    old = saved(tmp_path, {"a": torch.tensor(X)}, _use_new_zipfile_serialization=False)
    again = "copy or download it again"
    for broken in (data[:3000], data[:9], b"", b"no checkpoint " * 100, old[:-10], old[:100]):
        refused(tmp_path / "f.pth", broken, again)
    flipped = bytearray(data)
    flipped[data.index(X.tobytes()[:64]) + 5] ^= 255  # torch itself reads this without a word
    refused(tmp_path / "f.pth", bytes(flipped), f"checksum .* is wrong; .*{again}")
    refused(tmp_path / "f.pth", saved(tmp_path, [1, 2]), "holds a list; allowed: a state dict")


def test_zip_bombs(tmp_path):
    """An archive that grows, and one number that claims to be a trillion."""
    saved(tmp_path, {"a": torch.tensor(X)})
    with zipfile.ZipFile(tmp_path / "whole.pth") as source:
        names = source.namelist()
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in names:
                big = name.endswith("data/0")
                bomb.writestr(name, b"\0" * (64 << 20) if big else source.read(name))
    data = (tmp_path / "bomb.pth").read_bytes()
    assert len(data) < 1 << 20
    refused(tmp_path / "f.pth", data, "bytes that unpack to 67,.*; allowed: at most 4 times")
    for x in (torch.zeros(1).expand(10**12), torch.zeros(1).half().expand(10**6, 10**6)):
        data = saved(tmp_path, {"model": {"a.weight": x}})
        refused(tmp_path / "f.pth", data, "tensors of .* bytes in a file of .*a.weight has shape")
    sparse = saved(tmp_path, {"a": torch.eye(3).to_sparse()})
    refused(tmp_path / "f.pth", sparse, "a is sparse or quantized; allowed: dense tensors")


def test_half_precision_becomes_float32(tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        save_file({"a": X.astype(dtype)}, tmp_path / "f.safetensors")
        out = load.read_file(str(tmp_path / "f.safetensors"))["a"]
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, X.astype(dtype).astype(np.float32))
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({"a": torch.tensor(X).to(dtype)}, tmp_path / "f.pth")
        out = load.read_file(str(tmp_path / "f.pth"))["a"]
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, torch.tensor(X).to(dtype).float().numpy())


WEIGHTS = {"a": torch.tensor(X)}
OTHER = {"a": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"net": WEIGHTS, "optimizer": {"state": {0: OTHER}}, "epoch": 3}, ""),
        ({"model_ema": WEIGHTS}, ""),
        ({"model": {}, "state_dict": WEIGHTS}, ""),
        ({"student": OTHER, "teacher": WEIGHTS}, ""),
        ({"state_dict": WEIGHTS, "model": OTHER}, "state dicts under model, state_dict; allowed"),
        ({"net": WEIGHTS, "other": OTHER}, "no state dict at its top, but net, other; allowed"),
        ({"model": {"state_dict": WEIGHTS}}, "no state dict at its top, but model; allowed"),
        ({}, "no state dict at its top, but nothing; allowed"),
    ],
)
def test_a_pth_file_has_one_state_dict(content, match, tmp_path):
    """It has a known name, or is the only one; of two none is taken in silence."""
    torch.save(content, tmp_path / "f.pth")
    if match:
        with pytest.raises(ConfigError, match=match) as error:
            load.read_file(str(tmp_path / "f.pth"))
        assert "\n" not in str(error.value)
    else:
        np.testing.assert_array_equal(load.read_file(str(tmp_path / "f.pth"))["a"], X)


@pytest.mark.parametrize(
    ("key", "dtype", "match"),
    [
        ("base_model.model.encoder.query.lora_A.weight", np.float32, "lora_A.weight is of an adap"),
        ("blocks.0.attn.qkv.weight", np.int8, "attn.qkv.weight is quantized"),
        ("encoder.layer.0.output.dense.qweight", np.int32, "dense.qweight is quantized"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_adapters_and_quantized_weights(key, dtype, match, kind, tmp_path):
    path = tmp_path / f"model.{kind}"
    tensors = {"norm.weight": np.ones(4, np.float32), key: np.ones((4, 4), dtype)}
    if kind == "pth":
        torch.save({"model": {k: torch.tensor(x) for k, x in tensors.items()}}, path)
    else:
        save_file(tensors, path)
    with pytest.raises(ConfigError, match=match) as error:
        load.read_file(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_shards_and_two_layouts(tmp_path):
    with pytest.raises(
        ConfigError, match="a list of shards, which are not read; allowed: one file"
    ):
        load.read_file(str(tmp_path / "model.safetensors.index.json"))
    with pytest.raises(ConfigError, match="one of several shards, which are not read; allowed"):
        load.read_file(str(tmp_path / "model-00001-of-00007.safetensors"))
    mae = {"cls_token", "blocks.0.attn.qkv.bias", "vit.embeddings.cls_token"}
    with pytest.raises(
        ConfigError, match="f: keys of two layouts, 'vitmae_transformers' and 'mae'"
    ):
        detect.detect(mae, "f: ")
