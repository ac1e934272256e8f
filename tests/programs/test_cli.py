"""The command line: of several values of a key the last one counts, whatever its kind."""

import helpers
import pytest
from absl import flags

from mimjax import stopping
from mimjax.programs import cli


def parsed(*words):
    """The config that a command line gives."""
    argv = ["program", "--config=configs/mae.py:demo", *words]
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    assert values(argv) == ["program"]
    return values.config


def test_the_last_value_wins(monkeypatch):
    monkeypatch.chdir(helpers.ROOT)
    c = parsed(
        "--config.method.encoder.image_size=(16,16)",
        "--config.seed=1",
        "--config.method.encoder.fuse_layers=(1,3)",
        "--config.sharding=(('a','fsdp'),)",
        "--config.method.encoder.image_size=(8,8)",
        "--config.seed=2",
        "--config.method.encoder.fuse_layers=(3,)",
        "--config.sharding=(('b','fsdp'),('c','fsdp'))",
    )
    assert c.method.encoder.image_size == (8, 8)
    assert c.method.encoder.fuse_layers == (3,)
    assert c.sharding == (("b", "fsdp"), ("c", "fsdp"))
    assert c.seed == 2


def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    """It says where, and train.log has the traceback."""
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
