"""launch/tpu_pod.sh against a stand-in for gcloud: the commands it would run, in order.

No TPU was reached: this proves the script's own logic and quoting, not Google's side of it.
"""

import os
import subprocess

import helpers

STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$LOG"
"""


def launch(tmp_path, *args, mode="all"):
    fake = tmp_path / "bin"
    fake.mkdir(exist_ok=True)
    (fake / "gcloud").write_text(STAND_IN)
    (fake / "gcloud").chmod(0o755)
    log = tmp_path / f"log_{mode}"
    env = os.environ | {"PATH": f"{fake}:{os.environ['PATH']}", "LOG": str(log), "MODE": mode}
    out = subprocess.run(
        ["bash", str(helpers.ROOT / "launch" / "tpu_pod.sh"), *args],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return out, log.read_text().splitlines() if log.exists() else []


def test_copies_installs_and_starts_on_every_host(tmp_path):
    flags = ["--config=configs/bootmae.py:size=l", "--workdir=gs://bucket/a run"]
    out, lines = launch(tmp_path, "slice", "us-east1-d", *flags)
    assert out.returncode == 0, out.stderr
    assert len(lines) == 3
    copy, setup, start = lines
    assert copy.startswith("compute tpus tpu-vm scp")
    assert "slice:mimjax.tar.gz --zone=us-east1-d --worker=all" in copy
    assert "pip install -q -c mimjax/constraints.txt -e 'mimjax[tpu]'" in setup
    assert "mimjax train --distributed=auto --config=configs/bootmae.py:size=l" in start
    assert "gs://bucket/a\\ run" in start  # quoted for the remote shell
    assert all("--worker=all" in line for line in lines)


def test_one_half_alone_and_usage(tmp_path):
    flags = ["slice", "zone", "--config=x", "--workdir=y"]
    assert len(launch(tmp_path, *flags, mode="start")[1]) == 1
    assert len(launch(tmp_path, *flags, mode="setup")[1]) == 2
    out, lines = launch(tmp_path, "slice", mode="usage")
    assert out.returncode == 2
    assert "usage" in out.stderr
    assert not lines


def test_the_code_of_a_process_that_ends_after_the_one_that_noticed_is_the_runs(tmp_path):
    """76 says that another process ended first, which may take its time to say why."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *process_id=0*) sleep 1; exit 2;; esac; exit 76\n')
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python)}
    out = subprocess.run(["launch/local.sh"], cwd=helpers.ROOT, env=env, stderr=subprocess.PIPE)
    assert out.returncode == 2
    assert b"process 1 ended with code 76" in out.stderr
