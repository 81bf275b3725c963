"""Runs run_sagemaker.py as a process, and captures the errors of its functions in this process."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_aws.aws import BUCKET, IMAGE, NO_AWS, ROLE
from runs.programs import ROOT

from launcher.command_line import one_line_errors

LAUNCHER = (sys.executable, ROOT / "run_sagemaker.py")
CLOUD = (
    f"--image_uri={IMAGE}",
    f"--role={ROLE}",
    "--instance_type=ml.g4dn.12xlarge",
    "--instance_count=2",
    f"--input_path=s3://{BUCKET}/datasets/cifar-10",
    f"--output_path=s3://{BUCKET}/output",
)


def cloud(*args: str) -> list[str]:
    """Returns the options of a job in the cloud, with its input unless `args` has one."""
    has_input = any(arg.startswith("--input_path") for arg in args)
    return [option for option in CLOUD if not (has_input and option.startswith("--input_path"))] + list(args)


def run_launcher(
    *options: str, environment: dict[str, str] = NO_AWS, code: int = 0, **kwargs: Any
) -> subprocess.CompletedProcess:
    """Runs `python run_sagemaker.py`, by default without any AWS configuration, and checks its exit code."""
    kwargs = {"env": environment, "capture_output": True, "text": True, "timeout": 240} | kwargs
    result = subprocess.run([*LAUNCHER, *options], **kwargs)
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def error_line(stderr: str) -> str:
    """Returns the only line on the launcher's stderr, without its prefix."""
    assert stderr.startswith("run_sagemaker.py: error: ") and stderr.count("\n") == 1, stderr
    return stderr.removeprefix("run_sagemaker.py: error: ").rstrip("\n")


@contextlib.contextmanager
def captured_exit() -> Iterator[SimpleNamespace]:
    """Handles errors like the launcher, but stores the exit code in `code` instead of exiting."""
    end = SimpleNamespace(code=0)
    try:
        with one_line_errors():
            yield end
    except SystemExit as error:
        end.code = error.code


def rejection(capsys: pytest.CaptureFixture, function: Callable, *args: Any) -> str:
    """Calls a function that must make the launcher exit with code 2, and returns its only line on stderr."""
    with captured_exit() as end:
        function(*args)
    assert end.code == 2
    return error_line(capsys.readouterr().err)
