"""Tests of resuming bit-exactly: after signals and kills, and on a different number of processes."""

import contextlib
import os
import random
import re
import signal

import drill
import pytest
import torch
from runs.interrupted import CHECKPOINTED_RUN, assert_resumes_bit_exactly, assert_same_final_state, interrupt, train
from runs.programs import children, training
from runs.results import as_bytes, epoch_lines, exported_weights, samples
from runs.waiting import wait_until


@pytest.mark.parametrize(
    "hook, step, saved, epoch",
    [
        ("on_train_batch_start", 23, 21, 1),
        ("on_train_batch_end", 3, 1, 0),
        ("on_validation_batch_end", 16, 11, 0),
        ("on_train_epoch_end", 16, 11, 0),
        ("on_train_batch_end", 18, 16, 1),
        ("on_test_start", 32, 32, 2),
    ],
)
def test_a_killed_run_resumes_bit_exactly(uninterrupted, tmp_path, hook, step, saved, epoch):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, hook=hook, step=step)
    stdout = train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    assert f"resuming from logs/checkpoints/last-step={saved}.ckpt (step {saved}, epoch {epoch})\n" in stdout
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
    step = 7 if "accumulate" in options[0] else 19
    assert_resumes_bit_exactly(tmp_path, *CHECKPOINTED_RUN, *options, step=step)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook, step, saved", [("on_train_batch_end", 7, 7), ("on_validation_batch_end", 16, 11)])
def test_a_signal_stops_the_run_after_the_step_and_reports_where_it_resumes(
    uninterrupted, tmp_path, signum, hook, step, saved
):
    stderr = interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=step, hook=hook, signum=signum).stderr
    path = f"logs/checkpoints/last-step={saved}.ckpt"
    line = f"train.py: error: stopped by {signum.name} after step {step}; the newest checkpoint is {path}"
    assert stderr.splitlines()[-1] == line
    assert f"resuming from {path} (step {saved}, epoch 0)" in train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup, kind",
    [("one process", "kill -9 in save"), ("two processes", "SIGTERM to one")],
)
def test_a_drill_is_bit_exact_and_loses_at_most_one_interval(tmp_path, setup, kind):
    interruption = drill.Interruption(setup, "ResNet-18" if "save" in kind else "tiny", kind)
    drill.crash_test(interruption, tmp_path, random.Random(0))
    assert interruption.is_resumed and not interruption.differences
    assert interruption.num_steps_lost <= drill.INTERVAL


@pytest.mark.slow
def test_resuming_on_fewer_processes_loses_and_repeats_no_sample(tmp_path):
    options = ("--data=tiny.Recording", "--data.batch_size=16", "--trainer.devices=2")
    interrupt(*CHECKPOINTED_RUN, *options, cwd=tmp_path, step=20, signum=signal.SIGTERM)
    stdout = train(*CHECKPOINTED_RUN, "--data=tiny.Recording", "--data.batch_size=32", cwd=tmp_path).stdout
    # A rank learns of the signal of the other one step later.
    assert "resuming from logs/checkpoints/last-step=21.ckpt (step 21, epoch 1)\n" in stdout
    assert "resuming with world size 1 instead of 2: not bit-exact\n" in stdout
    assert samples(tmp_path, "train", 1) == list(range(500))


@pytest.mark.parametrize("saved", ["epoch=0-step=8.ckpt", "epoch=0-step=16.ckpt", "epoch=1-step=24.ckpt"])
def test_a_run_resumes_exactly_from_the_checkpoint_of_a_best_network(tmp_path, saved):
    scheduler = ("--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5")
    options = (*CHECKPOINTED_RUN, *scheduler, "--trainer.val_check_interval=8", "--checkpoint.save_top_k=-1")
    (tmp_path / "resumed").mkdir()
    expected = epoch_lines(train(*options, cwd=tmp_path).stdout)
    stdout = train(*options, f"--ckpt_path=../logs/checkpoints/{saved}", cwd=tmp_path / "resumed").stdout
    assert epoch_lines(stdout)[-1]["train_loss"] == expected[-1]["train_loss"]
    assert as_bytes(exported_weights(tmp_path / "resumed")) == as_bytes(exported_weights(tmp_path))


def test_fewer_epochs_than_already_trained_are_rejected(tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    options = ("--trainer.max_epochs=0", "--ckpt_path=last")
    line = train(*CHECKPOINTED_RUN, *options, cwd=tmp_path, code=2).stderr
    assert line.startswith("train.py: error: You restored a checkpoint with current_epoch=1, but you have set Trainer(")


def test_a_fast_dev_run_does_not_touch_an_interrupted_run(uninterrupted, tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    assert "resuming" not in train(*CHECKPOINTED_RUN, "--trainer.fast_dev_run=true", cwd=tmp_path).stdout
    assert "last-step=21.ckpt (step 21, epoch 1)" in train(*CHECKPOINTED_RUN, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_different_number_of_samples_per_step_is_rejected(tmp_path):
    interrupt(*CHECKPOINTED_RUN, cwd=tmp_path, step=23)
    line = train(*CHECKPOINTED_RUN, "--data.batch_size=16", cwd=tmp_path, code=2).stderr.splitlines()[-1]
    assert line == (
        "train.py: error: the checkpoint has 32 samples per step, 16 batches per epoch, but this run has "
        "16 samples per step, 32 batches per epoch; change --data.batch_size, or pass --ckpt_path=none"
    )


def test_non_finite_weights_stop_the_run_and_are_never_saved(tmp_path):
    result = train(*CHECKPOINTED_RUN, "--optimizer=SGD", "--optimizer.lr=1e38", cwd=tmp_path, code=1)
    line = r"train.py: error: the weights are not finite after step \d+; lower the learning rate, and start a new run"
    assert re.fullmatch(line, result.stderr.splitlines()[-1])
    for path in (tmp_path / "logs/checkpoints").glob("last*.ckpt"):
        weights = torch.load(path, weights_only=False)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_stops_the_others_after_the_timeout(tmp_path, rank):
    options = ("--trainer.devices=2", "--trainer.max_epochs=100000", "--process_group_timeout=20")
    with training(*CHECKPOINTED_RUN, *options, cwd=tmp_path) as (process, log):
        wait_until(lambda: "epoch=1 " in log(), process, log=log)
        ranks = [process.pid, *children(process.pid, "train.py")]
        try:
            os.kill(ranks[rank], signal.SIGSTOP)
            wait_until(lambda: "train.py: error: lost contact with a peer; see the logs" in log(), log=log)
            if rank == 1:
                assert process.wait(30) == 1
        finally:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
