"""Local mode with a stand-in for Docker that writes down how it is called; tests/test_docker.py has the real one."""

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from aws import NO_AWS
from programs import ROOT

CPU = ("--instance_type=local", "--hyperparams", "trainer.accelerator=cpu", "trainer.devices=1")
DOCKER = """#!/bin/sh
echo "$*" >> {folder}/calls
case "$*" in
  *" up "*) cd $(dirname $3); echo weights > model/model.pt; {training};;
  inspect*) echo "2026-01-01T00:00:01.5Z 1 /algo-1-abcde";;
  logs*) echo "train.py: error: no GPU";;
esac
"""

pytestmark = pytest.mark.slow


def start(folder: Path, training: str) -> subprocess.Popen:
    """Starts a launch in which these shell commands take the containers' place."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(DOCKER.format(folder=folder, training=training))
    (folder / "bin/docker").chmod(0o755)
    (folder / ".cache").mkdir()
    (folder / ".cache/cifar-10-python.tar.gz").touch()
    environment = NO_AWS | {"PATH": f"{folder}/bin:/usr/bin:/bin", "TMPDIR": str(folder)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, ROOT / "run_sagemaker.py", *CPU]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **output)


def assert_nothing_is_left(folder: Path) -> None:
    assert (folder / "calls").read_text().splitlines()[-1].endswith("docker-compose.yaml down")
    assert not list(folder.glob("sagemaker-*"))


def test_the_log_is_shown_and_the_model_is_where_the_launcher_says(tmp_path):
    process = start(tmp_path, "echo Attaching; echo 'algo-1-abcde  | epoch=0'; exit 0")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert stdout == (
        "algo-1-abcde  | epoch=0\n\n"
        f"model   {tmp_path}/output/model.tar.gz\n"
        f"output  {tmp_path}/output/output.tar.gz (checkpoints, TensorBoard logs)\n"
    )
    with tarfile.open(tmp_path / "output/model.tar.gz") as tar:
        assert tar.extractfile("model.pt").read() == b"weights\n"
    assert_nothing_is_left(tmp_path)


def test_the_last_lines_of_a_container_that_failed_are_repeated(tmp_path):
    process = start(tmp_path, "echo 'algo-1-abcde  | epoch=0'; exit 1")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "algo-1-abcde  | epoch=0\n")
    assert stderr == (
        "run_sagemaker.py: error: container algo-1-abcde failed with exit code 1; its last lines:\n"
        "train.py: error: no GPU\n\n"
    )
    assert not (tmp_path / "output").exists()
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launcher_removes_its_containers(tmp_path, signum):
    process = start(tmp_path, "echo 'algo-1-abcde  | epoch=0'; sleep 60")
    assert process.stdout.readline() == "algo-1-abcde  | epoch=0\n"
    os.killpg(process.pid, signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert stderr == f"run_sagemaker.py: error: stopped by {signum.name}\n"
    assert_nothing_is_left(tmp_path)
