"""Hosts of a SageMaker job that are lost, stopped or fail, and what the others then do and report."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import ROOT, children
from toolkit import Host

ENDLESS = {"trainer.max_epochs": "100000"}


def wait_for(text: str, host: Host, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while text not in host.log:
        assert time.monotonic() < deadline and host.process.poll() is None, host.log
        time.sleep(0.1)


@pytest.mark.slow
def test_a_rank_that_raises_is_reported_at_once_and_ends_the_job(job):
    hosts = job(2, ENDLESS | {"trainer.callbacks": "tiny.Fail"}, SIGTERM_WAIT_SECONDS="60")
    assert hosts[1].wait() == 1
    assert hosts[1].failure == "RuntimeError: as the test wants it"
    wait_for("a peer was lost: waiting 60 s for SIGTERM", hosts[0], timeout=20)
    hosts[0].process.terminate()  # as SageMaker does with the other hosts of a job that has failed
    assert hosts[0].wait(timeout=5) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_loses_a_peer_waits_for_its_own_sigterm_and_then_reports_that(job, lost):
    hosts = job(2, ENDLESS, SIGTERM_WAIT_SECONDS="5")
    wait_for("epoch=1 ", hosts[0])
    hosts[lost].kill()
    other = hosts[1 - lost]
    wait_for("a peer was lost: waiting 5 s for SIGTERM", other, timeout=15)
    start = time.monotonic()
    assert other.wait() == 1
    assert 4 < time.monotonic() - start < 30
    assert other.failure.startswith("a peer was lost: train.py: error: the processes have not found, or have lost,")
    assert "Connection" in other.failure


@pytest.mark.slow
def test_a_host_whose_peer_is_taken_back_saves_and_waits_for_its_own_sigterm(job):
    hosts = job(2, ENDLESS, SIGTERM_WAIT_SECONDS="60")
    wait_for("epoch=1 ", hosts[0])
    hosts[1].process.terminate()
    assert hosts[1].wait(timeout=20) == 1
    assert hosts[1].failure.startswith("train.py: error: stopped by SIGTERM after step")
    wait_for("another host was stopped, and this one not: waiting 60 s for SIGTERM", hosts[0], timeout=20)
    hosts[0].process.terminate()
    assert hosts[0].wait(timeout=5) == 1
    assert re.match(
        r"another host was stopped, and this one not: train.py: error: stopped by SIGTERM after step \d+; "
        r"the same command resumes from \S+/last-step=\d+.ckpt$",
        hosts[0].failure,
    )


# As NCCL's watchdog does.
@pytest.mark.slow
def test_a_rank_that_is_aborted_is_told_as_most_likely_a_lost_peer(job, tmp_path):
    hosts = job(2, ENDLESS | drill(tmp_path, signum=signal.SIGABRT))
    assert [host.wait() for host in hosts] == [1, 1]
    assert hosts[0].failure.startswith("a peer was lost: train.py: error: the processes have not found, or have lost,")
    line = "a rank was aborted, most likely because a peer was lost or hung: "
    assert hosts[1].failure.startswith(f"{line}ExecuteUserScriptError:\nExitCode -6\n")
    assert f"{line}waiting 2 s for SIGTERM" in hosts[1].log


@pytest.mark.slow
def test_a_host_without_others_waits_for_nothing(job, tmp_path):
    (host,) = job(1, ENDLESS | drill(tmp_path, signum=signal.SIGKILL, rank=0), SIGTERM_WAIT_SECONDS="60")
    wait_for("Reporting training FAILURE", host)
    assert host.wait(timeout=20) == 1
    line = "a rank was killed, because memory ran out or another rank of its host was lost: "
    assert host.failure.startswith(f"{line}ExecuteUserScriptError:\nExitCode -9\n")


@pytest.mark.slow
def test_a_rank_that_hangs_is_a_lost_peer_when_the_time_is_over(job, tmp_path):
    hosts = job(2, ENDLESS | drill(tmp_path, signum=signal.SIGSTOP) | {"process_group_timeout": "10"})
    assert hosts[0].wait() == 1
    assert hosts[0].failure.startswith("a peer was lost: train.py: error: the processes have not found, or have lost,")
    assert hosts[1].process.poll() is None


def drill(folder: Path, signum: int, rank: int = 1) -> dict[str, str]:
    """A rank, on the second host if not told otherwise, which signals itself in the second epoch."""
    values = {"file": folder / "step", "hook": "on_train_batch_end", "step": 40, "rank": rank, "signum": int(signum)}
    options = {f"trainer.callbacks.{name}": str(value) for name, value in values.items()}
    return {"trainer.callbacks": "tiny.Drill"} | options


@pytest.mark.slow
def test_a_process_that_dies_takes_its_host_and_the_others_down_within_seconds(job):
    hosts = job(2, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", hosts[0])
    (main,) = children(hosts[1].process.pid, "train.py --")[:1]
    os.kill(children(main, "train.py")[0], signal.SIGKILL)
    assert [host.wait(timeout=20) for host in hosts] == [1, 1]
    assert re.match("a peer was lost: |a rank was killed, because memory ran out or another rank", hosts[1].failure)


@pytest.mark.slow
def test_a_host_that_never_comes_up_ends_in_a_clear_error(job):
    (host,) = job(2, {"process_group_timeout": "5"}, only=1)
    assert host.wait() == 1
    assert host.failure.startswith(
        "a peer was lost: train.py: error: the processes have not found, or have lost, each other within"
    )
    assert "--process_group_timeout" in host.failure and "1/2 clients joined" in host.failure
    assert "Traceback" not in host.log


@pytest.mark.slow
def test_sigterm_reaches_the_training_processes_and_the_exit_code_comes_back(job):
    (host,) = job(1, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", host)
    host.process.terminate()
    assert host.wait(timeout=20) == 1  # the toolkit's, for any failure
    assert re.search(
        r"train.py: error: stopped by SIGTERM after step \d+; the same command resumes from \S+/last-step=\d+.ckpt\n",
        host.log,
    )
    assert "stopped by SIGTERM after step" in host.failure and "ExitCode 143" in host.log


def test_the_entrypoint_runs_any_command_and_keeps_its_exit_code():
    entrypoint = [sys.executable, ROOT / "docker/entrypoint.py"]
    assert subprocess.run([*entrypoint, "sh", "-c", "exit 5"]).returncode == 5
    assert subprocess.run([*entrypoint, "sh", "-c", "kill -9 $$"]).returncode == 128 + signal.SIGKILL
    process = subprocess.Popen([*entrypoint, "sleep", "60"])
    while not children(process.pid, "sleep 60"):
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
