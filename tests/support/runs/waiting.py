"""Waits for what other processes do, and fails instead of waiting forever."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    timeout: float = 90,
    log: Callable[[], str] = str,
) -> None:
    """Waits until a condition holds; fails with the log after `timeout` seconds, or if `process` has ended."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, f"exit code {process.returncode}\n{log()}"
        assert time.monotonic() < deadline, f"not within {timeout} seconds\n{log()}"
        time.sleep(0.02)


def read_until(text: str, process: subprocess.Popen) -> None:
    """Reads stdout of a process up to the first line with `text`."""
    if not any(text in line for line in iter(process.stdout.readline, "")):
        raise AssertionError(f"no {text}\n{process.stderr.read() if process.stderr else ''}")
