"""Tests of resuming custom Lightning projects: bit-exactly with stateful loaders, or from the last complete epoch."""

import re
import signal
from random import Random

import drill_own_project
import pytest
import torch
from projects import LogsEverything, ReturnsTensor
from runs.interrupted import (
    GLYPHS,
    THREE_EPOCHS,
    assert_resumes_bit_exactly,
    assert_same_final_state,
    interrupt,
    options_of,
    train,
)
from runs.results import last_checkpoint, samples

PLAIN, STATEFUL = "--data=projects.PlainData", "--data=projects.StatefulData"
NOT_STATEFUL = "the training loader cannot resume mid-epoch: resumed runs repeat the interrupted epoch"


@pytest.mark.parametrize(
    "hook, step, signum",
    [
        ("on_train_batch_end", 17, signal.SIGKILL),
        ("on_validation_batch_end", 20, signal.SIGKILL),
        ("on_train_batch_end", 14, signal.SIGTERM),
        pytest.param("on_train_batch_start", 1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("on_train_epoch_end", 10, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("on_validation_batch_end", 10, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_of_a_custom_project_resumes_bit_exactly(uninterrupted_glyphs, tmp_path, hook, step, signum):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, hook=hook, step=step, signum=signum)
    assert "resuming from logs/checkpoints/last-step=" in train(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted_glyphs[0], tmp_path)


FAST_CASES = [
    # options, and the step at which a run is killed
    (("--model=projects.OnPlateau", STATEFUL, "--trainer.val_check_interval=0.25"), 17),
    (("--model=projects.Manual", STATEFUL), 34),
    (("--model=projects.LogsEverything", STATEFUL), 17),
    (("--model=projects.LogsEverything", STATEFUL), 19),  # with one batch left in the epoch
]
SLOW_CASES = [
    (("--model=glyph_net.ScheduledGlyphNet", "--data=glyph_data.GlyphDataModule"), 17),
    (("--model=projects.OneCycle", STATEFUL, "--trainer.accumulate_grad_batches=3"), 7),
    (("--model=projects.OneCycle", STATEFUL, "--trainer.max_steps=27", "--trainer.max_epochs=-1"), 24),
    (("--model=projects.ReturnsDict", STATEFUL, "--trainer.check_val_every_n_epoch=2"), 17),
    (("--model=projects.ReturnsTensor", STATEFUL, "--trainer.limit_train_batches=8"), 13),
    (("--model=projects.ReturnsTensor", STATEFUL, "--trainer.limit_val_batches=0"), 17),
    (("--model=projects.ReturnsTensor", STATEFUL, "--data.batch_size=100"), 2),
    (("--model=projects.ReturnsTensor", STATEFUL, "--data.batch_size=50"), 3),
    (("--model=projects.Regression", STATEFUL), 17),
    (("--model=projects.Regression", STATEFUL, "--checkpoint.monitor=train_mse"), 17),
    (("--model=projects.LogsEverything", STATEFUL, "--trainer.accumulate_grad_batches=3"), 7),
    (("--model=projects.LogsEverything", STATEFUL, "--trainer.val_check_interval=0.25"), 17),
    (("--model=projects.ReturnsTensor", "--data=projects.RandomSamplerData"), 17),
]


@pytest.mark.parametrize(
    "options, step",
    [*FAST_CASES, *(pytest.param(*values, marks=pytest.mark.slow) for values in SLOW_CASES)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_resuming_is_bit_exact_for_any_model_data_and_trainer_options(tmp_path, options, step):
    assert_resumes_bit_exactly(tmp_path, *THREE_EPOCHS, *options, step=step)


@pytest.mark.slow
@pytest.mark.parametrize("module", [ReturnsTensor, LogsEverything])
def test_two_processes_with_a_distributed_sampler_resume_bit_exactly(tmp_path, module):
    options = (*options_of(module, "OwnSamplerData"), *THREE_EPOCHS, "--trainer.devices=2")
    assert_resumes_bit_exactly(tmp_path, *options, step=8, signum=signal.SIGTERM, cold=True)


@pytest.mark.slow
def test_workers_resume_bit_exactly_if_their_dataset_is_not_random(tmp_path):
    options = (*GLYPHS, *THREE_EPOCHS, "--data.num_workers=2", "--data.shift=0", "--trainer.limit_val_batches=0")
    assert_resumes_bit_exactly(tmp_path, *options, step=17, cold=True)


@pytest.mark.parametrize("data", [STATEFUL, PLAIN])
def test_no_step_is_repeated_and_counters_are_restored(tmp_path, data):
    options = ("--model=projects.CountsItself", data, *THREE_EPOCHS, "--trainer.callbacks+=projects.Counting")
    interrupt(*options, cwd=tmp_path, step=17)
    train(*options, cwd=tmp_path)
    checkpoint = torch.load(last_checkpoint(tmp_path / "logs/checkpoints"), weights_only=False)
    assert checkpoint["counts"] == {"training_step": 30, "on_train_batch_end": 30}
    assert checkpoint["callbacks"]["Counting"] == {"num_batches": 30}


@pytest.mark.parametrize("data", ["PlainData", "StreamData"])
def test_with_a_stateless_loader_a_run_resumes_from_the_last_complete_epoch(tmp_path, data):
    options = (*options_of(ReturnsTensor, data), *THREE_EPOCHS, "--trainer.callbacks+=projects.Counting")
    stdout = interrupt(*options, cwd=tmp_path, step=17).stdout
    assert stdout.count(NOT_STATEFUL) == 1
    (tmp_path / "train-0").unlink()
    assert "last-step=10.ckpt (step 10, epoch 1)\n" in train(*options, cwd=tmp_path).stdout
    first, second = (samples(tmp_path, "train", epoch) for epoch in (1, 2))
    assert len(set(first)) == len(first) == 100 and first == second


def test_a_stateful_loader_is_not_reported_as_stateless(uninterrupted_glyphs):
    assert NOT_STATEFUL not in uninterrupted_glyphs[1]


@pytest.mark.slow
def test_two_processes_with_lightnings_sampler_report_a_stateless_loader(tmp_path):
    options = (*options_of(ReturnsTensor, "StatefulData"), "--trainer.max_epochs=1", "--trainer.devices=2")
    assert train(*options, cwd=tmp_path, cold=True).stdout.count(NOT_STATEFUL) == 1


def test_resuming_with_a_different_batch_size_is_rejected(tmp_path):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, step=17)
    options = (*GLYPHS, *THREE_EPOCHS, "--data.batch_size=50")
    stderr = train(*options, "--ckpt_path=last", cwd=tmp_path, code=2).stderr
    assert stderr.splitlines()[-1] == (
        "train.py: error: the checkpoint has 10 batches per epoch, 1 batches per step, 1 processes, but this run has "
        "12 batches per epoch, 1 batches per step, 1 processes; change --data.batch_size, or pass --ckpt_path=none"
    )
    path = "logs/checkpoints/last-step=16.ckpt"
    line = f"skipping {path}: has a different data batch_size (--ckpt_path={path} resumes from it); this run will "
    assert line in train(*options, cwd=tmp_path).stdout


@pytest.mark.slow
def test_resuming_on_a_different_number_of_processes_is_rejected(tmp_path):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, step=17)
    result = train(*GLYPHS, *THREE_EPOCHS, "--trainer.devices=2", cwd=tmp_path, code=2)
    line = r"the checkpoint has .*1 processes, but this run has .*2 processes; change --data.batch_size, or pass"
    assert re.search(line, result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["custom project", "custom schedules", "validation within epochs"])
def test_a_drill_is_bit_exact(tmp_path, kind):
    _, found = drill_own_project.crash_test(kind, tmp_path, Random(0))
    assert not found
