"""docker/entrypoint.py, with a stand-in for the toolkit's `train` that only leaves the failure of a job."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs.programs import ROOT, children, executable
from runs.waiting import wait_until

ENTRYPOINT = [sys.executable, str(ROOT / "docker/entrypoint.py")]
ABORTED = 'ExecuteUserScriptError:\nExitCode -6\nErrorMessage ""'
KILLED = 'ExecuteUserScriptError:\nExitCode -9\nErrorMessage ""'


class Container:
    """The folders of one of two hosts. Its `train` fails, and leaves `failure`, if any."""

    def __init__(self, folder: Path, failure: str | None, hosts: tuple[str, ...] = ("algo-1", "algo-2")):
        self.failure_file = folder / "output/failure"
        self.failure_file.parent.mkdir()
        config = folder / "input/config/resourceconfig.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"current_host": "algo-1", "hosts": hosts}))
        train = executable(folder / "bin/train", "exit 1")
        if failure is not None:
            self.failure_file.write_text(failure)
        self.environment = os.environ | {
            "SAGEMAKER_BASE_DIR": str(folder),
            "SIGTERM_WAIT_SECONDS": "0",
            "PATH": f"{train.parent}:{os.environ['PATH']}",
        }

    def run(self) -> str:
        """Runs the entrypoint, and returns what it prints."""
        command = [*ENTRYPOINT, "train"]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1, result.stderr
        return result.stderr


@pytest.mark.parametrize("message", ["train.py: error: connection closed by peer", "anything else", "", "Stopped: x"])
@pytest.mark.parametrize(
    ("failure", "explanation"),
    [("PeerLost: {}", "a peer was lost: {}"), ("Stopped: {}", "a rank on another host was stopped: {}")],
)
def test_a_tag_is_explained_whatever_message_follows(tmp_path, failure, explanation, message):
    container = Container(tmp_path, failure.format(message))
    stderr = container.run()
    assert container.failure_file.read_text() == explanation.format(message)
    assert stderr == explanation.format("waiting up to 0 s for SIGTERM\n")


@pytest.mark.parametrize(
    ("failure", "explanation"),
    [
        (ABORTED, "a rank was aborted (with several GPUs, usually because a peer was lost or hung): "),
        (KILLED, "a rank was killed (out of memory, or another rank on this host failed): "),
    ],
)
def test_an_exit_code_in_the_toolkits_failure_is_explained(tmp_path, failure, explanation):
    container = Container(tmp_path, failure)
    assert container.run() == f"{explanation}waiting up to 0 s for SIGTERM\n"
    assert container.failure_file.read_text() == explanation + failure


@pytest.mark.parametrize(
    "failure",
    [
        None,
        "",
        "RuntimeError: PeerLost: is the name of a class",
        "ValueError: ExitCode -6",
        "the ranks lost contact with a peer, which was stopped by SIGTERM",
        'ExecuteUserScriptError:\nExitCode 1\nErrorMessage "ExitCode -9\n"',
        'ExecuteUserScriptError:\nExitCode 1\nErrorMessage "\nExitCode -9\n"',
    ],
)
def test_any_other_failure_is_left_alone_and_ends_the_container_at_once(tmp_path, failure):
    container = Container(tmp_path, failure)
    assert container.run() == ""
    assert failure == (container.failure_file.read_text() if container.failure_file.exists() else None)


def test_the_only_host_of_a_job_does_not_wait_for_sigterm(tmp_path):
    container = Container(tmp_path, "PeerLost: message", hosts=("algo-1",))
    assert container.run() == ""
    assert container.failure_file.read_text() == "a peer was lost: message"


@pytest.mark.parametrize(("command", "code"), [("exit 5", 5), ("kill -9 $$", 128 + signal.SIGKILL)])
def test_any_command_can_be_run_and_its_exit_code_is_kept(command, code):
    assert subprocess.run([*ENTRYPOINT, "sh", "-c", command]).returncode == code


def test_sigterm_is_forwarded_to_the_command():
    process = subprocess.Popen([*ENTRYPOINT, "sleep", "60"])
    wait_until(lambda: children(process.pid, "sleep 60"), process)
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
