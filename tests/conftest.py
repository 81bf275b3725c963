"""Fixtures: an archive, the hosts of a SageMaker job, AWS."""

import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_aws.aws import AWS
from fake_aws.toolkit import Host, free_port
from runs.archives import cifar10_files, write_archive
from runs.programs import ENVIRONMENT, SYNTHETIC, TINY

# Killed processes leave files in the temporary folder. This one is deleted at the end.
TEMPORARY = tempfile.TemporaryDirectory(prefix="tests-")
ENVIRONMENT["TMPDIR"] = TEMPORARY.name

# A test suite in the background ignores Ctrl-C, and its child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Writes a small archive in CIFAR-10's format to a folder of its own."""
    (tmp_path / "data").mkdir()
    return write_archive(tmp_path / "data", cifar10_files())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip(reason="only root may mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable]:
    """Starts SageMaker hosts, without Docker, that train a tiny network together: `job(2, {"trainer.devices": "2"})`.

    `only=1` starts only the first host. Other keyword arguments become environment variables of the containers.
    """
    defaults = dict(option.removeprefix("--").split("=") for option in TINY + SYNTHETIC)
    defaults |= {"data.batch_size": "20", "trainer.callbacks": "tiny.PrintWeights"}
    started: list[Host] = []

    def start(
        num_hosts: int, hyperparameters: dict[str, str] | None = None, only: int | None = None, **environment: str
    ) -> list[Host]:
        names = [f"127.0.0.{number}" for number in range(1, num_hosts + 1)]
        folder, port = tmp_path / f"job-{len(started)}", free_port()
        hosts = [Host(folder / name, name, names, defaults | (hyperparameters or {})) for name in names[:only]]
        started.extend(hosts)
        for host in hosts:
            host.start(MASTER_PORT=port, **environment)
        return hosts

    yield start
    for host in started:
        host.kill()


@pytest.fixture(scope="session")
def aws_server():
    aws = AWS()
    yield aws
    aws.server.stop()


@pytest.fixture
def aws(aws_server):
    """Simulates the AWS API on this machine, with one empty bucket."""
    aws_server.reset()
    return aws_server
