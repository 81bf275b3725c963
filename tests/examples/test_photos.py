"""Tests of porting examples/photos to SageMaker as README.md describes it, by copying the project into app/."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_aws.aws import NO_AWS
from fake_aws.toolkit import Host, free_port
from runs.interrupted import assert_same_final_state, interrupt, train
from runs.launcher import cloud
from runs.programs import ROOT, copy_project
from runs.results import epoch_lines, exported_weights
from runs.tutorial import block, run_block
from torchvision.models import resnet18

PORT, MAKE_PHOTOS, TRAIN = block("cp examples/photos/photo* app/").splitlines()
PLAIN_LIGHTNING = """
from photo_data import PhotoData
from photo_net import PhotoNet
from pytorch_lightning import Trainer

trainer = Trainer(max_epochs=1, limit_train_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(PhotoNet(), PhotoData(image_size=32, num_workers=0))
print(trainer.global_step, "steps")
"""
SHORT = ("--trainer.max_epochs=2", "--data.image_size=32", "--resume.every_n_steps=3")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Ports the project in a copy of the repository, and generates photos."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder, "app", "launcher", "examples", "run_sagemaker.py")
    subprocess.run(PORT, shell=True, cwd=folder, check=True)
    run_block(MAKE_PHOTOS, cwd=folder)
    return folder


def run(project: Path, *options: str, cwd: Path, step: int | None = None) -> Any:
    """Trains with the recipe in `cwd`; kills the run after `step`, if given."""
    if not (cwd / "photos").exists():
        (cwd / "photos").symlink_to(project / "photos")
    options = (f"--config={project}/{TRAIN.split()[-1]}", "--checkpoint.dirpath=logs/checkpoints", *options)
    options += ("--logger.name=tutorial",)
    kwargs = {"cwd": cwd, "cold": True, "program": project / "app/train.py"}
    return train(*options, **kwargs) if step is None else interrupt(*options, step=step, **kwargs)


def test_the_generated_photos_are_reproducible(project, tmp_path):
    subprocess.run([sys.executable, ROOT / "examples/photos/make_photos.py", tmp_path], check=True)
    photos = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg")]
    assert len(photos) == 360
    assert all((tmp_path / path).read_bytes() == (project / "photos" / path).read_bytes() for path in photos)


@pytest.mark.parametrize("num_classes", [10, 3])
def test_pretrained_weights_are_loaded_except_for_a_last_layer_of_a_different_size(tmp_path, monkeypatch, num_classes):
    monkeypatch.syspath_prepend(ROOT / "examples/photos")
    from photo_net import PhotoNet

    known = resnet18(num_classes=10).state_dict()
    torch.save(known, tmp_path / "model.pt")
    weights = PhotoNet(num_classes, weights=str(tmp_path / "model.pt")).network.state_dict()
    others = {name for name in known if not torch.equal(weights[name], known[name])}
    assert others == (set() if num_classes == 10 else {"fc.weight", "fc.bias"})


@pytest.mark.slow
def test_before_the_port_it_is_an_ordinary_lightning_project(project):
    command = [sys.executable, "-c", PLAIN_LIGHTNING]
    environment = NO_AWS | {"PYTHONPATH": str(project / "examples/photos")}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=240)
    assert result.stdout.endswith("2 steps\n"), result.stderr


@pytest.mark.slow
def test_after_the_port_it_is_trained_tested_and_exported(project, tmp_path):
    stdout = run(project, "--data.image_size=32", "--data.num_workers=0", cwd=tmp_path).stdout
    lines = epoch_lines(stdout)
    assert [line["step"] for line in lines] == [8, 16, 24, 32, 40, 48]
    names = {"epoch", "step", "train_loss", "val_loss", "val_acc", "samples_per_second"}
    assert all(set(line) == names for line in lines)
    accuracy = re.search(r"^test accuracy +([\d.]+)% on test data$", stdout, re.MULTILINE)[1]
    assert float(accuracy) > 60  # of three classes
    resnet18(num_classes=3).load_state_dict(exported_weights(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, step, saved",
    [(("--data.num_workers=1",), 13, 11), (("--data.num_workers=0", "--trainer.devices=2"), 8, 7)],
    ids=["one process with a worker", "two processes"],
)
def test_a_killed_run_resumes_bit_exactly(project, tmp_path, options, step, saved):
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    uninterrupted.mkdir()
    interrupted.mkdir()
    run(project, *SHORT, *options, cwd=uninterrupted)
    run(project, *SHORT, *options, cwd=interrupted, step=step)
    stdout = run(project, *SHORT, *options, cwd=interrupted).stdout
    assert f"resuming from logs/checkpoints/last-step={saved}.ckpt (step {saved}, epoch 1)\n" in stdout
    assert_same_final_state(uninterrupted, interrupted)


@pytest.mark.slow
def test_the_launcher_requests_a_job_with_the_recipe(project):
    options = cloud("--input_path=s3://my-bucket/datasets/photos", "--region=eu-central-1", "--dry_run")
    hyperparams = ("config=photos.yaml", "data.root=/opt/ml/input/data/training", "model.lr=0.003")
    command = [sys.executable, "run_sagemaker.py", *options, "--hyperparams", *hyperparams]
    result = subprocess.run(command, cwd=project, env=NO_AWS, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    request = json.loads(result.stdout)
    options = {name: json.loads(value) for name, value in request["HyperParameters"].items()}
    assert {name: value for name, value in options.items() if not name.startswith("sagemaker_")} == {
        "config": "photos.yaml",
        "data.root": "/opt/ml/input/data/training",
        "model.lr": "0.003",
        "trainer.accelerator": "gpu",
        "trainer.devices": "-1",
    }
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "training"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/datasets/photos/"


@pytest.mark.slow
def test_it_trains_on_two_hosts(project, tmp_path):
    names, hosts, port = ["127.0.0.1", "127.0.0.2"], [], free_port()
    options = dict(option.removeprefix("--").split("=") for option in SHORT)
    options |= {"config": "photos.yaml", "data.num_workers": "0"}
    for name in names:
        hyperparameters = options | {"data.root": str(tmp_path / name / "input/data/training")}
        hosts.append(Host(tmp_path / name, name, names, hyperparameters, project / "photos", project=project / "app"))
    try:
        for host in hosts:
            host.start(MASTER_PORT=port)
        assert [host.wait() for host in hosts] == [0, 0], hosts[0].log
    finally:
        for host in hosts:
            host.kill()
    assert "training in 2 processes on 2 hosts, device cpu, 64 samples per step, from step 0" in hosts[0].log
    assert "warning: the data module" not in hosts[0].log
    # SageMaker's folder, not the recipe's.
    assert list((hosts[0].output_dir / "data/checkpoints").glob("last-step=8.ckpt"))
    resnet18(num_classes=3).load_state_dict(torch.load(hosts[0].model_dir / "model.pt"))
