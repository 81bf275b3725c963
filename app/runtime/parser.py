"""A parser that reports in one line what jsonargparse reports in many.

All code that depends on the wording of jsonargparse's messages is here.
"""

import difflib
import re
import sys
from traceback import extract_tb
from typing import NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from runtime.errors import exit_with


class Parser(LightningArgumentParser):
    """A LightningArgumentParser with one-line error messages.

    They name the option, the value, and what is allowed.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = re.findall(r"^  --([\w.]+)", self.format_help(), re.MULTILINE)
        # jsonargparse wraps an exception once for each enclosing class, as one of several possible causes.
        exit_with(explain(str(unwrap(ex) or message), options), 2)

    def format_help(self) -> str:
        return re.sub(r",\s+default:\s+null\)", ")", super().format_help())


def explain(message: str, options: list[str]) -> str:
    """Returns a message of jsonargparse as one line.

    Args:
        message: All of its lines.
        options: Names of all options, to suggest a similar one.
    """
    if typo := re.search(r"(?:arguments: (?:--)?|ption ')([^\s=']+)", message):
        option, similar = full_name(typo[1]), difflib.get_close_matches(typo[1], options, 1)
        suggestion = f"did you mean {option.removesuffix(typo[1])}{similar[0]}?" if similar else ""
        return f"unknown option {option}; {suggestion or 'see --help, or --data.help=CLASS and --model.help=CLASS'}"
    message = re.sub(r'Parser key "([^"]+)"', lambda key: full_name(key[1]), message)
    message = message.replace("the following arguments are required", "missing arguments (pass as --model.NAME etc.)")
    kinds = re.findall(r"Expected a (?:<class '(?:\w+\.)*(\w+)|typing.Literal\[(.*?)\]|dot (import path))", message)
    if given := re.search(r"(?:Given|Got) value: (.*)", message):
        problem = re.search(r"^ {4}- (?!Expected a)(?:Problem with .*\s+)?(.+)", message, re.MULTILINE)
        expected = " or ".join(map("".join, kinds)).replace("NoneType", "null")
        reason = problem[1] if problem else f"expected {expected}"
        hint = "; is it in app/ or PYTHONPATH?" if "No module" in reason else ""
        hint = "; import pytorch_lightning instead of lightning.pytorch" if "named 'lightning'" in reason else hint
        return f"{message.partition(':')[0]}={given[1]} is not valid: {reason}{hint}"
    files = re.findall(r"--config[ =](\S+)", " ".join(sys.argv))
    return message + (f" (on the command line or in {' or '.join(files)})" if files else "")


def explain_cause(error: Exception) -> str:
    """Describes an exception in one line, with file and line if it is from the user's own code."""
    cause = unwrap(error)
    frames = [each for each in extract_tb(cause.__traceback__) if "site-packages" not in each.filename]
    if cause is error or not frames:
        return str(cause)
    return f"{type(cause).__name__}: {cause} ({frames[-1].filename}, line {frames[-1].lineno})"


def unwrap(error: Exception | None) -> Exception | None:
    """Returns the exception that jsonargparse has wrapped."""
    while str(error).startswith(("Does not validate", "Problem with given class_path")) and error.__cause__:
        error = error.__cause__
    return error


def full_name(name: str) -> str:
    """Returns an option as it is on the command line.

    The parser of a class knows only the end of its name.
    """
    given = [word.partition("=")[0] for word in sys.argv]
    matching = [word for word in given if word.endswith(f".{name}") or word in (name, f"--{name}")]
    return [*matching, f"--{name}"][0]
