"""A container's first process: runs a command, passes SIGTERM on to what trains, ends with the command's exit code.

When SageMaker takes back the spot instance of one host, the ranks of all hosts end, most of them without a SIGTERM of
their own. A host that reported a failure then might end the whole job, which should go on later: so it waits first.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil

BASE_DIR = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
SECONDS = float(os.environ.get("SIGTERM_WAIT_SECONDS", "120"))  # SageMaker's own time between SIGTERM and SIGKILL
# Words of app/runtime and of SageMaker's toolkit in a failure that may be another host's, and what they mean. With NCCL
# a lost peer raises no error: torch aborts the rank, and Lightning then kills the other ranks of that host.
REASONS = {
    "have lost, each other": "a peer was lost: ",
    "stopped by SIGTERM": "another host was stopped, and this one not: ",
    "ExitCode -6": "a rank was aborted, most likely because a peer was lost or hung: ",
    "ExitCode -9": "a rank was killed, because memory ran out or another rank of its host was lost: ",
}


def main(command: list[str]) -> int:
    """Runs `command` and returns its exit code, 128 + n if signal n ended it."""
    process, is_stopped = None, False

    def forward(signum: int, frame: FrameType | None) -> None:
        nonlocal is_stopped
        is_stopped = True
        if process is None:
            sys.exit(128 + signum)
        # SageMaker's toolkit, `train`, would die of the signal at once, and the container before its ranks can react.
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks = process.children(recursive=True)
            for receiver in ranks if ranks and command[0] == "train" else [process, *ranks]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    receiver.send_signal(signum)

    signal.signal(signal.SIGTERM, forward)
    process = psutil.Popen(command)
    code = process.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if code and command[0] == "train" and not is_stopped:
        wait_if_a_peer_was_lost()
    return code if code >= 0 else 128 - code


def wait_if_a_peer_was_lost() -> None:
    """Says in the reason that the failure may be another host's, if so, and gives SageMaker the time for a SIGTERM."""
    file = BASE_DIR / "output/failure"  # SageMaker shows the first 1,024 characters
    reason = file.read_text(errors="replace") if file.exists() else ""
    meaning = next((meaning for words, meaning in REASONS.items() if words in reason), None)
    if meaning is None:
        return
    file.write_text(meaning + reason)
    if len(json.loads((BASE_DIR / "input/config/resourceconfig.json").read_text())["hosts"]) > 1:
        print(f"{meaning}waiting {SECONDS:g} s for SIGTERM", file=sys.stderr, flush=True)
        signal.sigtimedwait({signal.SIGTERM}, SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
