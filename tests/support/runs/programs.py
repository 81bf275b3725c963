"""Runs app/train.py as a process: cold, as users do, or warm, forked from a process that has done the imports."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).parents[3]
PATH = os.pathsep.join(
    str(ROOT / folder) for folder in ("tests/projects", "examples/synthetic", "examples/fast", "examples/pictures")
)

# One thread per process: pytest runs two tests at a time, and more threads than cores wait for each other.
torch.set_num_threads(1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}
ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("SM_")}

TINY = ("--model=tiny.Tiny", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=2")
SYNTHETIC = (
    "--data=synthetic.SyntheticCIFAR10DataModule",
    "--data.num_train_images=601",
    "--data.num_test_images=101",
    "--data.val_split=101",
)


def run_train(
    *options: str, cwd: Path, code: int = 0, program: Path = ROOT / "app/train.py", **kwargs
) -> subprocess.CompletedProcess:
    """Runs `python app/train.py` with these options in `cwd` and checks its exit code."""
    kwargs = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 240} | kwargs
    result = subprocess.run([sys.executable, str(program), *options], cwd=cwd, **kwargs)
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


@contextlib.contextmanager
def training(*options: str, cwd: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
    """Trains in the background; yields the process and a function that returns its output so far."""
    with open(cwd / "log", "w") as log:
        command = [sys.executable, ROOT / "app/train.py", *options]
        process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process, (cwd / "log").read_text
    finally:
        process.kill()
        process.wait()


# A process that has done the imports of train.py, which take 5 seconds; its forks start at once.
warm = multiprocessing.get_context("forkserver")
warm.set_forkserver_preload(["runtime.cli", "resnet", "cifar10"])
# Where the fork server finds this module.
os.environ["PYTHONPATH"] = os.pathsep.join([f"{ROOT}/app", f"{ROOT}/tests/support", PATH])


def run_train_warm(*options: str, cwd: Path, code: int = 0, env: dict[str, str] = ENVIRONMENT) -> SimpleNamespace:
    """Does the same in less time: forks a process that has done the imports. Not for several ranks."""
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
    """Turns this process into one that was started as train.py."""
    os.dup2(stdout.detach(), 1)
    os.dup2(stderr.detach(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(ROOT / "app/train.py"), *options]
    tempfile.tempdir = None  # TMPDIR may have changed
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them


def children(pid: int, command: str) -> list[int]:
    """Returns the descendants of a process with `command` in their command line, ancestors first."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if command in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
            found.append(int(child))
        found += children(int(child), command)
    return found


def executable(path: Path, script: str) -> Path:
    """Writes a shell script, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def copy_project(folder: Path, *names: str) -> Path:
    """Copies files and folders of the repository, without caches, and returns the folder of the copies."""
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder
