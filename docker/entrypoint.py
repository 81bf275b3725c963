"""First process of a container: runs a command, forwards SIGTERM to it, and exits with its exit code.

When SageMaker reclaims the spot instance of one host, the ranks of all hosts exit, most of them without a SIGTERM of
their own. A host that reported a failure then might fail the whole job, although the job should resume later. So a host
whose failure may be due to a different host waits for SIGTERM before it exits.
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
WAIT_SECONDS = float(os.environ.get("SIGTERM_WAIT_SECONDS", "120"))  # what SageMaker leaves from SIGTERM to SIGKILL
# Failures that may be due to a different host, with their explanations. app/runtime begins a failure with one of these
# tags and a colon; the second line of a failure of SageMaker's toolkit is the exit code of train.py. With NCCL a lost
# peer raises no error: torch aborts the rank, and Lightning then kills the other ranks of that host.
TAGS = {
    "PeerLost": "a peer was lost",
    "Stopped": "a rank on another host was stopped",
}
EXIT_CODES = {
    "ExitCode -6": "a rank was aborted (with several GPUs, usually because a peer was lost or hung)",
    "ExitCode -9": "a rank was killed (out of memory, or another rank on this host failed)",
}


def main(command: list[str]) -> int:
    """Runs `command` and returns its exit code, or 128 + n if it was ended by signal n."""
    process = None
    got_sigterm = False

    def forward(signum: int, frame: FrameType | None) -> None:
        nonlocal got_sigterm
        got_sigterm = True
        if process is None:
            sys.exit(128 + signum)
        # SageMaker's toolkit, `train`, would exit at once and end the container before the ranks can react.
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks = process.children(recursive=True)
            for receiver in ranks if ranks and command[0] == "train" else [process, *ranks]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    receiver.send_signal(signum)

    signal.signal(signal.SIGTERM, forward)
    process = psutil.Popen(command)
    code = process.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if code and command[0] == "train" and not got_sigterm:
        wait_if_due_to_different_host()
    return code if code >= 0 else 128 - code


def wait_if_due_to_different_host() -> None:
    """Waits for SIGTERM if the failure may be due to a different host, after adding an explanation to the failure."""
    file = BASE_DIR / "output/failure"  # SageMaker shows the first 1,024 characters
    failure = file.read_text(errors="replace") if file.exists() else ""
    tag, _, message = failure.partition(":")
    second_line = failure.partition("\n")[2].partition("\n")[0]
    if tag in TAGS:
        explanation = TAGS[tag]
        message = message.lstrip()
    elif second_line in EXIT_CODES:
        explanation = EXIT_CODES[second_line]
        message = failure
    else:
        return
    file.write_text(f"{explanation}: {message}")
    hosts = json.loads((BASE_DIR / "input/config/resourceconfig.json").read_text())["hosts"]
    if len(hosts) > 1:
        print(f"{explanation}: waiting up to {WAIT_SECONDS:g} s for SIGTERM", file=sys.stderr, flush=True)
        signal.sigtimedwait({signal.SIGTERM}, WAIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
