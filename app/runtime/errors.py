"""Whatever ends a run too early: one line on stderr, and an exit code that says whose fault it was."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from lightning_fabric.utilities.exceptions import MisconfigurationException
from sagemaker_env import report_failure
from torch.distributed import DistError


class AgreedEnd(Exception):
    """All ranks end after the same step: its message and its exit code."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a program with 2 for what it was given, 1 for what went wrong, 128 + n for signal n; SageMaker gets why."""
    try:
        yield
    except MisconfigurationException as error:
        exit_with(error, 2)
    except AgreedEnd as end:
        if int(os.environ.get("LOCAL_RANK", 0)):
            sys.exit(0)  # Lightning kills a host's first rank if another one ends with an error, and that one reports
        exit_with(*end.args)
    except KeyboardInterrupt:  # before there is anything to save
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            exit_with(error, 2)
        of_gloo = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "pair closure"))
        if isinstance(error, DistError) or of_gloo:
            reason = "the processes have not found, or have lost, each other within --process_group_timeout"
            exit_with(f"{reason}: {error}", 1)
        report_failure(f"{type(error).__name__}: {error}")
        raise


def exit_with(reason: object, code: int) -> NoReturn:
    """Ends the program with one line on stderr."""
    message = f"train.py: error: {' '.join(str(reason).split())}"
    report_failure(message)
    print(message, file=sys.stderr)
    sys.exit(code)


def warn(message: str) -> None:
    """Says on stderr, once per host, what does not end the program."""
    if not int(os.environ.get("LOCAL_RANK", 0)):
        print(f"train.py: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
