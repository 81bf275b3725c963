"""What the tests share: the script as a process, and a small archive in CIFAR-10's format."""

import atexit
import io
import multiprocessing
import os
import pickle
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]

# One thread per process: pytest runs two tests at a time, and threads that outnumber the cores wait for each other.
torch.set_num_threads(1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("SM_")}

TINY = ("--model=tiny.Tiny", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=2")
SYNTHETIC = (
    "--data=SyntheticCIFAR10DataModule",
    "--data.num_train_images=601",
    "--data.num_test_images=101",
    "--data.val_split=101",
)


def run_train(*options: str, cwd: Path, code: int = 0, **kwargs) -> subprocess.CompletedProcess:
    """Runs `python app/train.py` with these options in `cwd`, and checks its exit code."""
    kwargs = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 240} | kwargs
    result = subprocess.run([sys.executable, str(ROOT / "app/train.py"), *options], cwd=cwd, **kwargs)
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


# A process that has imported what train.py does, which takes 5 seconds, and whose forks can run it at once.
warm = multiprocessing.get_context("forkserver")
warm.set_forkserver_preload(["cli"])
os.environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / folder) for folder in ("app", "tests"))  # where it finds this


def run_train_warm(*options: str, cwd: Path, code: int = 0, env: dict[str, str] = ENVIRONMENT) -> SimpleNamespace:
    """Like run_train, in a process that begins with the imports done. Not for several processes that train together."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = warm.Process(
            target=become_train, args=(options, cwd, env, *map(DupFd, (stdout.fileno(), stderr.fileno())))
        )
        process.start()
        process.join(240)
        process.kill()
        stdout.seek(0)
        stderr.seek(0)
        result = SimpleNamespace(stdout=stdout.read(), stderr=stderr.read(), returncode=process.exitcode)
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def become_train(options: tuple[str, ...], cwd: Path, env: dict[str, str], stdout, stderr) -> None:
    os.dup2(stdout.detach(), 1)
    os.dup2(stderr.detach(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(ROOT / "app/train.py"), *options]
    tempfile.tempdir = None  # TMPDIR may be another one now
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def epoch_lines(stdout: str) -> list[dict[str, float]]:
    """The metrics of each line that begins with `epoch=`."""
    lines = [line for line in stdout.splitlines() if line.startswith("epoch=")]
    return [{key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", line)} for line in lines]


def cifar10_files(num_images: int = 20) -> dict[str, object]:
    """The contents of CIFAR-10's files, with `num_images` random images each."""
    numbers = np.random.default_rng(0)
    files: dict[str, object] = {"batches.meta": {b"num_cases_per_batch": num_images, b"num_vis": 3072}}
    for name in BATCHES:
        data = numbers.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        files[name] = {b"data": data, b"labels": numbers.integers(0, 10, num_images).tolist()}
    return files


def write_archive(directory: Path, files: dict[str, object]) -> Path:
    archive = directory / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive in CIFAR-10's format, alone in a folder."""
    (tmp_path / "data").mkdir()
    return write_archive(tmp_path / "data", cifar10_files())


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable]:
    """Starts SageMaker hosts, without Docker, that train a tiny network together: `job(2, {"trainer.devices": "2"})`.

    `only=1` starts the first of them alone.
    """
    from toolkit import Host, free_port  # which imports this file

    defaults = dict(option.removeprefix("--").split("=") for option in TINY + SYNTHETIC)
    defaults |= {"data.batch_size": "20", "trainer.callbacks": "tiny.PrintWeights"}
    started: list[Host] = []

    def start(num_hosts: int, hyperparameters: dict[str, str] | None = None, only: int | None = None) -> list[Host]:
        names = [f"127.0.0.{number}" for number in range(1, num_hosts + 1)]
        folder, port = tmp_path / f"job-{len(started)}", free_port()
        hosts = [Host(folder / name, name, names, defaults | (hyperparameters or {})) for name in names[:only]]
        started.extend(hosts)
        for host in hosts:
            host.start(MASTER_PORT=port)
        return hosts

    yield start
    for host in started:
        host.kill()


@pytest.fixture(scope="session")
def aws_server():
    from aws import AWS  # which imports this file

    aws = AWS()
    yield aws
    aws.server.stop()


@pytest.fixture
def aws(aws_server):
    """AWS's API on this machine, empty but for one bucket."""
    aws_server.reset()
    return aws_server
