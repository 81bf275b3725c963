"""Tests of custom Lightning projects: any of them can be trained, tested and exported."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from fake_aws.toolkit import sagemaker_environment
from glyph_data import GlyphDataModule
from glyph_net import GlyphNet
from projects import Manual, NetworkAndHead, OneCycle, OnPlateau, Regression, ReturnsDict, ReturnsTensor
from runs.interrupted import GLYPHS, options_of, train
from runs.results import epoch_lines, exported_weights, last_checkpoint, scalars

OWN_OPTIMIZER = " has an optimizer; ignoring --optimizer and --lr_scheduler\n"
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Callable[[str], tuple[Path, SimpleNamespace]]:
    """Returns a function that trains a project of a kind and returns the folder and the result of the run."""

    @cache
    def run(kind: str) -> tuple[Path, SimpleNamespace]:
        module, data, *_ = KINDS[kind]
        folder = tmp_path_factory.mktemp("finished")
        return folder, train(*options_of(module, data), "--trainer.max_epochs=2", cwd=folder)

    return run


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
    module().load_state_dict(exported_weights(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ignored_optimizer_option_is_reported(finished, kind):
    _, result = finished(kind)
    has_its_own = KINDS[kind][0] not in (ReturnsTensor, ReturnsDict, NetworkAndHead)
    assert result.stdout.count(OWN_OPTIMIZER) == has_its_own


@pytest.mark.parametrize("kind", KINDS)
def test_without_val_loss_the_last_network_is_exported_with_a_warning(finished, kind):
    folder, result = finished(kind)
    line = "train.py: warning: using the final weights instead of the best: "
    line += "no best checkpoint exists; log val_loss, or set --checkpoint.monitor\n"
    has_none = "val_loss" not in KINDS[kind][2]
    assert result.stderr.count(line) == has_none
    if has_none:
        checkpoint = torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)
        assert all(
            torch.equal(weight, checkpoint["state_dict"][name]) for name, weight in exported_weights(folder).items()
        )


def test_a_custom_project_trains_with_its_own_defaults(uninterrupted_glyphs):
    folder, stdout = uninterrupted_glyphs
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


def test_exported_weights_in_a_new_module_give_the_printed_accuracy(uninterrupted_glyphs):
    folder, stdout = uninterrupted_glyphs
    module, data = GlyphNet(), GlyphDataModule(root=str(folder / "glyphs"))
    module.load_state_dict(exported_weights(folder))
    module.eval()
    data.setup("test")
    images, labels = data.test.images, data.test.labels
    accuracy = (module(images).argmax(dim=1) == labels).float().mean().item()
    assert f"test accuracy   {accuracy:.1%} on test data\n" in stdout


def test_metrics_of_a_custom_project_are_in_tensorboard(uninterrupted_glyphs):
    folder, _ = uninterrupted_glyphs
    names = {"train_loss_step", "train_loss_epoch", "train_acc_step", "train_acc_epoch", "val_loss", "val_acc"}
    assert names <= set(scalars(folder / "logs/tensorboard/tutorial/version_0"))


@pytest.mark.slow
def test_two_processes_train_a_custom_project(tmp_path):
    stdout = train(*GLYPHS, "--trainer.devices=2", "--trainer.max_epochs=1", cwd=tmp_path, cold=True).stdout
    line = "training in 2 processes on 1 host, device cpu, 128 samples per step, from step 0\n"
    assert stdout.count(line) == 1
    assert [line["step"] for line in epoch_lines(stdout)] == [5]


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            ["--model=missing.Net"],
            "--model=missing.Net is not valid: No module named 'missing'; is it in app/ or PYTHONPATH?",
        ),
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
        (["--lr_scheduler=StepLR"], "missing arguments (pass as --model.NAME etc.): step_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_option_of_a_custom_project_is_reported_in_one_line(tmp_path, options, expected):
    result = train("--data=projects.StatefulData", *options, cwd=tmp_path, code=2)
    assert result.stderr == f"train.py: error: {expected}\n"


def test_data_and_model_need_no_arguments(tmp_path):
    options = (*options_of(Manual, "BareData"), "--print_config")
    assert train(*options, cwd=tmp_path, env=sagemaker_environment(tmp_path)).stderr == ""
    options = ("--model=projects.ReturnsTensor", "--data=synthetic.SyntheticCIFAR10DataModule", "--print_config")
    train(*options, cwd=tmp_path)
