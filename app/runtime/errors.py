"""Whatever ends a run too early: one line on stderr, and an exit code that says whose fault it was."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sagemaker_env import report_failure
from torch.distributed import DistError


class BadInput(Exception):
    """The program cannot do what it was asked to."""


class AgreedEnd(Exception):
    """All ranks end after the same step, with the same exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a whole program: exit code 2 for what it was given, 1 for what went wrong, 128 + n for signal n.

    Only an error that nobody expected keeps its traceback. SageMaker gets the reason of each.
    """
    try:
        yield
    except BadInput as error:
        exit_with(error, 2)
    except AgreedEnd as end:
        if int(os.environ.get("LOCAL_RANK", 0)):
            sys.exit(0)  # Lightning kills a host's first rank if another one ends with an error, and that one reports
        exit_with(end, end.code)
    except KeyboardInterrupt:  # before there is anything to save
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            exit_with(error, 2)
        if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            reason = "the processes have not found, or have lost, each other within --process_group_timeout"
            exit_with(TimeoutError(f"{reason}: {error}"), 1)
        report_failure(f"{type(error).__name__}: {error}")
        raise


def exit_with(error: Exception, code: int) -> NoReturn:
    """Ends the program with one line on stderr."""
    if "JSONARGPARSE_DEBUG" in os.environ:
        raise error
    message = f"{program()}: error: {one_line(error)}"
    report_failure(message)
    print(message, file=sys.stderr)
    sys.exit(code)


def warn(message: str) -> None:
    """Says on stderr what does not end the program."""
    print(f"{program()}: warning: {one_line(message)}", file=sys.stderr, flush=True)


def program() -> str:
    return Path(sys.argv[0]).name


def one_line(message: object) -> str:
    return " ".join(str(message).split())
