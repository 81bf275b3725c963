"""Tests of train.py as a process on small data: its output, files, options and results."""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from fake_aws.toolkit import free_port
from runs.programs import ENVIRONMENT, ROOT, SYNTHETIC, TINY, run_train_warm
from runs.results import epoch_lines, exported_weights, samples, scalars
from runs.terminals import run_on_terminal
from runs.waiting import wait_until
from synthetic import SyntheticCIFAR10DataModule
from tiny import Tiny

TINY_RUN = (*SYNTHETIC, *TINY)


def assert_same_weights(*folders: Path) -> None:
    """Asserts that two runs have exported the same weights, bit for bit."""
    one, other = (folder / "logs/checkpoints/model.pt" for folder in folders)
    assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """Trains for two epochs and returns the folder and the output of the run."""
    directory = tmp_path_factory.mktemp("finished")
    return directory, run_train_warm(*TINY_RUN, "--trainer.log_every_n_steps=5", cwd=directory).stdout


def test_a_run_writes_only_model_checkpoints_and_logs(finished):
    directory, _ = finished
    files = [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file()]
    expected = [
        r"logs/checkpoints/.lock.sagemaker-ignore",
        r"logs/checkpoints/epoch=\d-step=\d+.ckpt",
        r"logs/checkpoints/last-step=16.ckpt",
        r"logs/checkpoints/last-step=32.ckpt",
        r"logs/checkpoints/last-step=32.ended",
        r"logs/checkpoints/model.pt",
        r"logs/tensorboard/tutorial/version_0/config.yaml",
        r"logs/tensorboard/tutorial/version_0/events.*",  # of training
        r"logs/tensorboard/tutorial/version_0/events.*",  # of the test
        r"logs/tensorboard/tutorial/version_0/hparams.yaml",
    ]
    assert len(files) == len(expected)
    assert all(re.fullmatch(*pair) for pair in zip(expected, files, strict=True))


def test_the_output_has_one_line_per_epoch_and_no_progress_bar(finished):
    _, output = finished
    pattern = (
        r"epoch=\d+ step=\d+ train_loss=\d\S+ train_acc=[\d.]+ val_loss=\d\S+ val_acc=[\d.]+ images_per_second=[\d.]+"
    )
    lines = [line for line in output.splitlines() if line.startswith("epoch=")]
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert [(line["epoch"], line["step"]) for line in epoch_lines(output)] == [(0, 16), (1, 32)]
    assert "\r" not in output


def test_the_summary_names_the_accuracy_and_the_files(finished):
    _, output = finished
    for pattern in (
        r"test accuracy +[\d.]+% on synthetic images, not CIFAR-10",
        r"model +logs/checkpoints/model.pt",
        r"checkpoints +logs/checkpoints",
        r"TensorBoardLog +logs/tensorboard/tutorial/version_0",
    ):
        assert re.search(pattern, output, re.MULTILINE), f"{pattern}\n{output}"


def test_tensorboard_has_losses_accuracies_learning_rate_and_speed(finished):
    directory, output = finished
    logged = scalars(directory / "logs/tensorboard/tutorial/version_0")
    for stage in ("train", "val"):
        for metric in ("loss", "acc"):
            steps, values = zip(*logged[f"{stage}_{metric}"], strict=True)
            assert steps == (15, 31)  # Lightning counts them from 0
            assert values == pytest.approx([line[f"{stage}_{metric}"] for line in epoch_lines(output)], rel=1e-5)
    assert [step for step, _ in logged["train_loss_step"]] == [4, 9, 14, 19, 24, 29]
    assert [value for _, value in logged["lr-Adam"]] == pytest.approx([0.001] * 8)
    assert len(logged["images_per_second"]) == 2


def test_tensorboard_serves_the_curves_over_http(finished):
    directory, _ = finished
    port = free_port()
    command = [Path(sys.executable).with_name("tensorboard"), "--logdir", "logs/tensorboard", "--port", port]
    server = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def tags() -> dict[str, dict]:
        url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            return json.load(response)
        return {}

    try:
        wait_until(tags, server, timeout=60)
        assert {"train_loss", "val_acc", "lr-Adam"} <= tags()["tutorial/version_0"].keys()
    finally:
        server.terminate()
        server.wait()


def test_the_saved_config_reproduces_the_run_bit_for_bit(finished, tmp_path):
    directory, output = finished
    config = directory / "logs/tensorboard/tutorial/version_0/config.yaml"
    repeated = run_train_warm(f"--config={config}", cwd=tmp_path).stdout
    assert_same_weights(directory, tmp_path)
    assert yaml.safe_load(config.read_text()) == yaml.safe_load((tmp_path / config.relative_to(directory)).read_text())
    assert [line["val_loss"] for line in epoch_lines(repeated)] == [line["val_loss"] for line in epoch_lines(output)]


def test_a_different_seed_gives_a_different_network(finished, tmp_path):
    directory, _ = finished
    run_train_warm(*TINY_RUN, "--seed_everything=1", cwd=tmp_path)
    first, second = exported_weights(directory), exported_weights(tmp_path)
    assert not torch.equal(first["2.weight"], second["2.weight"])


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(finished, tmp_path):
    directory, output = finished
    run_train_warm(*TINY_RUN, "--trainer.max_epochs=1", cwd=tmp_path)
    resumed = run_train_warm(*TINY_RUN, "--ckpt_path=last", cwd=tmp_path).stdout
    assert_same_weights(directory, tmp_path)
    assert [(line["epoch"], line["val_loss"]) for line in epoch_lines(resumed)] == [
        (line["epoch"], line["val_loss"]) for line in epoch_lines(output)[1:]
    ]


def test_the_best_checkpoint_by_validation_loss_is_tested_and_exported(tmp_path):
    # The learning rate jumps, so that the second epoch is worse.
    schedule = ("--lr_scheduler=MultiStepLR", "--lr_scheduler.milestones=[1]", "--lr_scheduler.gamma=1e6")
    output = run_train_warm(*TINY_RUN, *schedule, cwd=tmp_path).stdout
    first, second = epoch_lines(output)
    assert first["val_loss"] < second["val_loss"]
    checkpoint = torch.load(tmp_path / "logs/checkpoints/epoch=0-step=16.ckpt", weights_only=False)
    exported = exported_weights(tmp_path)
    assert all(torch.equal(checkpoint["state_dict"][f"network.{name}"], exported[name]) for name in exported)


def test_a_scheduler_with_interval_step_steps_after_each_batch(tmp_path):
    schedule = ("--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=0.01", "--lr_scheduler.total_steps=32")
    run_train_warm(*TINY_RUN, *schedule, "--lr_scheduler_interval=step", "--trainer.log_every_n_steps=1", cwd=tmp_path)
    rates = [value for _, value in scalars(tmp_path / "logs/tensorboard/tutorial/version_0")["lr-Adam"]]
    assert len(rates) == 32
    assert max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[-1] == pytest.approx(0.01 / 25 / 1e4, rel=1e-3)


def test_an_optimizer_without_a_fused_version_replaces_the_default(tmp_path):
    output = run_train_warm("--optimizer=RMSprop", "--optimizer.lr=0.01", "--print_config", cwd=tmp_path).stdout
    arguments = yaml.safe_load(output)["optimizer"]["init_args"]
    assert arguments["lr"] == 0.01 and "fused" not in arguments


def test_a_limit_of_1_is_one_batch_and_1_0_is_all_batches(tmp_path):
    limits = {"train": "1", "val": "1.0", "test": "0.5", "predict": "null"}
    options = [f"--trainer.limit_{stage}_batches={limit}" for stage, limit in limits.items()]
    config = yaml.safe_load(run_train_warm(*options, "--print_config", cwd=tmp_path).stdout)
    found = [config["trainer"][f"limit_{stage}_batches"] for stage in limits]
    assert [repr(limit) for limit in found] == ["1", "1.0", "0.5", "None"]


def test_the_train_loss_is_the_mean_over_images_with_gradient_accumulation(tmp_path):
    # Without updates, all batches have about the same loss.
    output = run_train_warm(*TINY_RUN, "--optimizer.lr=0", "--trainer.accumulate_grad_batches=4", cwd=tmp_path).stdout
    first, _ = epoch_lines(output)
    assert first["step"] == 4
    assert first["train_loss"] == pytest.approx(first["val_loss"], rel=0.05)


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar(tmp_path):
    command = [sys.executable, str(ROOT / "app/train.py"), *TINY_RUN]
    output = run_on_terminal(command, cwd=tmp_path, env=ENVIRONMENT)
    assert "Epoch 1" in output
    assert "it/s" in output
    assert "epoch=" not in output
    assert "test accuracy" in output


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch_size(tmp_path):
    outputs = []
    for num_processes in (1, 2):
        directory = tmp_path / str(num_processes)
        directory.mkdir()
        sizes = (f"--trainer.devices={num_processes}", f"--data.batch_size={32 // num_processes}")
        outputs.append(run_train_warm(*TINY_RUN, "--data=tiny.Recording", *sizes, cwd=directory).stdout)
    for epoch in range(2):
        assert samples(tmp_path / "2", "train", epoch) == list(range(500))
        assert samples(tmp_path / "2", "validate", epoch) == list(range(101))
    for one, two in zip(*map(epoch_lines, outputs), strict=True):
        for metric in ("train_loss", "train_acc", "val_loss", "val_acc"):
            assert two[metric] == pytest.approx(one[metric], rel=1e-4)
    one, two = (exported_weights(tmp_path / name) for name in ("1", "2"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_the_default_network_exports_weights_for_torchvisions_resnet18(tmp_path):
    run_train_warm(*SYNTHETIC, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", cwd=tmp_path)
    torchvision.models.resnet18(num_classes=10).load_state_dict(exported_weights(tmp_path))


def test_exported_weights_in_a_new_network_give_the_printed_accuracy(finished):
    directory, output = finished
    module = SyntheticCIFAR10DataModule(num_train_images=601, num_test_images=101, val_split=101)
    module.setup()
    model = Tiny(num_classes=10)
    model.network.load_state_dict(exported_weights(directory))
    images, labels = module.gather("test", torch.arange(101))
    accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(float(re.search(r"test_acc=(\S+)", output)[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("help_option", "options"),
    [
        ("--help", ["--trainer.max_epochs", "--logger.save_dir", "--logger.flush_secs"]),
        ("--help", ["--checkpoint.every_n_epochs", "--lr_scheduler_interval", "--ckpt_path", "--model_dir"]),
        ("--data.help=synthetic.SyntheticCIFAR10DataModule", ["--data.batch_size", "--data.num_train_images"]),
        ("--optimizer.help=SGD", ["--optimizer.lr", "--optimizer.momentum"]),
        ("--lr_scheduler.help=OneCycleLR", ["--lr_scheduler.max_lr"]),
        ("--model.help=fast.FastNet", ["--model.widths"]),
    ],
)
def test_help_explains_the_options_of_the_program_and_of_each_class(tmp_path, help_option, options):
    output = run_train_warm(help_option, cwd=tmp_path).stdout
    for option in options:
        explanation = re.search(rf"^  {option}[ ,].*(?:\n {{4,}}.*)*", output, re.MULTILINE)[0]
        assert len(explanation.split()) > 3, explanation  # more than its name, type and default
        assert "type:" in explanation
