"""A parser that says in one line what jsonargparse says in many; all private names of jsonargparse are here."""

import difflib
import re
import sys
from argparse import SUPPRESS
from typing import ClassVar, NoReturn, get_args

from jsonargparse import ArgumentParser
from pytorch_lightning.cli import LightningArgumentParser

from runtime.errors import exit_with


class Parser(LightningArgumentParser):
    """Explains also the options of the classes that the program knows, in --help."""

    known_classes: ClassVar[dict[str, list[type]]] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        while str(ex).startswith("Does not validate") and ex.__cause__:  # jsonargparse around our own line
            ex = message = ex.__cause__
        options = re.findall(r"^  (--[\w.]+)", self.format_help(), re.MULTILINE)
        # Not an exception, which a parser of a class around this one would take for one of several possible reasons.
        exit_with(explain(str(message), options, self.known_classes), 2)

    def format_help(self) -> str:
        sections = [super().format_help()]
        for key, classes in self.known_classes.items():
            for known in classes:
                parser = ArgumentParser(usage=SUPPRESS, add_help=False)
                # What the program itself gives is skipped.
                parser.add_class_arguments(known, key, skip={"params", "optimizer"}, fail_untyped=False)
                sections.append(f"With --{key}={known.__name__}:\n{parser.format_help()}")
        return "\n".join(sections)

    def read_whole_numbers_as_such(self) -> None:
        """typing caches Union[float, int] and Union[int, float] as one, so that 1 (batch) could become 1.0 (all)."""
        for action in self._actions:
            if {int, float} <= set(get_args(getattr(action, "_typehint", None))):
                action._typehint = int | action._typehint


def explain(message: str, options: list[str], known_classes: dict[str, list[type]]) -> str:
    """One line that names the option, the value, and what is allowed, from the many of jsonargparse."""
    kinds = re.findall(r"<class '(?:\w+\.)*(\w+)|Literal\[(.*?)\]", message.split("Errors:")[0])
    names = {option.split(".")[-1]: option for option in options} | {option: option for option in options}
    if typo := re.search(r"(?:arguments: |ption ')([^\s=']+)", message):
        option = as_given(typo[1])
        if similar := difflib.get_close_matches(typo[1], names, 1):
            known = names[similar[0]]
            if "." not in known and option != typo[1]:
                known = option.removesuffix(typo[1]) + known.removeprefix("--")
            return f"there is no option {option}; did you mean {known}?"
        order = f"; {option.rpartition('.')[0]}=CLASS comes before its arguments" if option != typo[1] else ""
        return f"there is no option {option}; --help lists all options{order}"
    if kinds and (given := re.search(r'key "([^"]+)":.*(?:Given|Got) value: (.*)', message, re.DOTALL)):
        key, value = given.groups()
        option = names.get(key) or as_given(key)
        option = option if option.startswith("--") else f"--{option}"
        # This reason says why a class cannot be imported.
        if reason := re.search(r"^ {4}- (?!Expected a)(?:Problem with .*\s+)?(.+)", message, re.MULTILINE):
            return f"{option}={value} is not valid: {reason[1]}"
        allowed = " or ".join(map("".join, kinds)).replace(", ", " or ").replace("NoneType", "null")
        classes = [known.__name__ for known in known_classes.get(key, [])]
        hint = f", such as {' or '.join(classes)}; --help explains more" if classes else ""
        return f"{option}={value} is not valid: it must be {allowed}{hint}"
    files = re.findall(r"(?:-c|--config)[ =](\S+)", " ".join(sys.argv))
    message = re.sub(r'Parser key "([^"]+)"', lambda key: names.get(key[1], f"--{key[1]}"), message)
    of_class = "not given, but required (an argument of --data's class is --data.NAME, and so on): "
    message = message.replace("the following arguments are required: ", of_class)
    return message + (f" (in {' or '.join(files)})" if files else "")


def as_given(name: str) -> str:
    """The option with this name, in full if it is on the command line: a parser of a class knows only the end of it."""
    options = [word.partition("=")[0] for word in sys.argv]
    return next((option for option in options if option.endswith(f".{name}")), name)
