"""Habits of public Lightning projects: what Lightning allows works, and resumes exactly or says that it does not."""

import os
import re
import time
from pathlib import Path

import pytest
import torch
from habits import Adjustable
from runs.interrupted import CPU_OPTIONS, assert_resumes_bit_exactly, interrupt, train
from runs.programs import PATH, training
from runs.results import epoch_lines, exported_weights, last_checkpoint, scalars
from runs.waiting import wait_until

STATEFUL = "--data=projects.StatefulData"
TENSOR = ("--model=projects.ReturnsTensor", STATEFUL)
EVERY_3_STEPS = "--resume.every_n_steps=3"


def checkpoints(folder: Path) -> list[str]:
    """Returns the names of the checkpoints of a run."""
    return sorted(path.name for path in (folder / "logs/checkpoints").glob("*.ckpt"))


def test_the_best_of_several_validations_within_an_epoch_is_exported(tmp_path):
    options = ("--model=habits.BestInTheMiddle", STATEFUL, "--trainer.max_epochs=1")
    train(*options, "--trainer.val_check_interval=0.25", cwd=tmp_path)
    assert "epoch=0-step=4.ckpt" in checkpoints(tmp_path)
    best = torch.load(tmp_path / "logs/checkpoints/epoch=0-step=4.ckpt")["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in exported_weights(tmp_path).items())


def test_the_best_network_is_found_again_if_its_metric_has_a_slash(tmp_path):
    best = ("--checkpoint.monitor=val/loss", "--checkpoint.filename={epoch}-{val/loss:.2f}")
    options = ("--model=habits.BestAtFirst", STATEFUL, "--trainer.max_epochs=3", EVERY_3_STEPS, *best)
    interrupt(*options, cwd=tmp_path, step=27)
    result = train(*options, cwd=tmp_path)
    assert "resuming from" in result.stdout and "warning" not in result.stderr
    assert (tmp_path / "logs/checkpoints/epoch=0-val/loss=0.00.ckpt").exists()


def test_a_module_that_saves_a_part_of_its_weights_is_trained_and_resumed(tmp_path):
    options = ("--model=habits.PartlySaved", STATEFUL, "--trainer.max_epochs=3", EVERY_3_STEPS)
    interrupt(*options, cwd=tmp_path, step=17)
    assert "resuming from" in train(*options, cwd=tmp_path).stdout
    assert {"layer.weight", "frozen.weight"} <= exported_weights(tmp_path).keys()


def test_a_module_that_resizes_a_buffer_before_loading_resumes_bit_exactly(tmp_path):
    options = ("--model=habits.GrowingMemory", STATEFUL, "--trainer.max_epochs=2", EVERY_3_STEPS)
    assert_resumes_bit_exactly(tmp_path, *options, step=17)
    assert len(exported_weights(tmp_path / "interrupted")["memory"]) == 20


@pytest.mark.slow
def test_lazy_and_compiled_layers_are_trained_resumed_and_exported_by_their_names(tmp_path):
    options = ("--model=habits.Lazy", STATEFUL, "--trainer.max_epochs=2", EVERY_3_STEPS)
    interrupt(*options, cwd=tmp_path, step=7)
    assert "resuming from" in train(*options, cwd=tmp_path).stdout
    assert exported_weights(tmp_path).keys() == {"layer.0._extra_state", "layer.1.weight", "layer.1.bias"}


def test_a_checkpoint_loads_with_the_safe_defaults_of_torch_and_lightning(tmp_path):
    train("--model=habits.Adjustable", STATEFUL, "--trainer.max_epochs=1", cwd=tmp_path)
    for name in checkpoints(tmp_path):
        Adjustable.load_from_checkpoint(tmp_path / "logs/checkpoints" / name)


@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.callbacks+=TQDMProgressBar",),
        ("--trainer.plugins=LightningEnvironment",),
        ("--trainer.callbacks=tiny.PrintWeights",),
        ("--data=null", "--model=projects.WithOwnLoaders"),
    ],
    ids=["progress bar", "a single plugin", "a single callback", "no data module"],
)
def test_options_that_lightnings_trainer_accepts_are_accepted(tmp_path, options):
    train(*TENSOR, "--trainer.max_epochs=1", *options, cwd=tmp_path)
    assert (tmp_path / "logs/checkpoints/model.pt").exists()


def test_without_a_logger_no_file_in_the_current_folder_is_written(tmp_path):
    recipe = "{model: projects.ReturnsTensor, data: projects.StatefulData, trainer: {max_epochs: 1, logger: false}}\n"
    (tmp_path / "config.yaml").write_text(recipe)
    train("--config=config.yaml", cwd=tmp_path)
    assert (tmp_path / "config.yaml").read_text() == recipe


def test_a_dev_run_writes_nothing(tmp_path):
    train(*TENSOR, "--trainer.max_epochs=1", cwd=tmp_path)
    before = (tmp_path / "logs/checkpoints/model.pt").stat().st_mtime_ns
    result = train(*TENSOR, "--trainer.fast_dev_run=true", "--seed_everything=7", cwd=tmp_path)
    assert (tmp_path / "logs/checkpoints/model.pt").stat().st_mtime_ns == before
    assert "shown by" not in result.stdout


def test_a_tilde_is_the_home_folder(tmp_path):
    options = ("--checkpoint.dirpath=~/checkpoints", "--logger.save_dir=~/runs", "--trainer.max_epochs=1")
    train(*TENSOR, *options, cwd=tmp_path, env={"HOME": str(tmp_path / "home")})
    assert (tmp_path / "home/checkpoints/model.pt").exists()
    assert not (tmp_path / "~").exists()


FINDER = ("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=8")
SCHEDULE = ("--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={1: 2}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "callback, step",
    [((*FINDER, "--model=habits.Adjustable"), 17), ((*SCHEDULE, "--model=projects.ReturnsTensor"), 13)],
    ids=["learning rate that was found", "accumulation schedule"],
)
def test_a_run_with_a_callback_that_changes_the_training_resumes_bit_exactly(tmp_path, callback, step):
    options = (STATEFUL, "--trainer.max_epochs=3", EVERY_3_STEPS, *callback)
    assert_resumes_bit_exactly(tmp_path, *options, step=step)


@pytest.mark.slow
def test_a_run_that_stopped_early_and_was_killed_in_its_test_only_repeats_the_test(tmp_path):
    stopping = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
    best = "--checkpoint.monitor=val/loss"
    options = ("--model=habits.BestAtFirst", STATEFUL, "--trainer.max_epochs=9", EVERY_3_STEPS, best, *stopping)
    interrupt(*options, cwd=tmp_path, step=1, hook="on_test_start")
    newest = last_checkpoint(tmp_path / "logs/checkpoints")
    assert epoch_lines(train(*options, cwd=tmp_path).stdout) == []
    assert last_checkpoint(tmp_path / "logs/checkpoints") == newest


@pytest.mark.slow
def test_a_callback_that_does_not_restore_all_of_its_state_is_named(tmp_path):
    averaging = ("--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.5")
    result = train("--model=habits.Adjustable", STATEFUL, "--trainer.max_epochs=2", *averaging, cwd=tmp_path)
    assert "StochasticWeightAveraging cannot be restored completely: a resumed run is not bit-exact\n" in result.stdout
    config = "logs/tensorboard/tutorial/version_0/config.yaml"
    train(f"--config={config}", "--ckpt_path=none", cwd=tmp_path)  # which jsonargparse alone cannot read


@pytest.mark.slow
def test_a_log_of_many_images_is_not_stored_in_checkpoints(tmp_path):
    result = train("--model=habits.Pictures", STATEFUL, "--trainer.max_epochs=3", cwd=tmp_path)
    assert last_checkpoint(tmp_path / "logs/checkpoints").stat().st_size < 100_000
    line = "train.py: warning: the TensorBoard log exceeds 10 MB and is not in checkpoints"
    assert result.stderr.count(line) == 1


def test_overfitting_uses_the_same_images_in_each_epoch(tmp_path):
    data = ("--data=tiny.Recording", "--data.num_train_images=60", "--data.num_test_images=20", "--data.val_split=20")
    limits = ("--data.batch_size=4", "--trainer.max_epochs=3", "--trainer.overfit_batches=2")
    train("--model=tiny.Tiny", *data, *limits, cwd=tmp_path)
    lines = [line.split() for line in (tmp_path / "train-0").read_text().splitlines()]
    images = [{index for epoch, index in lines if epoch == str(number)} for number in range(3)]
    assert images[0] == images[1] == images[2] and len(images[0]) == 8


@pytest.mark.parametrize(
    "options, line",
    [
        (("--model=habits.BadConstructor", STATEFUL), r"AssertionError: embed_dim must be .*/habits.py, line \d+\)"),
        (("--model=habits.make_network", STATEFUL), "--model=habits.make_network: expected a LightningModule.*"),
        (("--config=s3://my-bucket/config.yaml",), ".*s3.*"),
        (("--model=imports_lightning.Net", STATEFUL), ".*No module named 'lightning'; import pytorch_lightning.*"),
    ],
)
def test_a_mistake_of_the_project_is_one_line(tmp_path, options, line):
    (tmp_path / "imports_lightning.py").write_text("from lightning.pytorch import LightningModule as Net\n")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"}
    is_cold = options[0].startswith("--model=imports_lightning")  # a warm process has its own PYTHONPATH
    stderr = train(*options, cwd=tmp_path, cold=is_cold, code=2, env=env).stderr
    assert re.fullmatch(f"train.py: error: {line}\n", stderr), stderr


def test_early_stopping_on_a_metric_that_is_never_logged_ends_in_one_line(tmp_path):
    stopping = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_los")
    stderr = train(*TENSOR, *stopping, cwd=tmp_path, code=2).stderr
    assert "Traceback" not in stderr and "metric `val_los` which is not available" in stderr


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_live_run_is_refused_and_a_kill_ends_that(tmp_path):
    slow = ("--trainer.callbacks+=tiny.Drill", "--trainer.callbacks.file=step", "--trainer.callbacks.seconds=0.2")
    with training(*CPU_OPTIONS, *TENSOR, "--trainer.max_epochs=40", *slow, cwd=tmp_path) as (process, log):
        wait_until((tmp_path / "step.first").exists, process, timeout=60, log=log)
        before = checkpoints(tmp_path)
        stderr = train(*TENSOR, "--optimizer.lr=0.5", cwd=tmp_path, code=2).stderr
        assert f"logs/checkpoints is in use by process {process.pid} on " in stderr and stderr.count("\n") == 1
        assert set(before) <= set(checkpoints(tmp_path))
    assert "resuming from" in train(*TENSOR, "--trainer.max_epochs=1", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_rank_that_fails_alone_reports_and_ends_although_its_device_hangs(tmp_path):
    options = (*TENSOR, "--trainer.devices=2", "--trainer.callbacks+=habits.FailAlone")
    start = time.monotonic()
    result = train(*options, cwd=tmp_path, cold=True, code=1, env={"SM_OUTPUT_DIR": str(tmp_path)})
    assert time.monotonic() - start < 60
    assert "RuntimeError: rank 1 fails alone" in result.stderr
    assert (tmp_path / "failure").read_text() == "RuntimeError: rank 1 fails alone"


@pytest.mark.slow
def test_ranks_may_validate_different_numbers_of_batches(tmp_path):
    data = ("--data=projects.UnevenValidation", "--trainer.use_distributed_sampler=false")
    waiting = ("--trainer.devices=2", "--process_group_timeout=30")
    train("--model=projects.ReturnsTensor", *data, *waiting, "--trainer.max_epochs=4", cwd=tmp_path, cold=True)
    assert last_checkpoint(tmp_path / "logs/checkpoints").name == "last-step=20.ckpt"


@pytest.mark.slow
def test_a_training_step_of_two_processes_broadcasts_nothing(tmp_path):
    options = (*TENSOR, "--trainer.devices=2", "--trainer.max_epochs=2", "--trainer.callbacks+=habits.CountBroadcasts")
    train(*options, cwd=tmp_path, cold=True)
    assert (tmp_path / "broadcasts").read_text() == "0"
    assert scalars(tmp_path / "logs/tensorboard/tutorial/version_0")
