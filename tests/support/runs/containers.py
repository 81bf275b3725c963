"""Commands of the tutorial that start containers, in a checkout that belongs to a user who is not root."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from runs.programs import ENVIRONMENT

CPU_HYPERPARAMS = ("trainer.accelerator=cpu", "trainer.devices=1")
TINY_HYPERPARAMS = ("model=tiny.Tiny", "data.verify=false", "data.val_split=20", "data.batch_size=5")
LOCAL = ("--instance_type=local", "--hyperparams", *CPU_HYPERPARAMS)
PERSON = 12345  # ID of a user who is not root


def docker(*command: str) -> str:
    """Returns the output of a docker command, which must succeed."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if command[0] == "logs" else None}
    return subprocess.run(["docker", *command], check=True, text=True, **output).stdout


def start(checkout: Path, command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts a command in a checkout, as the owner of the checkout if the tests run as root."""
    if os.getuid() == 0:
        docker_group = os.stat("/var/run/docker.sock").st_gid
        person = [f"--reuid={PERSON}", f"--regid={PERSON}", f"--groups={docker_group}"]
        # Python itself may be in a folder that only root can read.
        capabilities = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = ["/usr/bin/setpriv", *person, *capabilities, *command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = ENVIRONMENT | {"LOGNAME": "person", "PATH": path} | (env or {})
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=environment, start_new_session=True, **output)


def finish(process: subprocess.Popen, code: int) -> str:
    """Returns the output of a process after checking its exit code."""
    log, _ = process.communicate(timeout=300)
    assert process.returncode == code, log
    return log


def start_launcher(checkout: Path, *options: str, instance_count: int = 1, **kwargs) -> subprocess.Popen:
    """Starts `python run_sagemaker.py` in a checkout."""
    command = [sys.executable, "run_sagemaker.py", f"--instance_count={instance_count}", *options]
    return start(checkout, command, **kwargs)


def launch(checkout: Path, *options: str, code: int = 0, **kwargs) -> str:
    """Returns the output of `python run_sagemaker.py` after checking its exit code."""
    return finish(start_launcher(checkout, *options, **kwargs), code)


def saved_model(checkout: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that a run in local mode has exported."""
    with tarfile.open(checkout / "output/model.tar.gz") as tar:
        return torch.load(tar.extractfile("model.pt"), weights_only=True)
