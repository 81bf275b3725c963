"""Tests of custom Lightning projects: any of them can be trained, tested, exported and resumed."""

import re
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import drill_own_project
import pytest
import torch
import yaml
from glyph_data import GlyphDataModule
from glyph_net import GlyphNet
from projects import LogsEverything, Manual, NetworkAndHead, OneCycle, OnPlateau, Regression, ReturnsDict, ReturnsTensor
from runs.interrupted import GLYPHS, differences, interrupt, train
from runs.results import epoch_lines, last_checkpoint, samples, scalars

PLAIN, STATEFUL = "--data=projects.PlainData", "--data=projects.StatefulData"
OWN_OPTIMIZER = " defines its own optimizers; ignoring --optimizer\n"
NOT_STATEFUL = (
    "the training loader cannot resume within an epoch: an interrupted run resumes from the last complete epoch"
)
THREE_EPOCHS = ("--trainer.max_epochs=3", "--resume.every_n_steps=3")
KINDS = {  # module, data module, metrics in the line of each epoch, and the metric of the test, if any
    "returns a tensor": (ReturnsTensor, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "returns a dict": (ReturnsDict, "PlainData", {"train_loss", "val_loss", "val_acc"}, "test_loss"),
    "plateau": (OnPlateau, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "schedule per step": (OneCycle, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "network and head": (NetworkAndHead, "CountedData", {"train_loss", "val_loss"}, "test_loss"),
    "regression": (Regression, "PlainData", {"train_mse", "val_mae"}, None),
    "two optimizers": (Manual, "BareData", {"generator_loss", "discriminator_loss"}, None),
    "data of unknown length": (ReturnsTensor, "StreamData", {"train_loss", "val_loss"}, "test_loss"),
}


def options_of(module: type, data: str) -> tuple[str, str]:
    return f"--model=projects.{module.__name__}", f"--data=projects.{data}"


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "logs/checkpoints/model.pt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Callable[[str], tuple[Path, SimpleNamespace]]:
    """Returns a function that trains a project of a kind and returns the folder and the result of the run."""

    @cache
    def run(kind: str) -> tuple[Path, SimpleNamespace]:
        module, data, *_ = KINDS[kind]
        folder = tmp_path_factory.mktemp("finished")
        return folder, train(*options_of(module, data), "--trainer.max_epochs=2", cwd=folder)

    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, str]:
    """Trains the project in tests/projects and returns the folder and the output of the run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(*GLYPHS, *THREE_EPOCHS, cwd=folder).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_module_trains_and_its_metrics_are_printed(finished, kind):
    _, result = finished(kind)
    lines = epoch_lines(result.stdout)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(set(line) == {"epoch", "step", "samples_per_second"} | KINDS[kind][2] for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_module_is_exported_and_tested_if_possible(finished, kind):
    module, _, _, tested = KINDS[kind]
    folder, result = finished(kind)
    assert bool(tested) == bool(re.search(r"^test_loss +\d", result.stdout, re.MULTILINE))
    assert re.search(r"^model +logs/checkpoints/model.pt$", result.stdout, re.MULTILINE)
    module().load_state_dict(exported(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ignored_optimizer_option_is_reported(finished, kind):
    _, result = finished(kind)
    has_its_own = KINDS[kind][0] not in (ReturnsTensor, ReturnsDict, NetworkAndHead)
    assert result.stdout.count(OWN_OPTIMIZER) == has_its_own


@pytest.mark.parametrize("kind", KINDS)
def test_without_val_loss_the_last_network_is_exported_with_a_warning(finished, kind):
    folder, result = finished(kind)
    line = "train.py: warning: testing and exporting the final weights instead of the best: "
    line += "--checkpoint.monitor=val_loss was never logged\n"
    has_none = "val_loss" not in KINDS[kind][2]
    assert result.stderr.count(line) == has_none
    if has_none:
        checkpoint = torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)
        assert all(torch.equal(weight, checkpoint["state_dict"][name]) for name, weight in exported(folder).items())


def test_a_custom_project_trains_with_its_own_defaults(uninterrupted):
    folder, stdout = uninterrupted
    assert "training in 1 process on 1 host, device cpu, 64 samples per step, from step 0\n" in stdout
    assert [line["step"] for line in epoch_lines(stdout)] == [10, 20, 30]
    metrics = {"train_loss", "train_acc", "val_loss", "val_acc", "samples_per_second"}
    assert set(epoch_lines(stdout)[0]) == {"epoch", "step"} | metrics
    config = yaml.safe_load((folder / "logs/tensorboard/tutorial/version_0/config.yaml").read_text())
    assert config["data"]["init_args"] == {"root": "glyphs", "batch_size": 64, "num_workers": 0, "shift": 2}


def test_the_batch_size_of_a_recipe_or_an_option_overrides_the_default(tmp_path):
    recipe = {"class_path": "glyph_data.GlyphDataModule", "init_args": {"batch_size": 50}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": recipe}))
    options = ("--config=recipe.yaml", "--model=glyph_net.GlyphNet", "--trainer.fast_dev_run=true")
    assert " 50 samples per step" in train(*options, cwd=tmp_path).stdout
    assert " 40 samples per step" in train(*options, "--data.batch_size=40", cwd=tmp_path).stdout


def test_exported_weights_in_a_new_module_give_the_printed_accuracy(uninterrupted):
    folder, stdout = uninterrupted
    module, data = GlyphNet(), GlyphDataModule(root=str(folder / "glyphs"))
    module.load_state_dict(exported(folder))
    module.eval()
    data.setup("test")
    images, labels = data.test.images, data.test.labels
    accuracy = (module(images).argmax(dim=1) == labels).float().mean().item()
    assert f"test accuracy   {accuracy:.1%} on test data\n" in stdout


def test_metrics_of_a_custom_project_are_in_tensorboard(uninterrupted):
    folder, _ = uninterrupted
    names = {"train_loss_step", "train_loss_epoch", "train_acc_step", "train_acc_epoch", "val_loss", "val_acc"}
    assert names <= set(scalars(folder / "logs/tensorboard/tutorial/version_0"))


@pytest.mark.slow
def test_two_processes_train_a_custom_project(tmp_path):
    stdout = train(*GLYPHS, "--trainer.devices=2", "--trainer.max_epochs=1", cwd=tmp_path, cold=True).stdout
    line = "training in 2 processes on 1 host, device cpu, 128 samples per step, from step 0\n"
    assert stdout.count(line) == 1
    assert [line["step"] for line in epoch_lines(stdout)] == [5]


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
def test_an_interrupted_run_of_a_custom_project_resumes_bit_exactly(uninterrupted, tmp_path, hook, step, signum):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, hook=hook, step=step, signum=signum)
    assert "resuming from logs/checkpoints/last-step=" in train(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path).stdout
    assert not differences(uninterrupted[0], tmp_path)


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
    one, other = (tmp_path / name for name in ("uninterrupted", "interrupted"))
    one.mkdir()
    other.mkdir()
    options = (*THREE_EPOCHS, *options)
    train(*options, cwd=one)
    interrupt(*options, cwd=other, step=step)
    assert "resuming from" in train(*options, cwd=other).stdout
    assert not differences(one, other)


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
    assert "last-step=10.ckpt, step 10 in epoch 1\n" in train(*options, cwd=tmp_path).stdout
    first, second = (samples(tmp_path, "train", epoch) for epoch in (1, 2))
    assert len(set(first)) == len(first) == 100 and first == second


def test_a_stateful_loader_is_not_reported_as_stateless(uninterrupted):
    assert NOT_STATEFUL not in uninterrupted[1]


def test_resuming_with_a_different_batch_size_is_rejected(tmp_path):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, step=17)
    options = (*GLYPHS, *THREE_EPOCHS, "--data.batch_size=50")
    stderr = train(*options, "--ckpt_path=last", cwd=tmp_path, code=2).stderr
    assert stderr.splitlines()[-1] == (
        "train.py: error: the checkpoint has 10 batches per epoch, 1 batches per step, 1 processes, this run 12 "
        "batches per epoch, 1 batches per step, 1 processes; use equal values, or pass --ckpt_path=none to start from "
        "scratch"
    )
    line = "skipping logs/checkpoints/last-step=16.ckpt: was saved with a different data batch_size; this run "
    line += "will replace it"
    assert line in train(*options, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--model=missing.Net"], "--model=missing.Net is not valid: No module named 'missing'"),
        (["--model=projects.Net"], "--model=projects.Net is not valid: module 'projects' has no attribute 'Net'"),
        (
            ["--model=projects.PlainData"],
            "--model=projects.PlainData is not valid: Import path does not correspond to a subclass of LightningModule",
        ),
        (["--model=glyph_net.GlyphNet", "--model.width=wide"], "--model.width=wide is not valid: expected int"),
        (
            ["--model=glyph_net.GlyphNet", "--model.widht=3"],
            "unknown option --model.widht; did you mean --model.width?",
        ),
        (
            ["--model.width=3", "--model=glyph_net.GlyphNet"],
            "unknown option --model.width; see --help, or --data.help=CLASS and --model.help=CLASS",
        ),
        (
            ["--lr_scheduler=StepLR"],
            "missing options (--data.NAME, --model.NAME): step_size",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_option_of_a_custom_project_is_reported_in_one_line(tmp_path, options, expected):
    result = train(STATEFUL, *options, cwd=tmp_path, code=2)
    assert result.stderr == f"train.py: error: {expected}\n"


@pytest.fixture
def job(tmp_path) -> dict[str, str]:
    """Returns the environment variables that SageMaker's toolkit sets."""
    folders = {"SM_MODEL_DIR": "model", "SM_OUTPUT_DATA_DIR": "output", "SM_CHANNEL_TRAINING": "training"}
    paths = {name: str(tmp_path / folder) for name, folder in folders.items()}
    return paths | {"SM_HOSTS": '["127.0.0.1"]', "SM_CURRENT_HOST": "127.0.0.1"}


def test_data_and_model_need_no_arguments(tmp_path, job):
    options = (*options_of(Manual, "BareData"), "--print_config")
    assert train(*options, cwd=tmp_path, env=job).stderr == ""
    train(
        "--model=projects.ReturnsTensor", "--data=synthetic.SyntheticCIFAR10DataModule", "--print_config", cwd=tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", [ReturnsTensor, LogsEverything])
def test_two_processes_with_a_distributed_sampler_resume_bit_exactly(tmp_path, module):
    one, other = (tmp_path / name for name in ("uninterrupted", "interrupted"))
    one.mkdir()
    other.mkdir()
    options = (*options_of(module, "OwnSamplerData"), *THREE_EPOCHS, "--trainer.devices=2")
    train(*options, cwd=one, cold=True)
    interrupt(*options, cwd=other, step=8, signum=signal.SIGTERM, cold=True)
    assert "resuming from" in train(*options, cwd=other, cold=True).stdout
    assert not differences(one, other)


@pytest.mark.slow
def test_two_processes_with_lightnings_sampler_report_a_stateless_loader(tmp_path):
    options = (*options_of(ReturnsTensor, "StatefulData"), "--trainer.max_epochs=1", "--trainer.devices=2")
    assert train(*options, cwd=tmp_path, cold=True).stdout.count(NOT_STATEFUL) == 1


@pytest.mark.slow
def test_resuming_on_a_different_number_of_processes_is_rejected(tmp_path):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, step=17)
    result = train(*GLYPHS, *THREE_EPOCHS, "--trainer.devices=2", cwd=tmp_path, code=2)
    assert re.search(
        r"the checkpoint has .*1 processes, this run .*2 processes; use equal values, or pass", result.stderr
    )


@pytest.mark.slow
def test_workers_resume_bit_exactly_if_their_dataset_is_not_random(tmp_path):
    one, other = (tmp_path / name for name in ("uninterrupted", "interrupted"))
    one.mkdir()
    other.mkdir()
    options = (*GLYPHS, *THREE_EPOCHS, "--data.num_workers=2", "--data.shift=0", "--trainer.limit_val_batches=0")
    train(*options, cwd=one, cold=True)
    interrupt(*options, cwd=other, step=17, cold=True)
    assert "resuming from" in train(*options, cwd=other, cold=True).stdout
    assert not differences(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["custom project", "custom schedules", "validation within epochs"])
def test_a_drill_is_bit_exact(tmp_path, kind):
    _, found = drill_own_project.crash_test(kind, tmp_path, Random(0))
    assert not found
