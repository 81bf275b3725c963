"""A parser that says in one line what jsonargparse says in many; all private names of jsonargparse are here."""

import difflib
import re
import sys
from typing import NoReturn, get_args

from pytorch_lightning.cli import LightningArgumentParser

from runtime.errors import exit_with


class Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        while str(ex).startswith("Does not validate") and ex.__cause__:  # jsonargparse around our own line
            ex = message = ex.__cause__
        options = re.findall(r"^  --([\w.]+)", self.format_help(), re.MULTILINE)
        # Not an exception, which a parser of a class around this one would take for one of several possible reasons.
        exit_with(explain(str(message), options), 2)

    def read_whole_numbers_as_such(self) -> None:
        """typing caches Union[float, int] and Union[int, float] as one, so that 1 (batch) could become 1.0 (all)."""
        for action in self._actions:
            if {int, float} <= set(get_args(getattr(action, "_typehint", None))):
                action._typehint = int | action._typehint


# One line that names the option, the value, and what is allowed, from the many of jsonargparse.
def explain(message: str, options: list[str]) -> str:
    if typo := re.search(r"(?:arguments: (?:--)?|ption ')([^\s=']+)", message):
        names = {name.split(".")[-1]: name for name in options} | {name: name for name in options}
        option, similar = in_full(typo[1]), difflib.get_close_matches(typo[1], names, 1)
        known = f"did you mean {option.removesuffix(typo[1])}{names[similar[0]]}?" if similar else ""
        return f"there is no option {option}; {known or 'see --help, or --data.help=CLASS and so on'}"
    message = re.sub(r'Parser key "([^"]+)"', lambda key: in_full(key[1]), message)
    message = message.replace("the following arguments are required", "not given, but required (--data.NAME and so on)")
    kinds = re.findall(r"Expected a (?:<class '(?:\w+\.)*(\w+)|typing.Literal\[(.*?)\]|dot (import path))", message)
    if given := re.search(r"(?:Given|Got) value: (.*)", message):
        problem = re.search(r"^ {4}- (?!Expected a)(?:Problem with .*\s+)?(.+)", message, re.MULTILINE)
        reason = problem[1] if problem else f"it must be {' or '.join(map(''.join, kinds)).replace('NoneType', 'null')}"
        return f"{message.partition(':')[0]}={given[1]} is not valid: {reason}"
    files = re.findall(r"--config[ =](\S+)", " ".join(sys.argv))
    return message + (f" (in {' or '.join(files)})" if files else "")


# The option as it is on the command line: a parser of a class knows only the end of its name.
def in_full(name: str) -> str:
    given = [word.partition("=")[0] for word in sys.argv]
    return next((word for word in given if word.endswith(f".{name}") or word in (name, f"--{name}")), f"--{name}")
