"""Hosts of a SageMaker job that are lost, stopped or fail, and how the other hosts react."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from fake_aws.toolkit import Host
from runs.programs import children
from runs.waiting import wait_until

ENDLESS = {"trainer.max_epochs": "100000"}
LOST_PEER = "a peer was lost: train.py: error: "


def wait_for(text: str, host: Host, timeout: float = 120) -> None:
    """Waits until a running host has printed a text."""
    wait_until(lambda: text in host.log, host.process, timeout, log=lambda: host.log)


@pytest.mark.slow
def test_an_exception_on_one_host_is_reported_at_once_and_fails_the_job(job):
    hosts = job(2, ENDLESS | {"trainer.callbacks": "tiny.Fail"}, SIGTERM_WAIT_SECONDS="60")
    assert hosts[1].wait() == 1
    assert hosts[1].failure == "RuntimeError: as the test wants it"
    wait_for("a peer was lost: waiting up to 60 s for SIGTERM", hosts[0], timeout=20)
    hosts[0].process.terminate()  # as SageMaker does with the other hosts of a job that has failed
    assert hosts[0].wait(timeout=5) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_lost_its_peer_waits_for_sigterm_and_reports_the_loss(job, lost):
    hosts = job(2, ENDLESS, SIGTERM_WAIT_SECONDS="5")
    wait_for("epoch=1 ", hosts[0])
    hosts[lost].kill()
    other = hosts[1 - lost]
    wait_for("a peer was lost: waiting up to 5 s for SIGTERM", other, timeout=15)
    start = time.monotonic()
    assert other.wait() == 1
    assert 4 < time.monotonic() - start < 30
    assert other.failure.startswith(LOST_PEER) and "Connection" in other.failure


@pytest.mark.slow
def test_a_host_whose_peer_gets_sigterm_saves_and_waits_for_its_own_sigterm(job):
    hosts = job(2, ENDLESS, SIGTERM_WAIT_SECONDS="60")
    wait_for("epoch=1 ", hosts[0])
    hosts[1].process.terminate()
    assert hosts[1].wait(timeout=20) == 1
    assert hosts[1].failure.startswith("Stopped: ")
    explanation = "a rank on another host was stopped: "
    wait_for(f"{explanation}waiting up to 60 s for SIGTERM", hosts[0], timeout=20)
    hosts[0].process.terminate()
    assert hosts[0].wait(timeout=5) == 1
    assert re.match(rf"{explanation}.* SIGTERM .*/last-step=\d+\.ckpt$", hosts[0].failure)


@pytest.mark.slow
def test_an_aborted_rank_is_reported_as_most_likely_due_to_a_lost_peer(job, tmp_path):
    hosts = job(2, ENDLESS | drill(tmp_path, signum=signal.SIGABRT))  # as NCCL's watchdog aborts it
    assert [host.wait() for host in hosts] == [1, 1]
    assert hosts[0].failure.startswith(LOST_PEER)
    line = "a rank was aborted (with several GPUs, usually because a peer was lost or hung): "
    assert hosts[1].failure.startswith(f"{line}ExecuteUserScriptError:\nExitCode -6\n")
    assert f"{line}waiting up to 2 s for SIGTERM" in hosts[1].log


@pytest.mark.slow
def test_the_only_host_of_a_job_does_not_wait_for_sigterm(job, tmp_path):
    (host,) = job(1, ENDLESS | drill(tmp_path, signum=signal.SIGKILL, rank=0), SIGTERM_WAIT_SECONDS="60")
    wait_for("Reporting training FAILURE", host)
    assert host.wait(timeout=20) == 1
    line = "a rank was killed (out of memory, or another rank on this host failed): "
    assert host.failure.startswith(f"{line}ExecuteUserScriptError:\nExitCode -9\n")


@pytest.mark.slow
def test_a_hanging_rank_is_reported_as_a_lost_peer_after_the_timeout(job, tmp_path):
    hosts = job(2, ENDLESS | drill(tmp_path, signum=signal.SIGSTOP) | {"process_group_timeout": "10"})
    assert hosts[0].wait() == 1
    assert hosts[0].failure.startswith(LOST_PEER)
    assert hosts[1].process.poll() is None


def drill(folder: Path, signum: int, rank: int = 1) -> dict[str, str]:
    """Returns the options that make a rank, by default that of the second host, signal itself in the second epoch."""
    values = {"file": folder / "step", "hook": "on_train_batch_end", "step": 40, "rank": rank, "signum": int(signum)}
    options = {f"trainer.callbacks.{name}": str(value) for name, value in values.items()}
    return {"trainer.callbacks": "tiny.Drill"} | options


@pytest.mark.slow
def test_a_killed_process_ends_all_hosts_within_seconds(job):
    hosts = job(2, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", hosts[0])
    (main,) = children(hosts[1].process.pid, "train.py --")[:1]
    os.kill(children(main, "train.py")[0], signal.SIGKILL)
    assert [host.wait(timeout=20) for host in hosts] == [1, 1]
    assert re.match("a peer was lost: |a rank was killed, out of memory or", hosts[1].failure)


@pytest.mark.slow
def test_a_host_that_never_starts_is_reported_as_a_lost_peer(job):
    (host,) = job(2, {"process_group_timeout": "5"}, only=1)
    assert host.wait() == 1
    assert host.failure.startswith(LOST_PEER)
    assert "see the logs of all hosts" in host.failure and "1/2 clients joined" in host.failure
    assert "Traceback" not in host.log


@pytest.mark.slow
def test_sigterm_reaches_the_training_processes_and_their_exit_code_is_reported(job):
    (host,) = job(1, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", host)
    host.process.terminate()
    assert host.wait(timeout=20) == 1  # the toolkit's, for any failure
    assert re.search(r"train.py: error: .* SIGTERM .*/last-step=\d+\.ckpt\n", host.log)
    assert host.failure.startswith("Stopped: ") and "ExitCode 143" in host.log
