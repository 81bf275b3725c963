"""Runs programs on a terminal."""

import os
import pty
import subprocess
import termios
from typing import Any


def run_on_terminal(command: list[str], **kwargs: Any) -> str:
    """Returns the output of a command, which must succeed, on a terminal of 100 columns."""
    terminal, program = pty.openpty()
    termios.tcsetwinsize(program, (24, 100))
    process = subprocess.Popen(command, stdin=program, stdout=program, stderr=program, **kwargs)
    os.close(program)
    output = b""
    try:
        while chunk := os.read(terminal, 1 << 16):
            output += chunk
    except OSError:  # the last process has closed the terminal
        pass
    os.close(terminal)
    assert process.wait(timeout=60) == 0, output.decode()
    return output.decode()
