"""Tests of resuming bit-exactly: after signals, full disks, damaged files and lost ranks."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import drill
import pytest
import torch
from runs.programs import ENVIRONMENT, ROOT, SYNTHETIC, TINY, children, run_train, run_train_warm
from runs.results import as_bytes, epoch_lines, last_checkpoint, samples, scalars

RUN = (*TINY, *SYNTHETIC, "--resume.every_n_steps=5", "--trainer.log_every_n_steps=3")
DRILL = ("--trainer.callbacks=tiny.Drill", "--trainer.callbacks.file=step")


def run_and_kill(*options: str, step: int = 23, hook: str = "on_train_batch_end", code: int = -9, **kwargs) -> str:
    """Sends SIGKILL, or another signal, to a run at a step and returns its stderr; an epoch has 16 steps."""
    values = {"step": step, "hook": hook, "signum": -code if code < 0 else code - 128}
    interruption = [f"--trainer.callbacks.{key}={value}" for key, value in values.items()]
    return run_train_warm(*RUN, *options, *DRILL, *interruption, code=code, **kwargs).stderr


def final_state(folder: Path) -> dict[str, object]:
    """Returns everything that must be the same in two runs, with tensors as bytes."""
    checkpoint = torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    (log_dir,) = (folder / "logs/tensorboard/tutorial").iterdir()
    series = scalars(log_dir)
    series["images_per_second"] = [step for step, _ in series["images_per_second"]]
    model = (folder / "logs/checkpoints/model.pt").read_bytes()
    return {name: as_bytes(checkpoint[name]) for name in names} | {"model": model, "series": series}


def assert_same_final_state(one: Path, other: Path) -> None:
    differences = [name for name, value in final_state(one).items() if final_state(other)[name] != value]
    assert not differences


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_train_warm(*RUN, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "hook, step, point",
    [
        ("on_train_batch_start", 23, "21 in epoch 1"),
        ("on_train_batch_end", 3, "1 in epoch 0"),
        ("on_validation_batch_end", 16, "11 in epoch 0"),
        ("on_train_epoch_end", 16, "11 in epoch 0"),
        ("on_train_batch_end", 18, "16 in epoch 1"),
        ("on_test_start", 32, "32 in epoch 2"),
    ],
)
def test_a_killed_run_resumes_bit_exactly(uninterrupted, tmp_path, hook, step, point):
    run_and_kill(cwd=tmp_path, hook=hook, step=step)
    stdout = run_train_warm(*RUN, cwd=tmp_path).stdout
    assert f"resuming from logs/checkpoints/last-step={point.split()[0]}.ckpt, step {point}\n" in stdout
    assert_same_final_state(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (
            *("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=train_loss", "--lr_scheduler.patience=0"),
            "--optimizer.lr=1",
        ),
        ("--trainer.accumulate_grad_batches=3",),
        ("--trainer.val_check_interval=0.25",),
        ("--trainer.limit_train_batches=10",),
        ("--trainer.max_steps=30", "--trainer.max_epochs=-1"),
        ("--model=tiny.Dropout",),
        ("--trainer.check_val_every_n_epoch=2",),
        ("--trainer.limit_val_batches=0", "--checkpoint.monitor=train_loss"),
    ],
    ids=" ".join,
)
def test_resuming_is_bit_exact_for_any_model_and_trainer_options(tmp_path, options):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run_train_warm(*RUN, *options, cwd=tmp_path / "a")
    run_and_kill(*options, cwd=tmp_path / "b", step=7 if "accumulate" in options[0] else 19)
    assert "resuming from" in run_train_warm(*RUN, *options, cwd=tmp_path / "b").stdout
    assert_same_final_state(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook, step, saved", [("on_train_batch_end", 7, 7), ("on_validation_batch_end", 16, 11)])
def test_a_signal_stops_the_run_after_the_step_and_reports_where_it_resumes(
    uninterrupted, tmp_path, signum, hook, step, saved
):
    stderr = run_and_kill(cwd=tmp_path, step=step, hook=hook, code=128 + signum)
    path = f"logs/checkpoints/last-step={saved}.ckpt"
    line = f"train.py: error: stopped by {signum.name} after step {step}; the same command resumes from {path}"
    assert stderr.splitlines()[-1] == line
    assert f"resuming from {path}, step {saved} in epoch 0" in run_train_warm(*RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup, kind",
    [
        ("one process", "kill -9 in save"),
        ("two processes", "SIGTERM to one"),
    ],
)
def test_a_drill_is_bit_exact_and_loses_at_most_one_interval(tmp_path, setup, kind):
    interruption = drill.Interruption(setup, "ResNet-18" if "save" in kind else "tiny", kind)
    drill.crash_test(interruption, tmp_path, random.Random(0))
    assert interruption.is_resumed and not interruption.differences
    assert interruption.num_steps_lost <= drill.INTERVAL


@pytest.mark.parametrize("damage", ["cut off", "one bit"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(uninterrupted, tmp_path, damage):
    run_and_kill(cwd=tmp_path)
    newest = tmp_path / "logs/checkpoints/last-step=21.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "cut off":
        content[len(content) // 2 :] = b""
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    stdout = run_train_warm(*RUN, cwd=tmp_path).stdout
    assert stdout.startswith("skipping logs/checkpoints/last-step=21.ckpt: not a readable checkpoint of train.py (")
    assert "resuming from logs/checkpoints/last-step=16.ckpt, step 16 in epoch 1\n" in stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_only_the_best_and_the_last_two_checkpoints_are_kept(tmp_path):
    run_and_kill(cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("*.ckpt*"))
    assert names == ["epoch=0-step=16.ckpt", "last-step=16.ckpt", "last-step=21.ckpt"]


def test_in_sagemaker_checkpoints_of_the_last_ten_minutes_are_kept(tmp_path):
    paths = {"SM_MODEL_DIR": "model", "SM_OUTPUT_DIR": "output", "SM_OUTPUT_DATA_DIR": "output/data"}
    hosts = {"SM_HOSTS": '["127.0.0.1"]', "SM_CURRENT_HOST": "127.0.0.1"}
    for folder in ("output", "checkpoints"):
        (tmp_path / folder).mkdir()
    run_and_kill(cwd=tmp_path, env=ENVIRONMENT | hosts | {name: str(tmp_path / path) for name, path in paths.items()})
    steps = sorted(int(path.stem.split("=")[1]) for path in (tmp_path / "checkpoints").glob("last-*"))
    assert steps == [1, 6, 11, 16, 21]
    assert not (tmp_path / "checkpoints/tensorboard").exists()  # its files grow


def test_a_run_resumes_from_a_moved_checkpoint_folder(uninterrupted, tmp_path):
    run_and_kill(cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs/checkpoints").rename(tmp_path / "elsewhere/checkpoints")
    moved = "--checkpoint.dirpath=elsewhere/checkpoints"
    assert "resuming from elsewhere/checkpoints/last-step=21.ckpt" in run_train_warm(*RUN, moved, cwd=tmp_path).stdout
    (tmp_path / "elsewhere/checkpoints").rename(tmp_path / "logs/checkpoints")
    assert_same_final_state(uninterrupted, tmp_path)


def test_the_previous_best_network_is_kept_while_a_checkpoint_refers_to_it(tmp_path):
    run_and_kill(cwd=tmp_path, hook="on_test_start", step=32)
    assert [path.name for path in (tmp_path / "logs/checkpoints").glob("epoch*")] == ["epoch=1-step=32.ckpt"]
    for path in (tmp_path / "logs/checkpoints").iterdir():
        path.unlink()
    run_and_kill("--trainer.max_epochs=3", cwd=tmp_path, hook="on_train_epoch_end", step=32)
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("epoch*"))
    assert "epoch=0-step=16.ckpt" in names  # to which last-step=31.ckpt refers


def test_checkpoints_do_not_need_the_temporary_folder(tmp_path):
    run_train_warm(*RUN, cwd=tmp_path, env=ENVIRONMENT | {"TMPDIR": "/proc"})
    assert last_checkpoint(tmp_path / "logs/checkpoints").name == "last-step=32.ckpt"


def test_without_a_readable_checkpoint_the_run_starts_from_scratch(tmp_path):
    (tmp_path / "logs/checkpoints").mkdir(parents=True)
    (tmp_path / "logs/checkpoints/last-step=9.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "logs/checkpoints/last-step=8.ckpt")
    stdout = run_train_warm(*RUN, cwd=tmp_path).stdout
    assert stdout.count("skipping ") == 2
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("last*.ckpt"))
    assert names == ["last-step=31.ckpt", "last-step=32.ckpt"]


def test_a_run_with_a_different_network_or_options_does_not_resume(tmp_path):
    run_and_kill(cwd=tmp_path)
    stdout = run_train_warm(*RUN, "--optimizer.lr=0.1", cwd=tmp_path).stdout
    assert (
        "skipping logs/checkpoints/last-step=21.ckpt: was saved with a different optimizer lr; this run will replace it"
        in stdout
    )
    run_and_kill(cwd=tmp_path)
    options = ("--model=tiny.Dropout", "--ckpt_path=logs/checkpoints/last-step=21.ckpt")
    stderr = run_train_warm(*RUN, *options, cwd=tmp_path, code=2).stderr
    reason = "logs/checkpoints/last-step=21.ckpt: has different parameter names or shapes than this network"
    assert stderr == f"train.py: error: --ckpt_path: {reason}\n"


def test_ckpt_path_none_starts_from_scratch_and_a_finished_run_is_not_resumed(uninterrupted, tmp_path):
    run_and_kill(cwd=tmp_path)
    for options in ("--ckpt_path=none",), ():
        output = run_train_warm(*RUN, *options, cwd=tmp_path).stdout
        assert "resuming" not in output
        assert [line["epoch"] for line in epoch_lines(output)] == [0, 1]
    assert (uninterrupted / "logs/checkpoints/model.pt").read_bytes() == (
        tmp_path / "logs/checkpoints/model.pt"
    ).read_bytes()


def test_a_job_that_sagemaker_restarts_resumes_even_with_ckpt_path_none(uninterrupted, tmp_path):
    job = {"env": ENVIRONMENT | {"TRAINING_JOB_NAME": "job-1"}}
    run_and_kill("--ckpt_path=none", cwd=tmp_path, **job)
    stdout = run_train_warm(*RUN, "--ckpt_path=none", cwd=tmp_path, **job).stdout
    assert "resuming from logs/checkpoints/last-step=21.ckpt, step 21 in epoch 1" in stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_checkpoints_are_ordered_by_step_not_by_modification_time(uninterrupted, tmp_path):
    run_and_kill(cwd=tmp_path)
    os.utime(tmp_path / "logs/checkpoints/last-step=21.ckpt", (0, 0))
    assert "last-step=21.ckpt, step 21 in epoch 1" in run_train_warm(*RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


@pytest.mark.slow
def test_resuming_on_fewer_processes_loses_and_repeats_no_sample(tmp_path):
    options = ("--data=tiny.Recording", "--data.batch_size=16", "--trainer.devices=2")
    run_and_kill(*options, cwd=tmp_path, step=20, code=128 + signal.SIGTERM)
    stdout = run_train_warm(*RUN, "--data=tiny.Recording", "--data.batch_size=32", cwd=tmp_path).stdout
    # A rank learns of the signal of the other one step later.
    assert "resuming from logs/checkpoints/last-step=21.ckpt, step 21 in epoch 1\n" in stdout
    assert "resuming with world size 1 instead of 2: not bit-exact\n" in stdout
    assert samples(tmp_path, "train", 1) == list(range(500))


def test_fewer_epochs_than_already_trained_are_rejected(tmp_path):
    run_and_kill(cwd=tmp_path)
    options = ("--trainer.max_epochs=0", "--ckpt_path=last")
    line = run_train_warm(*RUN, *options, cwd=tmp_path, code=2).stderr
    assert line.startswith("train.py: error: You restored a checkpoint with current_epoch=1, but you have set Trainer(")


def test_a_fast_dev_run_does_not_touch_an_interrupted_run(uninterrupted, tmp_path):
    run_and_kill(cwd=tmp_path)
    assert "resuming" not in run_train_warm(*RUN, "--trainer.fast_dev_run=true", cwd=tmp_path).stdout
    assert "last-step=21.ckpt, step 21 in epoch 1" in run_train_warm(*RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_different_number_of_samples_per_step_is_rejected(tmp_path):
    run_and_kill(cwd=tmp_path)
    line = run_train_warm(*RUN, "--data.batch_size=16", cwd=tmp_path, code=2).stderr.splitlines()[-1]
    assert line == (
        "train.py: error: the checkpoint has 32 samples per step, 16 batches per epoch, this run 16 samples per step, "
        "32 batches per epoch; use equal values, or pass --ckpt_path=none to start from scratch"
    )


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Mounts a small file system at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount).returncode:
        pytest.skip(reason="only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def training(*options: str, cwd: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
    """Trains in the background; yields the process and a function that returns its output so far."""
    with open(cwd / "log", "w") as log:
        command = [sys.executable, ROOT / "app/train.py", *RUN, *options]
        process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process, (cwd / "log").read_text
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], object], process: subprocess.Popen, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_saving_is_retried(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk)
        slow = (*DRILL, "--trainer.callbacks.seconds=0.02", f"--checkpoint.dirpath={disk}", "--model_dir=.")
        with training(*slow, "--trainer.max_epochs=10", cwd=tmp_path) as (process, log):
            wait_until(
                lambda: (
                    "could not write" in log() and "; training continues and retries at the next checkpoint" in log()
                ),
                process,
            )
            (disk / "filler").unlink()
            assert process.wait(120) == 0
        assert last_checkpoint(disk).name == "last-step=160.ckpt"


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk)
        result = run_train(*RUN, f"--checkpoint.dirpath={disk}", "--model_dir=.", cwd=tmp_path, code=1)
        assert result.stderr.splitlines()[-1].startswith("train.py: error: could not write the last checkpoint: [Err")
        assert "test accuracy" in result.stdout and (tmp_path / "model.pt").exists()
        assert not list(disk.glob("*.ckpt*"))


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb") as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_a_deleted_checkpoint_folder_is_recreated(tmp_path):
    slow = (*DRILL, "--trainer.callbacks.seconds=0.02", "--trainer.max_epochs=10")
    with training(*slow, cwd=tmp_path) as (process, log):
        wait_until(lambda: "epoch=1 " in log(), process)
        (tmp_path / "logs/checkpoints").rename(tmp_path / "vanished")
        assert process.wait(120) == 0
    assert last_checkpoint(tmp_path / "logs/checkpoints").name == "last-step=160.ckpt"


def test_non_finite_weights_stop_the_run_and_are_never_saved(tmp_path):
    result = run_train_warm(*RUN, "--optimizer=SGD", "--optimizer.lr=1e38", cwd=tmp_path, code=1)
    line = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"train.py: error: the weights are not finite after step \d+; lower --optimizer.lr, which starts a new run",
        line,
    )
    for path in (tmp_path / "logs/checkpoints").glob("last*.ckpt"):
        weights = torch.load(path, weights_only=False)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_stops_the_others_after_the_timeout(tmp_path, rank):
    options = ("--trainer.devices=2", "--trainer.max_epochs=100000", "--process_group_timeout=20")
    with training(*options, cwd=tmp_path) as (process, log):
        wait_until(lambda: "epoch=1 " in log(), process)
        ranks = [process.pid, *children(process.pid, "train.py")]
        try:
            os.kill(ranks[rank], signal.SIGSTOP)
            expected = "train.py: error: lost contact with a peer (see --process_group"
            deadline = time.monotonic() + 90
            while expected not in log():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            if rank == 1:
                assert process.wait(30) == 1
        finally:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_partially_written_checkpoint_is_removed(tmp_path):
    (tmp_path / "logs/checkpoints").mkdir(parents=True)
    (tmp_path / "logs/checkpoints/last-step=7.ckpt").write_text("half")
    run_train_warm(*RUN, "--trainer.max_epochs=1", cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / "logs/checkpoints").glob("last*.ckpt"))
    assert names == ["last-step=11.ckpt", "last-step=16.ckpt"]
