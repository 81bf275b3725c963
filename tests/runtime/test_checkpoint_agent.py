"""Tests of jobs that resume from the copies of SageMaker's checkpoint agent, and of the agent's simulation."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import drill
import pytest
from fake_aws.checkpoint_agent import CheckpointAgent
from fake_aws.toolkit import sagemaker_environment
from runs.programs import SYNTHETIC, TINY, run_train_warm
from runtime import checkpoint_files

RUN = (*TINY, *SYNTHETIC, "--resume.every_n_steps=5")


def wait_until(condition: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, kind",
    [
        ("tiny", "kill -9 of all"),
        ("ResNet-18", "kill -9 in save"),
        ("tiny", "SIGTERM to all, one after the other"),
    ],
)
def test_a_job_resumes_bit_exactly_from_the_checkpoints_that_the_agent_copied(tmp_path, network, kind):
    interruption = drill.Interruption("two hosts", network, kind)
    drill.crash_test(interruption, tmp_path, random.Random(0))
    assert interruption.is_resumed and not interruption.differences


def test_the_agent_copies_changes_and_deletions_and_restores_the_files(tmp_path):
    folder, store = tmp_path / "folder", tmp_path / "store"
    agent = CheckpointAgent(folder, store, tmp_path / "gone", seconds=0)
    agent.start()
    (folder / "a").write_bytes(bytes(100_000))
    wait_until((store / "a").exists)
    (folder / "a").unlink()
    (folder / "b").write_text("b")
    agent.finish()
    assert [path.name for path in store.iterdir()] == ["b"]
    for number in range(2):
        CheckpointAgent(tmp_path / f"host-{number}", store, tmp_path / "gone")
        assert (tmp_path / f"host-{number}/b").read_text() == "b"


def test_the_agent_marks_the_file_that_it_copies_and_removes_its_marks(tmp_path):
    folder, seen = tmp_path / "folder", set()
    agent = CheckpointAgent(folder, tmp_path / "store", tmp_path / "gone", seconds=0)
    copy = agent.put

    def put(name: str, content: bytes) -> None:
        seen.update(path.name for path in folder.iterdir())
        copy(name, content)

    agent.put = put
    (folder / "a").touch()
    agent.start()
    agent.finish()
    assert seen == {"a", "a.sagemaker-uploading"}
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_the_agent_of_a_lost_host_stops_copying(tmp_path):
    agent = CheckpointAgent(tmp_path / "folder", tmp_path / "store", tmp_path / "gone")
    (tmp_path / "folder/a").write_text("a")
    (tmp_path / "gone").touch()
    agent.start()
    agent.finish()
    assert not list((tmp_path / "store").iterdir())


def test_the_agent_gives_up_at_a_file_that_keeps_growing(tmp_path):
    agent = CheckpointAgent(tmp_path / "folder", tmp_path / "store", tmp_path / "gone", seconds=0, growth_seconds=0.05)
    agent.start()
    with open(tmp_path / "folder/events", "w") as file:
        while not agent.gave_up_at:
            file.write("event\n")
            file.flush()
            time.sleep(0.001)
    (tmp_path / "folder/later").touch()
    agent.finish()
    assert agent.gave_up_at == "events" and not (tmp_path / "store/later").exists()


def run_and_kill(folder: Path, step: int, hook: str) -> dict[str, str]:
    """Runs a job that kills itself at a step and returns its environment; an epoch has 16 steps."""
    (folder / "checkpoints").mkdir()
    environment = sagemaker_environment(folder)
    options = {"file": folder / "step", "step": step, "hook": hook}
    drill = (
        "--trainer.callbacks=tiny.Drill",
        *(f"--trainer.callbacks.{key}={value}" for key, value in options.items()),
    )
    run_train_warm(*RUN, *drill, cwd=folder, env=environment, code=-9)
    return environment


def test_the_previous_best_network_stays_until_the_agent_had_time_to_copy(tmp_path):
    run_and_kill(tmp_path, step=32, hook="on_test_start")
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("epoch*"))
    assert names == ["epoch=0-step=16.ckpt", "epoch=1-step=32.ckpt"]


def test_a_checkpoint_that_the_agent_is_copying_is_not_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_HOSTS", "[]")
    monkeypatch.setattr(checkpoint_files, "SECONDS_BEFORE_DELETION", 0)
    files = checkpoint_files.CheckpointFiles(tmp_path)
    first, *others = [tmp_path / f"last-step={step}.ckpt" for step in (1, 2, 3, 4)]
    uploading, uploaded = (tmp_path / f"{first.name}.sagemaker-{state}" for state in ("uploading", "uploaded"))
    uploading.touch()
    for path in (first, *others):
        path.touch()
        files.keep(path)
    assert first.exists() and not others[0].exists()
    uploaded.touch()
    files.keep(others[-1])
    assert not first.exists()


def test_half_a_checkpoint_has_a_name_that_the_agent_skips_and_is_deleted_later(tmp_path):
    files = checkpoint_files.CheckpointFiles(tmp_path)
    path = tmp_path / "last-step=1.ckpt"
    partial = tmp_path / f"{path.name}.123.sagemaker-ignore"
    partial.touch()
    files.save_checkpoint({}, str(path))
    files.keep(path)
    assert path.exists() and not partial.exists()


def test_a_checkpoint_without_its_best_network_is_not_resumed_from(tmp_path):
    environment = run_and_kill(tmp_path, step=23, hook="on_train_batch_end")
    (tmp_path / "checkpoints/epoch=0-step=16.ckpt").unlink()
    result = run_train_warm(*RUN, cwd=tmp_path, env=environment)
    assert "resuming from" in result.stdout and "/last-step=11.ckpt, step 11 in epoch 0\n" in result.stdout
    assert "the last network is tested and exported" not in result.stderr
