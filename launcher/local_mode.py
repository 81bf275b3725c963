"""This machine: its GPU and Docker, the container that failed, and the commit of the code."""

import re
import subprocess
from pathlib import Path
from typing import Any

USE_CPU = "train on the CPU with --hyperparams trainer.accelerator=cpu trainer.devices=1"


def output_of(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError:
        return subprocess.CompletedProcess(command, 127, f"{command[0]} is not installed")


def check_machine(options: Any) -> None:
    """Raises ValueError if this machine lacks the GPU, Docker, Docker Compose, or the image of a local job."""
    if options.instance_type == "local_gpu" and "GPU 0" not in output_of("nvidia-smi", "-L").stdout:
        raise ValueError(
            f"--instance_type=local_gpu: nvidia-smi finds no GPU; use --instance_type=local, and {USE_CPU}"
        )
    docker = output_of("docker", "version")
    if docker.returncode:
        reason = docker.stdout.strip().rpartition("\n")[2]
        advice = "see https://docs.docker.com/engine/install/"
        raise ValueError(f"Docker cannot be used: {reason}; {advice}")
    compose_command()
    image_uri = options.image_uri
    if "/" not in image_uri and output_of("docker", "image", "inspect", image_uri).returncode:
        raise ValueError(f"--image_uri={image_uri}: not found on this machine; build it with ./docker/build-image.sh")


def compose_command() -> list[str]:
    """Returns the command of Docker Compose, of any version; ValueError if it is not installed."""
    for command in ["docker", "compose"], ["docker-compose"]:
        if output_of(*command, "version").returncode == 0:
            return command
    raise ValueError("Docker Compose is not installed; see https://docs.docker.com/compose/install/")


def as_uri(path: str, end: str = "") -> str:
    """Returns the URI of a folder; `end="/"` for prefixes, so that `my-run` does not include `my-run2`."""
    return path.rstrip("/") + end if "://" in path else f"file://{Path(path).absolute()}"


def git_commit(folder: Path) -> dict[str, str]:
    """Returns the commit of the code as an environment variable of the job, if the folder is under git."""
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = output_of("git", "-C", str(folder), "status", "--porcelain", ".").stdout
    return {} if commit.returncode else {"GIT_COMMIT": commit.stdout.strip() + ("-dirty" if changes else "")}


def find_failure(containers: list[str]) -> str:
    """Returns name, exit code and last lines of the container that failed first, if one did."""
    state = "{{.State.FinishedAt}} {{.State.ExitCode}} {{.Name}}"
    states = output_of("docker", "inspect", "--format", state, *containers).stdout
    failures = re.findall(r"^(\S+)Z ([1-9]\d*) /(\S+)$", states, re.MULTILINE)
    if not failures:
        return ""
    _, code, name = min(failures)
    last_lines = output_of("docker", "logs", "--tail", "10", name).stdout
    return f"container {name} failed with exit code {code}; its last lines:\n{last_lines}"
