"""The pages of the tutorial, and their blocks of commands, run as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from runs.programs import ENVIRONMENT, ROOT

PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


class Block(NamedTuple):
    page: Path
    language: str
    fate: str  # "executed by FILE", "parsed" or "not run: REASON"
    commands: str
    output: str  # some of its lines, as the page shows them


BLOCKS = [
    Block(page, *match.groups(default=""))
    for page, text in PAGES.items()
    for match in re.finditer(r"^```(bash|python) ?(.*)\n((?:.*\n)*?)```\n(?:\n```text\n((?:.*\n)*?)```\n)?", text, re.M)
]


def block(words: str) -> str:
    """Returns the commands of the only block that equals `words`, or else of the only block that contains them."""
    same = [block.commands for block in BLOCKS if block.commands == words]
    (found,) = same or [block.commands for block in BLOCKS if words in block.commands]
    return found


def run_block(commands: str, cwd: Path, **environment: str) -> str:
    """Runs the commands of a block in an activated virtual environment, and returns their stdout."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    command = ["bash", "-c", commands]
    result = subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{commands}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def form(line: str) -> str:
    """Replaces the numbers in a line, which differ between machines, except the number of an epoch."""
    return re.sub(r"(?<!epoch=)\d[\d.]*", "#", line)


def same_lines(shown: str, output: str) -> list[str]:
    """Returns the lines of `output` that have the same form as the lines shown on a page, in the same order."""
    lines = iter(output.splitlines())
    found = [next((line for line in lines if form(line) == form(wanted)), None) for wanted in shown.splitlines()]
    assert None not in found, f"no line like {shown.splitlines()[found.index(None)]!r} in\n{output}"
    return found
