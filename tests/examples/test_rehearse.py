"""Tests of `make rehearse`, which simulates a spot job on this machine."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runs.programs import ROOT
from runs.waiting import read_until


def start(*options: str, folder: Path) -> subprocess.Popen:
    """Starts examples/rehearsal/rehearse.py with `folder` for its temporary files."""
    command = [sys.executable, ROOT / "examples/rehearsal/rehearse.py", *options]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}, **output)


@pytest.mark.slow
def test_a_job_that_loses_a_host_resumes_bit_exactly_from_its_checkpoint_in_s3(tmp_path):
    rehearsal = start(folder=tmp_path)
    stdout, stderr = rehearsal.communicate(timeout=600)
    assert (rehearsal.returncode, stderr) == (0, ""), stdout + stderr
    lines = [line.partition(" s  ")[2] for line in stdout.splitlines()]
    killed = lines.index("host 1  kill -9 of all its processes: AWS takes the instance back")
    assert lines.index("host 2  exits with code 1") > killed
    (step,) = re.findall(r"resuming from /opt/ml/checkpoints/last-step=(\d+).ckpt \(step \1, epoch \d\)", stdout)
    again = f"host 1  training in 2 processes on 2 hosts, device cpu, 128 samples per step, from step {step}"
    assert int(step) > 0 and again in lines[killed:]
    assert lines[-1] == "the weights of both runs are the same, bit for bit"
    assert len(lines) <= 40 and max(map(len, stdout.splitlines())) <= 110
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_leaves_no_processes_or_files(tmp_path):
    rehearsal = start(folder=tmp_path)
    read_until("training in 2 processes", rehearsal)
    processes = psutil.Process(rehearsal.pid).children(recursive=True)
    assert len(processes) >= 4  # two hosts, each with its toolkit and train.py
    rehearsal.send_signal(signal.SIGINT)
    stderr = rehearsal.communicate(timeout=60)[1]
    assert (rehearsal.returncode, stderr) == (130, "")
    assert not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_empty_data_folder_is_rejected_before_anything_starts(tmp_path):
    rehearsal = start(f"--input_path={tmp_path}", folder=tmp_path)
    stdout, stderr = rehearsal.communicate(timeout=120)
    assert (rehearsal.returncode, stdout) == (2, "")
    line = f"rehearse.py: error: --input_path={tmp_path}: expected a non-empty folder with the data for the job"
    assert stderr == f"{line}\n"
