"""How options are read, and how whatever goes wrong ends in one line on stderr."""

import contextlib
import re
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import yaml

HINTS = {
    "xpired": "log in again, such as with `aws sso login`",
    "AccessDenied": "docker/policies lists what you, and the job's role, must be allowed to do",
    "ResourceLimitExceeded": "ask for a higher quota in the Service Quotas of the AWS console, or wait for other jobs",
    "CapacityError": "AWS has no such instances to spare: try again later, another type, another region, or not spot",
}
BOOLEAN = {"type": yaml.safe_load, "choices": (True, False), "nargs": "?", "const": True}  # --wait or --wait=false


class Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        exit_with(f"{message.removeprefix('argument ')}; --help explains all options", 2)


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ArgumentTypeError(f"{text} must be NAME=value")
    return key, value


def yaml_key_value(text: str) -> tuple[str, Any]:
    key, value = key_value(text)
    return key, yaml.safe_load(value)


def channel(text: str) -> tuple[str, str]:
    name, path = re.fullmatch(r"(?:([\w-]+)=)?(.*)", text, re.DOTALL).groups()
    return name or "training", path


def refuse_if(is_wrong: Any, message: str) -> None:
    if is_wrong:
        raise ValueError(message)


@contextlib.contextmanager
def one_line_errors(code: int = 2) -> Iterator[None]:
    """Ends the program with 2 for what a person has to mend, with `code` for what SageMaker or Docker has refused."""
    try:
        yield
    except Exception as error:
        from boto3.exceptions import Boto3Error  # takes longer to import than --help to print
        from botocore.exceptions import BotoCoreError, ClientError

        if not isinstance(error, (ValueError, RuntimeError, yaml.YAMLError, BotoCoreError, Boto3Error, ClientError)):
            raise
        hints = [f"; {hint}" for word, hint in HINTS.items() if word in str(error)]
        # The lines of a container's log, in a RuntimeError, stay lines.
        message = str(error) if isinstance(error, RuntimeError) else " ".join(str(error).split())
        exit_with(f"{message}{''.join(hints)}", 2 if isinstance(error, ValueError) else code)


def exit_on_signals() -> None:
    """Lets SIGINT, SIGTERM and SIGHUP end the program with 128 and their number, after it has cleaned up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)  # the containers are being removed
        exit_with(f"stopped by {signal.Signals(signum).name}", 128 + signum)

    for signum in signals:
        signal.signal(signum, stop)


def exit_with(message: str, code: int) -> NoReturn:
    print(f"run_sagemaker.py: error: {message}", file=sys.stderr)
    sys.exit(code)
