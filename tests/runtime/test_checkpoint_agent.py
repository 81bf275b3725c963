"""Tests of jobs that resume from the copies of SageMaker's checkpoint agent, and of the agent's simulation."""

import random
import time

import drill
import pytest
from fake_aws.checkpoint_agent import CheckpointAgent
from runs.waiting import wait_until


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
    wait_until((store / "a").exists, timeout=20)
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
