"""From a dataclass to a command line, and from whatever goes wrong to one line on stderr."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import field, fields
from types import FrameType
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionYesNo, ArgumentParser

AWS_HINTS = {
    "Expired": "log in again, such as with `aws sso login`",
    "credentials": "make them known with `aws configure` or `aws sso login`",
    "InvalidClientTokenId": "make them known with `aws configure` or `aws sso login`",
    "AccessDenied": "docker/policies/laptop.json lists what you must be allowed to do",
}


def option(default: Any, explanation: str, argument: str = "", example: str = "") -> Any:
    """A field that is an option: its name among the Estimator's arguments if another, and one value if it has many."""
    metadata = {"explanation": explanation, "argument": argument, "example": example}
    return field(default_factory=lambda: default, metadata=metadata)


def parse_options(kind: type, args: list[str] | None = None) -> Any:
    """The command line as an object of a dataclass. Where a field is a dict, `key=value` adds to its default."""
    parser = Parser(prog="run_sagemaker.py", usage="python run_sagemaker.py [options]", allow_abbrev=False)
    parser.description = kind.__doc__
    for option in fields(kind):
        how = {"type": option.type}
        if option.type is bool:
            how = {"action": ActionYesNo, "nargs": "?"}
        elif example := option.metadata["example"]:
            how = {"nargs": "*", "metavar": example}
        default, explanation = option.default_factory(), option.metadata["explanation"]
        parser.add_argument(f"--{option.name}", default=default, help=explanation, **how)
    values = vars(parser.parse_args(args))
    for option in fields(kind):
        default, items = option.default_factory(), values[option.name]
        if isinstance(default, dict) and isinstance(items, list):
            values[option.name] = default | dict(read_item(option, item, parser) for item in items)
    return kind(**values)


def read_item(option: Any, item: str, parser: ArgumentParser) -> tuple[str, Any]:
    key, separator, value = item.partition("=")
    if not (key and separator):
        parser.error(f"--{option.name} {item}: must be key=value, such as {option.metadata['example']}")
    try:
        return key, value if option.type == dict[str, str] else yaml.safe_load(value)
    except yaml.YAMLError:
        parser.error(f"--{option.name} {item}: its value is no YAML")


class Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        exit_with(f"{message}; --help explains all options", 2)


@contextlib.contextmanager
def errors_in_one_line(aws_exit_code: int = 2) -> Iterator[None]:
    """Ends the program with 2 for what a person can mend, with 1 for a training that failed."""
    from boto3.exceptions import Boto3Error  # takes longer to import than --help to print
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ValueError as error:
        exit_with(str(error), 2)
    except RuntimeError as error:
        exit_with(str(error), 1)
    except (BotoCoreError, Boto3Error, ClientError) as error:
        hints = [f"; {hint}" for word, hint in AWS_HINTS.items() if word in str(error)]
        exit_with(" ".join(f"AWS: {error}{''.join(hints)}".split()), aws_exit_code)


def stop_at_signals() -> None:
    """Lets SIGINT, SIGTERM and SIGHUP end the program with 128 and their number, after it has cleaned up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)  # the containers are being removed
        exit_with(f"stopped by {signal.Signals(signum).name}", 128 + signum)

    for signum in signals:
        signal.signal(signum, stop)


def warn(message: str) -> None:
    print(f"run_sagemaker.py: warning: {message}", file=sys.stderr)


def exit_with(message: str, code: int) -> NoReturn:
    message = " ".join(message.split()) if code == 2 else message  # lines of a container's log stay lines
    print(f"run_sagemaker.py: error: {message}", file=sys.stderr)
    sys.exit(code)
