"""Parses options, and ends the program with a short message on stderr if an expected error occurs."""

import contextlib
import re
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from subprocess import SubprocessError
from types import FrameType
from typing import Any, ClassVar, NoReturn

import yaml

HINTS = {
    "locate credentials": "run `aws configure` or `aws sso login`, or set AWS_PROFILE",
    "xpired": "log in again, for example with `aws sso login`",
    "AccessDenied": "check your permissions; docker/policies/*.json allow only certain folders of your bucket",
    "ResourceLimitExceeded": "request a quota increase under Service Quotas, or wait until other jobs end",
    "CapacityError": "no capacity for this instance type: try later, or another type or region, or on demand",
}
# Allows both --wait and --wait=false.
BOOLEAN = {"type": yaml.safe_load, "choices": (True, False), "nargs": "?", "const": True}


class Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        exit_with(f"{message.removeprefix('argument ')}; see --help", 2)

    def last_values(self, pairs: list[tuple[str, str]]) -> dict[str, str]:
        """Returns the last value of each name.

        Rejects a repeated NAME+=value, which would append to a list.
        """
        names = [name for name, _ in pairs]
        for name in names:
            if name.endswith("+") and names.count(name) > 1:
                self.error(f"--hyperparams {name}: given twice; pass config=FILE, a YAML file in app/ with the list")
        return dict(pairs)


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ArgumentTypeError(f"{text}: expected NAME=value")
    return key, value


class JsonTypes(yaml.SafeLoader):
    """YAML in which all scalars but integers, true, false and null are strings.

    Examples of such strings are `012345670123`, `1.10` and `on`.
    """

    yaml_implicit_resolvers: ClassVar = {}


for name, pattern in {"bool": "(true|false)$", "null": "null$", "int": r"(0|-?[1-9]\d*)$"}.items():
    JsonTypes.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), None)


def yaml_key_value(text: str) -> tuple[str, Any]:
    key, value = key_value(text)
    return key, yaml.load(value, JsonTypes)


def channel(text: str) -> tuple[str, str]:
    name, path = re.fullmatch(r"(?:([\w-]+)=)?(.*)", text, re.DOTALL).groups()
    return name or "training", path


@contextlib.contextmanager
def one_line_errors(code: int = 2) -> Iterator[None]:
    """Turns expected exceptions into a message on stderr and an exit code; others keep their traceback.

    The code is 2 for wrong input, and `code` for errors of AWS or Docker.
    """
    try:
        yield
    except Exception as error:
        from boto3.exceptions import Boto3Error  # takes longer to import than --help to print
        from botocore.exceptions import BotoCoreError, ClientError

        aws_errors = (BotoCoreError, Boto3Error, ClientError)
        expected = (ValueError, RuntimeError, OSError, SubprocessError, yaml.YAMLError, *aws_errors)
        if not isinstance(error, expected):
            raise
        hints = [f"; {hint}" for word, hint in HINTS.items() if word in str(error)]
        # A RuntimeError keeps its line breaks: it may contain the table of containers.
        message = str(error) if isinstance(error, RuntimeError) else " ".join(str(error).split())
        exit_with(f"{message}{''.join(hints)}", 2 if isinstance(error, ValueError) else code)


def exit_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP end the program after it has cleaned up.

    The exit code is 128 + the number of the signal.
    """
    # Windows has no SIGHUP.
    signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)  # the containers are being removed
        exit_with(f"stopped by {signal.Signals(signum).name}; jobs in the cloud continue", 128 + signum)

    for signum in signals:
        # nohup ignores SIGHUP; shells ignore SIGINT for background commands, which can still be sent it.
        if signum == signal.SIGINT or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, stop)


def exit_with(message: str, code: int) -> NoReturn:
    print(f"run_sagemaker.py: error: {message}", file=sys.stderr)
    sys.exit(code)
