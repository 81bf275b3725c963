"""Tests of the checkpoint files: which of them are found, skipped, kept and deleted, and what a full disk does."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
from fake_aws.toolkit import sagemaker_environment
from runs.interrupted import CHECKPOINTED_RUN, assert_same_final_state, interrupt, train
from runs.programs import run_train, training
from runs.results import epoch_lines, last_checkpoint
from runs.waiting import wait_until
from runtime import checkpoint_files

SLOW_STEPS = ("--trainer.callbacks=tiny.Drill", "--trainer.callbacks.file=step", "--trainer.callbacks.seconds=0.02")
TEN_SLOW_EPOCHS = (*CHECKPOINTED_RUN, *SLOW_STEPS, "--trainer.max_epochs=10")


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Creates the checkpoint folder of a SageMaker job, and returns the job's environment."""
    (tmp_path / "checkpoints").mkdir()
    return sagemaker_environment(tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "one bit"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(uninterrupted, tmp_path, damage):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    newest = tmp_path / "logs/checkpoints/last-step=21.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "cut off":
        content[len(content) // 2 :] = b""
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    stdout = train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    reason = "last-step=21.ckpt is not a readable checkpoint of train.py ("
    assert stdout.startswith(f"skipping logs/checkpoints/last-step=21.ckpt: {reason}")
    assert "resuming from logs/checkpoints/last-step=16.ckpt (step 16, epoch 1)\n" in stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_without_a_readable_checkpoint_the_run_starts_from_scratch(tmp_path):
    (tmp_path / "logs/checkpoints").mkdir(parents=True)
    (tmp_path / "logs/checkpoints/last-step=9.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "logs/checkpoints/last-step=8.ckpt")
    stdout = train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    assert stdout.count("skipping ") == 2
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("last*.ckpt"))
    assert names == ["last-step=31.ckpt", "last-step=32.ckpt"]


def test_checkpoints_are_ordered_by_step_not_by_modification_time(uninterrupted, tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    os.utime(tmp_path / "logs/checkpoints/last-step=21.ckpt", (0, 0))
    assert "last-step=21.ckpt (step 21, epoch 1)" in train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_run_resumes_from_a_moved_checkpoint_folder(uninterrupted, tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs/checkpoints").rename(tmp_path / "elsewhere/checkpoints")
    moved = "--checkpoint.dirpath=elsewhere/checkpoints"
    stdout = train(*CHECKPOINTED_RUN, moved, cwd=tmp_path).stdout
    assert "resuming from elsewhere/checkpoints/last-step=21.ckpt" in stdout
    (tmp_path / "elsewhere/checkpoints").rename(tmp_path / "logs/checkpoints")
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_run_with_a_different_network_or_options_does_not_resume(tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    stdout = train(*CHECKPOINTED_RUN, "--optimizer.lr=0.1", cwd=tmp_path).stdout
    path = "logs/checkpoints/last-step=21.ckpt"
    reason = f"has a different optimizer lr (--ckpt_path={path} resumes from it)"
    assert f"skipping {path}: {reason}; this run will delete it when it saves a checkpoint\n" in stdout
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    options = ("--model=tiny.Dropout", f"--ckpt_path={path}")
    stderr = train(*CHECKPOINTED_RUN, *options, cwd=tmp_path, code=2).stderr
    reason = "has different parameter names or shapes than this network"
    assert stderr == f"train.py: error: --ckpt_path={path}: {reason}\n"


def test_ckpt_path_none_starts_from_scratch_and_a_finished_run_is_not_resumed(uninterrupted, tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    for options in ("--ckpt_path=none",), ():
        output = train(*CHECKPOINTED_RUN, *options, cwd=tmp_path).stdout
        assert "resuming" not in output
        assert [line["epoch"] for line in epoch_lines(output)] == [0, 1]
    one, other = (folder / "logs/checkpoints/model.pt" for folder in (uninterrupted, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def test_a_job_that_sagemaker_restarts_resumes_even_with_ckpt_path_none(uninterrupted, tmp_path):
    options, environment = (*CHECKPOINTED_RUN, "--ckpt_path=none"), {"TRAINING_JOB_NAME": "job-1"}
    interrupt(*options, cwd=tmp_path, step=23, env=environment)
    stdout = train(*options, cwd=tmp_path, env=environment).stdout
    assert "resuming from logs/checkpoints/last-step=21.ckpt (step 21, epoch 1)" in stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_restarted_job_prefers_its_own_checkpoints_to_those_of_a_longer_run(tmp_path, uninterrupted):
    train(*CHECKPOINTED_RUN, "--trainer.max_epochs=4", cwd=tmp_path)  # up to step 64
    options, environment = (*CHECKPOINTED_RUN, "--ckpt_path=none"), {"TRAINING_JOB_NAME": "job-1"}
    foreign = (tmp_path / "logs/checkpoints/last-step=64.ckpt").read_bytes()
    interrupt(*options, cwd=tmp_path, step=23, env=environment)
    # In SageMaker, a checkpoint of a different run is kept for ten minutes.
    (tmp_path / "logs/checkpoints/last-step=64.ckpt").write_bytes(foreign)
    stdout = train(*options, cwd=tmp_path, env=environment).stdout
    assert "resuming from logs/checkpoints/last-step=21.ckpt (step 21, epoch 1)" in stdout


def test_a_checkpoint_without_its_best_network_is_not_resumed_from(tmp_path, job):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23, env=job)
    (tmp_path / "checkpoints/epoch=0-step=16.ckpt").unlink()
    result = train(*CHECKPOINTED_RUN, cwd=tmp_path, env=job)
    assert "/last-step=21.ckpt: epoch=0-step=16.ckpt is not a readable checkpoint of train.py" in result.stdout
    assert "resuming from" in result.stdout and "/last-step=11.ckpt (step 11, epoch 0)\n" in result.stdout
    assert "using the final weights" not in result.stderr


def test_only_the_best_and_the_last_two_checkpoints_are_kept(tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("*.ckpt*"))
    assert names == ["epoch=0-step=16.ckpt", "last-step=16.ckpt", "last-step=21.ckpt"]


def test_the_previous_best_network_is_kept_while_a_checkpoint_refers_to_it(tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, hook="on_test_start", step=32)
    assert [path.name for path in (tmp_path / "logs/checkpoints").glob("epoch*")] == ["epoch=1-step=32.ckpt"]
    for path in (tmp_path / "logs/checkpoints").iterdir():
        path.unlink()
    interrupt(*CHECKPOINTED_RUN, "--trainer.max_epochs=3", cwd=tmp_path, hook="on_train_epoch_end", step=32)
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("epoch*"))
    assert "epoch=0-step=16.ckpt" in names  # to which last-step=31.ckpt refers


def test_in_sagemaker_checkpoints_of_the_last_ten_minutes_are_kept(tmp_path, job):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23, env=job)
    steps = sorted(int(path.stem.split("=")[1]) for path in (tmp_path / "checkpoints").glob("last-*"))
    assert steps == [1, 6, 11, 16, 21]
    assert not (tmp_path / "checkpoints/tensorboard").exists()  # its files grow


def test_the_previous_best_network_stays_until_the_agent_had_time_to_copy(tmp_path, job):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=32, hook="on_test_start", env=job)
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


def test_a_partial_file_of_a_killed_run_is_deleted(tmp_path):
    files = checkpoint_files.CheckpointFiles(tmp_path)
    path = tmp_path / "last-step=1.ckpt"
    partial = tmp_path / f"{path.name}.123.sagemaker-ignore"
    partial.touch()
    files.save_checkpoint({}, str(path))
    files.keep(path)
    assert path.exists() and not partial.exists()


def test_checkpoints_do_not_need_the_temporary_folder(tmp_path):
    train(*CHECKPOINTED_RUN, cwd=tmp_path, env={"TMPDIR": "/proc"})
    assert last_checkpoint(tmp_path / "logs/checkpoints").name == "last-step=32.ckpt"


def fill(disk: Path) -> None:
    """Fills a disk with one large file."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb") as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_a_full_disk_is_reported_and_saving_is_retried(tmp_path, small_disk):
    fill(small_disk)
    options = (*TEN_SLOW_EPOCHS, f"--checkpoint.dirpath={small_disk}", "--model_dir=.")
    with training(*options, cwd=tmp_path) as (process, log):
        wait_until(lambda: "could not write" in log(), process, log=log)
        wait_until(lambda: "; for now, this run can resume only" in log(), process, log=log)
        (small_disk / "filler").unlink()
        assert process.wait(120) == 0
    assert last_checkpoint(small_disk).name == "last-step=160.ckpt"


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, small_disk):
    fill(small_disk)
    result = run_train(*CHECKPOINTED_RUN, f"--checkpoint.dirpath={small_disk}", "--model_dir=.", cwd=tmp_path, code=1)
    assert result.stderr.splitlines()[-1].startswith("train.py: error: could not write the last checkpoint: [Err")
    assert "test accuracy" in result.stdout and (tmp_path / "model.pt").exists()
    assert not list(small_disk.glob("*.ckpt*"))


@pytest.mark.slow
def test_a_deleted_checkpoint_folder_is_recreated(tmp_path):
    with training(*TEN_SLOW_EPOCHS, cwd=tmp_path) as (process, log):
        wait_until(lambda: "epoch=1 " in log(), process, log=log)
        (tmp_path / "logs/checkpoints").rename(tmp_path / "vanished")
        assert process.wait(120) == 0
    assert last_checkpoint(tmp_path / "logs/checkpoints").name == "last-step=160.ckpt"
