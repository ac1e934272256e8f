"""The reader of HLO, and what the compiled step sends between eight devices."""

import helpers
import pytest

from mimjax.errors import ConfigError
from mimjax.programs import plan
from mimjax.run.config_files import import_config
from mimjax.storage import settings
from mimjax.train import hlo

bootmae, mae = import_config("bootmae"), import_config("mae")

LOOP = """HloModule jit_step, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %y = f32[] constant(2)
  %r = (f32[8,4]{1,0:T(8)}, /*index=1*/f32[]) all-reduce(%x, %y), metadata={op_name="a (b)"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %g)
}

%condition (arg: (s32[], f32[8,4])) -> pred[] {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  ROOT %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body
}
"""

ASYNC = """HloModule m

%all-reduce-scatter (p: bf16[16,4]) -> bf16[2,4] {
  %p = bf16[16,4]{1,0} parameter(0)
  %all-reduce.9 = bf16[16,4]{1,0} all-reduce(%p), to_apply=%sum
  ROOT %slice = bf16[2,4]{1,0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={2,4}
}

%wrapped (q: u8[8]) -> u8[8] {
  %q = u8[8]{0} parameter(0)
  ROOT %all-to-all.1 = u8[8]{0} all-to-all(%q), dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %start = f32[4]{0} all-reduce-start(%x), to_apply=%sum
  %done = f32[4]{0} all-reduce-done(%start)
  %gs = (f32[4]{0}, f32[32]{0}) all-gather-start(%done), dimensions={0}
  %gd = f32[32]{0} all-gather-done(%gs)
  %cs = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)
  %cd = f32[4]{0} collective-permute-done(%cs)
  %y = bf16[16,4]{1,0} constant({...})
  %all-reduce-scatter.5 = bf16[2,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
  %z = u8[8]{0} constant({...})
  %as = ((u8[8]{0}), u8[8]{0}, u32[]) async-start(%z), calls=%wrapped
  ROOT %ad = u8[8]{0} async-done(%as), calls=%wrapped
}
"""


def test_loops_multiply():
    (found,) = hlo.collectives(LOOP)
    assert (found.kind, found.times, found.source) == ("all-reduce", 3, "a (b)")
    assert [str(s) for s in found.operands] == ["f32[8,4]", "f32[]"]
    assert found.bytes == 3 * (8 * 4 * 4 + 4)


def test_the_compilers_trip_count_wins():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"12"}}'
    (found,) = hlo.collectives(LOOP.replace("body=%body", noted))
    assert found.times == 12


def test_an_unknown_trip_count_is_not_guessed():
    (found,) = hlo.collectives(LOOP.replace("constant(3)", "parameter(1)"))
    assert found.times == 0


def test_asynchronous_pairs_count_once():
    found = {c.kind: c for c in hlo.collectives(ASYNC)}
    sizes = {kind: c.bytes for kind, c in found.items()}
    assert sizes == {
        "all-reduce": 16,
        "all-gather": 128,  # the whole array
        "collective-permute": 16,
        "reduce-scatter": 16 * 4 * 2,
        "all-to-all": 8,
    }
    assert len(hlo.collectives(ASYNC)) == 5


CHAIN = """HloModule m

%start (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,4]{1,0} all-gather(%p), frontend_attributes={chain_id="7"}
}

%middle (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,4]{1,0} all-gather(%p), frontend_attributes={chain_id="7"}
}

%other (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[16,4]{1,0} all-gather(%p), frontend_attributes={chain_id="8"}
}

ENTRY %main (x: bf16[2,4]) -> bf16[16,4] {
  %x = bf16[2,4]{1,0} parameter(0)
  %a = bf16[16,4]{1,0} fusion(%x), kind=kCustom, calls=%start
  %b = bf16[16,4]{1,0} fusion(%x), kind=kCustom, calls=%middle
  ROOT %c = bf16[16,4]{1,0} fusion(%x), kind=kCustom, calls=%other
}
"""


def test_fusions_that_share_a_collective_count_it_once():
    found = hlo.collectives(CHAIN)
    assert [(c.name, c.chain, c.bytes) for c in found] == [
        ("all-gather.1", "7", 128),
        ("all-gather.3", "8", 128),
    ]


def test_types():
    assert [
        s.bytes for s in hlo.shapes("(pred[3], bf16[2,2]{1,0}, s4[4], f8e4m3fn[5], token[])")
    ] == [
        3,
        8,
        2,
        5,
    ]
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.collectives("nothing")


CASES = [
    ("mae", 1),
    ("mae", 4),
    ("bootmae", 1),
    ("beit", 4),
    ("mcmae", 4),
    ("mrmae", 1),
]  # method, accum


def small(config, **overrides):
    """A demo of one block per network."""
    c = config.get_config("demo")
    c.method.encoder.depth = 1 + max(0, *c.method.encoder.get("fuse_layers", [0]))
    for name in ("decoder", "pixel_decoder", "feature_decoder"):
        if name in c.method:
            c.method[name].depth = 1
    c.update_from_flattened_dict(overrides)
    return c


def planned(c, monkeypatch, topology="cpu:8", limit=None):
    from mimjax import sharding

    if limit is not None:
        monkeypatch.setattr(sharding, "SMALL", limit)
    report, text = plan.analyze(c, topology)
    return report, {v["name"]: v for v in report["verdicts"]}, text


@pytest.mark.parametrize("case", helpers.gated(CASES, CASES[:2]), ids=str)
def test_data_parallel_moves_gradients_only(case, monkeypatch):
    """Gradients move once per update: micro-batches are summed on each device."""
    name, accum = case
    c = small(import_config(name), accum=accum)
    for section in helpers.sections(c.method):
        if "path" in section:
            section.path = "random"
    report, verdicts, text = planned(c, monkeypatch)
    assert all(v["ok"] for v in verdicts.values()), verdicts
    (row,) = report["collectives"]
    assert row["kind"] == "all-reduce"
    assert 4 * report["parameters"] <= row["bytes"] <= 1.02 * 4 * report["parameters"]
    flops = report["flops"]  # XLA counts the body of a loop once
    assert accum * flops["xla_per_image"] > flops["products_per_image"] > 0
    assert "all-reduce" in plan.describe(report)
    assert text.startswith("HloModule")


@pytest.mark.parametrize("accum", [1, helpers.gate(2)])
def test_fsdp_moves_gradients_and_parameters_only(accum, monkeypatch):
    c = small(bootmae, **{"mesh.fsdp": 4, "accum": accum})
    report, verdicts, _ = planned(c, monkeypatch, limit=0)
    assert report["mesh"] == {"data": 2, "fsdp": 4}
    assert {r["kind"] for r in report["collectives"]} >= {"all-gather"}
    assert all(v["ok"] for v in verdicts.values()), verdicts


def test_activations_are_told_from_parameters():
    program = plan.make(small(mae), plan.find_devices("cpu:8")[0])
    one = lambda dims: hlo.Collective("all-gather", "g", (hlo.Shape("f32", dims),), (), 1)
    assert plan.activations(program, 128, 1, [one((16, 5, 96))])
    assert plan.activations(program, 128, 1, [one((128, 7))])
    assert not plan.activations(program, 96, 1, [one((96, 384))])  # the kernel of an mlp
    assert not plan.activations(program, 128, 1, [one(())])


@pytest.mark.parametrize("topology", ["", "cpu", "cpu:0", "v5e", "v5e:x", "v99:2x2", "gpu:8"])
def test_unknown_topologies(topology):
    with pytest.raises(ConfigError, match="allowed: for example v5e:16x16"):
        plan.find_devices(topology)


def test_missing_libtpu(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    with pytest.raises(ConfigError, match=r"v5e:16x16 needs libtpu: pip install 'mimjax\[tpu\]'"):
        plan.find_devices("v5e:16x16")


def test_settings_of_a_workdir(tmp_path):
    """config.json has them; a folder without it, or a config beside the workdir, is refused."""
    c = helpers.small("mae", seed=3)
    with pytest.raises(ConfigError, match=r"--workdir: no config.json in .*; allowed: a run's"):
        plan.wanted(None, str(tmp_path))
    (tmp_path / "config.json").write_text(settings.config_json(c))
    assert plan.wanted(None, str(tmp_path)).seed == 3
    for pair in ((c, str(tmp_path)), (None, None)):
        with pytest.raises(ConfigError, match="--config, --workdir: both or none given"):
            plan.wanted(*pair)
