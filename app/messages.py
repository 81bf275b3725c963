"""One line on stderr for whatever goes wrong."""

import os
import sys
from typing import NoReturn

from sagemaker_env import report_failure


def warn(message: str) -> None:
    print(f"train.py: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


def exit_with(error: Exception, code: int = 2) -> NoReturn:
    """Ends the program; exit code 2 is for what it was given."""
    while str(error).startswith("Does not validate") and error.__cause__:  # jsonargparse around our own line
        error = error.__cause__
    if "JSONARGPARSE_DEBUG" in os.environ:
        raise error
    message = f"train.py: error: {' '.join(str(error).split())}"
    report_failure(message)
    print(message, file=sys.stderr)
    sys.exit(code)
