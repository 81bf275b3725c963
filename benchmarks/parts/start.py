"""Measures the startup time of the programs, compared with the time of their imports."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from measuring import DATA, ROOT, Result, interleave, train_command

ACCOUNT = "123456789012"
CLOUD = ["--instance_type=ml.g4dn.12xlarge", "--instance_count=2", f"--role=arn:aws:iam::{ACCOUNT}:role/sagemaker"]
CLOUD += [f"--image_uri={ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/sagemaker-tutorial:1"]
CLOUD += ["--input_path=s3://my-bucket/datasets/cifar-10", "--output_path=s3://my-bucket/output", "--dry_run"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def python(*arguments: str, cwd: str = ".") -> dict[str, Any]:
    return {"args": [sys.executable, *arguments], "cwd": ROOT / cwd}


def seconds_to_end(*commands: dict[str, Any]) -> float:
    """Runs the commands at the same time and returns the seconds until all have exited."""
    start = perf_counter()
    processes = [subprocess.Popen(**command, **QUIET) for command in commands]
    for process in processes:
        if process.wait():
            sys.exit(f"{process.args} failed; run it to see why")
    return perf_counter() - start


def seconds_to_first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = train_command(*DATA, f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}")
        start = perf_counter()
        with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            has_started = any(line.startswith("training in") for line in process.stdout)
            seconds = perf_counter() - start
            process.kill()
    return seconds if has_started else sys.exit(f"{process.args} failed; run it to see why")


def measure_start() -> Iterator[Result]:
    # The launcher imports the SDK while train.py checks its options in a second process.
    imports = python("-c", "import sagemaker.pytorch"), python("-c", "import train", cwd="app")
    alternatives = {
        "torch and Lightning": partial(seconds_to_end, python("-c", "import torch, pytorch_lightning")),
        "--help": partial(seconds_to_end, train_command("--help")),
        "first step": seconds_to_first_step,
        "the SDK and train.py": partial(seconds_to_end, *imports),
        "--dry_run": partial(seconds_to_end, python("run_sagemaker.py", *CLOUD)),
    }
    seconds = {name: median(rounds) for name, rounds in interleave(alternatives, 3).items()}
    for name, program, base, most in (
        ("--help", "app/train.py --help", "torch and Lightning", 1.3),
        ("first step", "app/train.py, to the first step", "torch and Lightning", 2),
        ("--dry_run", "run_sagemaker.py --dry_run", "the SDK and train.py", 1.5),
    ):
        details = {"seconds": seconds[name], f"importing {base}": seconds[base]}
        what = f"{program}: time compared with the imports"
        yield Result(what, seconds[name] / seconds[base], most=most, details=details)
