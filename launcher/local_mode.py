"""Checks for local mode: GPU, Docker, Docker Compose and image."""

from pathlib import Path
from subprocess import PIPE, STDOUT, CompletedProcess, run
from typing import Any

USE_CPU = "train on the CPU with --hyperparams trainer.accelerator=cpu trainer.devices=1"


def output_of(*command: str) -> CompletedProcess:
    try:
        return run(command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace")
    except OSError:
        return CompletedProcess(command, 127, f"{command[0]} is not installed")


def check_machine(options: Any) -> None:
    """Raises ValueError if this machine lacks what a local job needs: GPU, Docker, Compose, or image."""
    if options.instance_type == "local_gpu" and "GPU 0" not in output_of("nvidia-smi", "-L").stdout:
        raise ValueError(f"--instance_type=local_gpu finds no GPU; use --instance_type=local, and {USE_CPU}")
    docker = output_of("docker", "version")
    if docker.returncode:
        reason = docker.stdout.strip().rpartition("\n")[2]
        raise ValueError(f"Docker cannot be used: {reason}; install or start it, or give your user access to it")
    compose_command()
    image = options.image_uri
    if "/" not in image and output_of("docker", "image", "inspect", image).returncode:
        raise ValueError(f"--image_uri={image}: not found; build it with IMAGE_NAME={image} ./docker/build-image.sh")


def compose_command() -> list[str]:
    """Returns the command of Docker Compose, of any version; raises ValueError if it is not installed."""
    for command in ["docker", "compose"], ["docker-compose"]:
        if output_of(*command, "version").returncode == 0:
            return command
    raise ValueError("Docker Compose is not installed; see https://docs.docker.com/compose/install/")


def as_uri(path: str, end: str = "") -> str:
    """Returns the URI of a folder; `end="/"` for prefixes, so that `my-run` does not include `my-run2`."""
    return path.rstrip("/") + end if "://" in path else f"file://{Path(path).expanduser().absolute()}"
