"""This machine: what Docker must have, why a container failed, and which commit the code is of."""

import re
import subprocess
from pathlib import Path
from typing import Any

from launcher.command_line import refuse_if

USE_CPU = "train on the CPU with --hyperparams trainer.accelerator=cpu trainer.devices=1"


def output_of(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError:
        return subprocess.CompletedProcess(command, 127, f"there is no `{command[0]}` on this machine")


def check_machine(options: Any) -> None:
    has_gpu = options.instance_type == "local" or "GPU 0" in output_of("nvidia-smi", "-L").stdout
    message = f"nvidia-smi finds no GPU; say --instance_type=local, and {USE_CPU}"
    refuse_if(not has_gpu, f"--instance_type={options.instance_type}: {message}")
    docker = output_of("docker", "version")
    reason = docker.stdout.strip().rpartition("\n")[2]
    message = f"Docker is not running, or denies you access: {reason}; see https://docs.docker.com/engine/install/"
    refuse_if(docker.returncode, message)
    compose_command()
    is_missing = "/" not in options.image_uri and output_of("docker", "image", "inspect", options.image_uri).returncode
    refuse_if(is_missing, f"--image_uri={options.image_uri}: not built yet; build it with ./docker/build-image.sh")


def compose_command() -> list[str]:
    """Docker Compose's, of any version; ValueError if there is none."""
    for command in ["docker", "compose"], ["docker-compose"]:
        if output_of(*command, "version").returncode == 0:
            return command
    raise ValueError("there is no Docker Compose on this machine; see https://docs.docker.com/compose/install/")


def git_commit(folder: Path) -> dict[str, str]:
    """The commit of the code as a variable of the job, if git knows one."""
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = output_of("git", "-C", str(folder), "status", "--porcelain", ".").stdout
    return {} if commit.returncode else {"GIT_COMMIT": commit.stdout.strip() + ("-dirty" if changes else "")}


def find_failure(containers: list[str]) -> str:
    """Name, exit code and last lines of the container that ended first without success, if there is one."""
    state = "{{.State.FinishedAt}} {{.State.ExitCode}} {{.Name}}"
    states = output_of("docker", "inspect", "--format", state, *containers).stdout
    failures = re.findall(r"^(\S+)Z ([1-9]\d*) /(\S+)$", states, re.MULTILINE)
    if not failures:
        return ""
    _, code, name = min(failures)
    last_lines = output_of("docker", "logs", "--tail", "10", name).stdout
    return f"container {name} failed with exit code {code}; its last lines:\n{last_lines}"
