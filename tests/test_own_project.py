"""Somebody else's Lightning project: whatever its modules look like, it is trained, tested, exported, and goes on."""

import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from glyph_data import GlyphDataModule
from glyph_net import GlyphNet
from interrupted import GLYPHS, differences, interrupt, train
from projects import Manual, OneCycle, OnPlateau, Regression, ReturnsDict, ReturnsTensor
from results import epoch_lines, last_checkpoint, samples, scalars

PLAIN, STATEFUL = "--data=projects.PlainData", "--data=projects.StatefulData"
OWN_OPTIMIZER = " configures its optimizers itself: --optimizer is not used\n"
NO_POSITION = "the training loader cannot tell its position, so an interrupted run goes on from the end of an epoch"
THREE_EPOCHS = ("--trainer.max_epochs=3", "--checkpoint.every_n_train_steps=3")
KINDS = {  # class, data module, what each epoch's line has, and the test if there is one
    "returns a tensor": (ReturnsTensor, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "returns a dict": (ReturnsDict, "PlainData", {"train_loss", "val_loss", "val_acc"}, "test_loss"),
    "plateau": (OnPlateau, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "schedule per step": (OneCycle, "PlainData", {"train_loss", "val_loss"}, "test_loss"),
    "regression": (Regression, "PlainData", {"train_mse", "val_mae"}, None),
    "two optimizers": (Manual, "BareData", {"generator_loss", "discriminator_loss"}, None),
    "data of unknown length": (ReturnsTensor, "StreamData", {"train_loss", "val_loss"}, "test_loss"),
}


def options_of(module: type, data: str) -> tuple[str, str]:
    return f"--model=projects.{module.__name__}", f"--data=projects.{data}"


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "logs/checkpoints/model.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_module_is_trained_tested_and_exported(tmp_path, kind):
    module, data, logged, tested = KINDS[kind]
    stdout = train(*options_of(module, data), "--trainer.max_epochs=2", cwd=tmp_path).stdout
    lines = epoch_lines(stdout)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(set(line) == {"epoch", "step"} | logged for line in lines)
    assert re.search(r"^model +logs/checkpoints/model.pt$", stdout, re.MULTILINE)
    assert bool(tested) == bool(re.search(r"^test_loss +\d", stdout, re.MULTILINE))
    module().load_state_dict(exported(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_says_that_optimizer_is_not_used_only_if_it_is_not(tmp_path, kind):
    module, data, *_ = KINDS[kind]
    has_its_own = module not in (ReturnsTensor, ReturnsDict)
    stdout = train(*options_of(module, data), "--trainer.fast_dev_run=true", cwd=tmp_path).stdout
    assert stdout.count(OWN_OPTIMIZER) == has_its_own


@pytest.mark.parametrize("kind", ["regression", "two optimizers"])
def test_without_val_loss_the_last_network_is_exported_and_a_line_says_so(tmp_path, kind):
    module, data, *_ = KINDS[kind]
    result = train(*options_of(module, data), "--trainer.max_epochs=1", cwd=tmp_path)
    line = "train.py: warning: the last network is tested and exported, not the best: val_loss was never logged\n"
    assert line in result.stderr
    last = torch.load(last_checkpoint(tmp_path / "logs/checkpoints"), weights_only=False)["state_dict"]
    assert all(torch.equal(weight, last[name]) for name, weight in exported(tmp_path).items())


def test_an_own_project_is_trained_with_its_own_defaults(tmp_path):
    stdout = train(*GLYPHS, "--trainer.max_epochs=2", cwd=tmp_path).stdout
    assert "training in 1 process on 1 host, device cpu, 64 samples per step, from step 0\n" in stdout
    assert [line["step"] for line in epoch_lines(stdout)] == [10, 20]
    assert set(epoch_lines(stdout)[0]) == {"epoch", "step", "train_loss", "train_acc", "val_loss", "val_acc"}
    config = yaml.safe_load((tmp_path / "logs/tensorboard/tutorial/version_0/config.yaml").read_text())
    assert config["data"]["init_args"] == {"root": "glyphs", "batch_size": 64, "num_workers": 0, "shift": 2}


def test_the_batch_size_of_a_recipe_or_an_option_is_kept(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data:\n  class_path: glyph_data.GlyphDataModule\n  init_args:\n    batch_size: 50\n"
    )
    recipe = ("--config=recipe.yaml", "--model=glyph_net.GlyphNet", "--trainer.fast_dev_run=true")
    assert " 50 samples per step" in train(*recipe, cwd=tmp_path).stdout
    assert " 40 samples per step" in train(*recipe, "--data.batch_size=40", cwd=tmp_path).stdout


def test_the_exported_weights_in_a_fresh_module_give_the_accuracy_that_was_printed(tmp_path):
    stdout = train(*GLYPHS, "--trainer.max_epochs=3", cwd=tmp_path).stdout
    module, data = GlyphNet(), GlyphDataModule(root=str(tmp_path / "glyphs"))
    module.load_state_dict(exported(tmp_path))
    module.eval()
    data.setup("test")
    images, labels = data.test.images, data.test.labels
    accuracy = (module(images).argmax(dim=1) == labels).float().mean().item()
    assert f"test accuracy     {accuracy:.1%} on test data\n" in stdout


def test_what_a_project_logs_is_in_tensorboard(tmp_path):
    train(*GLYPHS, "--trainer.max_epochs=1", cwd=tmp_path)
    names = {"train_loss_step", "train_loss_epoch", "train_acc_step", "train_acc_epoch", "val_loss", "val_acc", "lr"}
    assert names <= set(scalars(tmp_path / "logs/tensorboard/tutorial/version_0"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [GLYPHS, options_of(ReturnsDict, "PlainData")], ids=["glyphs", "returns a dict"])
def test_two_processes_train_together(tmp_path, options):
    stdout = train(*options, "--trainer.devices=2", "--trainer.max_epochs=1", cwd=tmp_path, cold=True).stdout
    num_samples, num_steps = (128, 5) if options == GLYPHS else (20, 5)
    line = f"training in 2 processes on 1 host, device cpu, {num_samples} samples per step, from step 0\n"
    assert stdout.count(line) == 1
    assert [line["step"] for line in epoch_lines(stdout)] == [num_steps]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(*GLYPHS, *THREE_EPOCHS, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "hook, step, signum",
    [
        ("on_train_batch_start", 1, signal.SIGKILL),
        ("on_train_batch_end", 17, signal.SIGKILL),
        ("on_validation_batch_end", 20, signal.SIGKILL),
        ("on_train_epoch_end", 10, signal.SIGKILL),
        ("on_train_batch_end", 14, signal.SIGTERM),
        ("on_validation_batch_end", 10, signal.SIGTERM),
    ],
)
def test_an_own_project_that_was_interrupted_ends_bit_for_bit_as_if_it_were_not(
    uninterrupted, tmp_path, hook, step, signum
):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, hook=hook, step=step, signum=signum)
    assert "going on from logs/checkpoints/last-step=" in train(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path).stdout
    assert not differences(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, step",
    [
        (("--model=glyph_net.ScheduledGlyphNet", "--data=glyph_data.GlyphDataModule"), 17),
        (("--model=projects.OnPlateau", STATEFUL, "--trainer.val_check_interval=0.25"), 17),
        (("--model=projects.OneCycle", STATEFUL, "--trainer.accumulate_grad_batches=3"), 7),
        (("--model=projects.OneCycle", STATEFUL, "--trainer.max_steps=27", "--trainer.max_epochs=-1"), 24),
        (("--model=projects.ReturnsDict", STATEFUL, "--trainer.check_val_every_n_epoch=2"), 17),
        (("--model=projects.ReturnsTensor", STATEFUL, "--trainer.limit_train_batches=8"), 13),
        (("--model=projects.ReturnsTensor", STATEFUL, "--trainer.limit_val_batches=0"), 17),
        (("--model=projects.ReturnsTensor", STATEFUL, "--data.batch_size=100"), 2),
        (("--model=projects.ReturnsTensor", STATEFUL, "--data.batch_size=50"), 3),
        (("--model=projects.Regression", STATEFUL), 17),
        (("--model=projects.Manual", STATEFUL), 34),
        (("--model=projects.ReturnsTensor", "--data=projects.RandomSamplerData"), 17),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_going_on_is_exact_whatever_is_trained_and_how(tmp_path, options, step):
    one, other = (tmp_path / name for name in ("uninterrupted", "interrupted"))
    one.mkdir()
    other.mkdir()
    options = (*THREE_EPOCHS, *options)
    train(*options, cwd=one)
    interrupt(*options, cwd=other, step=step)
    assert "going on from" in train(*options, cwd=other).stdout
    assert not differences(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("data", [STATEFUL, PLAIN])
def test_no_step_is_done_twice_and_counters_go_on(tmp_path, data):
    options = ("--model=projects.CountsItself", data, *THREE_EPOCHS, "--trainer.callbacks+=projects.Counting")
    interrupt(*options, cwd=tmp_path, step=17)
    train(*options, cwd=tmp_path)
    checkpoint = torch.load(last_checkpoint(tmp_path / "logs/checkpoints"), weights_only=False)
    assert checkpoint["counts"] == {"training_step": 30, "on_train_batch_end": 30}
    assert checkpoint["callbacks"]["Counting"] == {"num_batches": 30}


@pytest.mark.parametrize("data", ["PlainData", "StreamData"])
def test_with_a_loader_without_position_a_run_goes_on_from_the_end_of_an_epoch_and_says_so(tmp_path, data):
    options = (*options_of(ReturnsTensor, data), *THREE_EPOCHS, "--trainer.callbacks+=projects.Counting")
    stdout = interrupt(*options, cwd=tmp_path, step=17).stdout
    assert stdout.count(NO_POSITION) == 1
    (tmp_path / "train-0").unlink()
    assert "last-step=10.ckpt, step 10 in epoch 1\n" in train(*options, cwd=tmp_path).stdout
    first, second = (samples(tmp_path, "train", epoch) for epoch in (1, 2))
    assert len(set(first)) == len(first) == 100 and first == second


def test_nothing_is_said_of_a_loader_that_can_tell_its_position(tmp_path):
    assert NO_POSITION not in train(*GLYPHS, "--trainer.max_epochs=1", cwd=tmp_path).stdout


@pytest.mark.slow
def test_going_on_with_another_batch_size_is_refused(tmp_path):
    interrupt(*GLYPHS, *THREE_EPOCHS, cwd=tmp_path, step=17)
    options = (*GLYPHS, *THREE_EPOCHS, "--data.batch_size=50")
    stderr = train(*options, "--ckpt_path=last", cwd=tmp_path, code=2).stderr
    assert stderr.splitlines()[-1] == (
        "train.py: error: logs/checkpoints/last-step=16.ckpt is of a run with 10 batches per epoch, not 12 batches per "
        "epoch: make them the same, or start anew with --ckpt_path=none"
    )
    line = "not used: logs/checkpoints/last-step=16.ckpt is of a run with another data batch_size; it will be replaced"
    assert line in train(*options, cwd=tmp_path).stdout
