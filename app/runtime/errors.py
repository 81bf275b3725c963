"""How a failed run reports the reason: one line on stderr, and an exit code."""

import contextlib
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from lightning_fabric.utilities.exceptions import MisconfigurationException
from sagemaker_env import PEER_LOST, STOPPED, report_failure
from torch.distributed import DistError


class CoordinatedExit(Exception):
    """CoordinatedExit(reason, exit code).

    Raised on every rank at the same point of a run, or on rank 0 at its end.
    """


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns exceptions into one line on stderr and an exit code, and reports them to SageMaker.

    The exit code is 2 for wrong input or a full disk, 128 + n after signal n, and 1 for other failures, such
    as a last checkpoint that could not be written. After a CoordinatedExit, ranks other than local rank 0
    exit with 0. Unexpected exceptions keep their traceback.
    """
    try:
        yield
    except MisconfigurationException as error:
        exit_with(error, 2)
    except CoordinatedExit as error:
        if local_rank():
            # With an error here, Lightning would kill local rank 0 before it has reported the reason.
            sys.exit(0)
        reason, code = error.args
        exit_with(reason, code, STOPPED if code > 128 else None)
    except KeyboardInterrupt:  # before there is anything to save
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "Early stopping conditioned on" in str(error):
            exit_with(error, 2)
        if is_lost_peer(error):
            exit_with(f"lost contact with a peer; see the logs of all hosts: {error}", 1, PEER_LOST)
        report_failure(f"{type(error).__name__}: {error}")
        raise


def end_process(error: Exception) -> NoReturn:
    """Reports an exception and ends this process at once, without waiting for its GPU or for other ranks."""
    code = 1
    try:
        with one_line_errors():
            raise error
    except SystemExit as end:
        code = end.code
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def is_lost_peer(error: Exception) -> bool:
    """Returns whether an exception of torch.distributed means that another rank failed or hangs."""
    is_from_gloo = isinstance(error, RuntimeError) and ("gloo" in str(error) or "pair closure" in str(error))
    return isinstance(error, DistError) or is_from_gloo


def exit_with(reason: object, code: int, tag: str | None = None) -> NoReturn:
    """Ends the program with one line on stderr."""
    message = " ".join(str(reason).split())
    report_failure(f"train.py: error: {message}", tag)
    sys.stderr.write(f"train.py: error: {message}\n")
    sys.exit(code)


@functools.cache
def warn(message: str) -> None:
    """Prints a warning on stderr, once per host and message."""
    if not local_rank():
        # One write per line, as several ranks share stderr.
        sys.stderr.write(f"train.py: warning: {' '.join(message.split())}\n")


def local_rank() -> int:
    """Returns the rank of this process on its host, even before Lightning sets it."""
    return int(os.environ.get("LOCAL_RANK", 0))
