"""A container's first process: runs a command, passes SIGTERM on to what trains, ends with the command's exit code."""

import contextlib
import signal
import sys
from types import FrameType

import psutil


def main(command: list[str]) -> int:
    """Runs `command` and returns its exit code, 128 + n if signal n ended it."""
    process = None

    def forward(signum: int, frame: FrameType | None) -> None:
        if process is None:
            sys.exit(128 + signum)
        # SageMaker's toolkit, `train`, would die of the signal at once, and with it the container, before the ranks
        # that it has started can react.
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks = process.children(recursive=True)
            for receiver in ranks if ranks and command[0] == "train" else [process, *ranks]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    receiver.send_signal(signum)

    signal.signal(signal.SIGTERM, forward)
    process = psutil.Popen(command)
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
