"""Freezes what a restructuring must not change: requests, exit codes, files, names and losses, whatever the wording.

`FREEZE=1 pytest tests/app/test_frozen.py` writes what it finds to tests/app/frozen/ instead of comparing. Commit such
a change only where it is intended. frozen/request-config.json alone depends on what the launcher sends along with
`config=FILE`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_aws.aws import NO_AWS
from runs.programs import ROOT, SYNTHETIC, TINY, run_train_warm
from runs.results import epoch_lines, exported_weights, last_checkpoint, scalars

pytestmark = pytest.mark.slow  # other tests find the same mistakes one by one, in seconds
FROZEN = Path(__file__).with_name("frozen")
CLOUD = "--region=eu-central-1 --role=arn:aws:iam::123456789012:role/my-role --output_path=s3://my-bucket/output"
CLOUD += " --image_uri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-tutorial:1"
DATA = "--input_path=s3://my-bucket/datasets/cifar-10"
GPU = f"{CLOUD} {DATA} --instance_type=ml.g4dn.12xlarge --instance_count=2"
ESTIMATOR = "volume_size=100 'subnets=[subnet-1, subnet-2]' 'security_group_ids=[sg-1]' 'tags={team: vision}'"
ON_CPU = "--hyperparams trainer.accelerator=cpu trainer.devices=1"

LAUNCHES = {
    "local-gpu": "",
    "local-four": f"--instance_type=local --instance_count=4 --checkpoint_path=file://$PWD/checkpoints {ON_CPU}",
    "first-job": f"{CLOUD} {DATA} --instance_type=ml.m5.large --max_run=1800 {ON_CPU} trainer.max_epochs=1",
    "two-nodes": f"{GPU} --hyperparams logger.save_dir=s3://my-bucket/tensorboard logger.flush_secs=5",
    "spot": f"{GPU} --spot_instances --max_wait=172800 --checkpoint_path=s3://my-bucket/checkpoints/my-run",
    "estimator": f"{GPU} --estimator {ESTIMATOR}",
    "channels": f"{CLOUD} --instance_type=ml.g4dn.xlarge --input_path train=s3://my-bucket/t val=s3://my-bucket/v "
    "--estimator input_mode=FastFile",
    "own-names": f"{GPU} --job_name=my-job --max_retry=2 --environment A=b=c --metrics rmse val/f1 "
    "--hyperparams optimizer=SGD optimizer.momentum=0.9 data=null",
    "config": f"{GPU} --hyperparams config=train.yaml data.batch_size=128 trainer.max_epochs=1",
}

# Each line is a wrong command line; the exit code is 2. More of them are in test_bad_input.py and tests/launcher.
MISTAKES = f"""
    train.py --trainer.max_epoch=3
    train.py --trainer.accelerator=cpu --trainer.devices=999
    train.py --data=synthetic.SyntheticCIFAR10DataModule --ckpt_path=last
    run_sagemaker.py --instance_count=two
    run_sagemaker.py --estimator 'subnets=[a'
    run_sagemaker.py --instance_type=local --hyperparams logger.save_dir=s3://my-bucket/x
    run_sagemaker.py {CLOUD} {DATA} --instance_type=ml.m5.large
    run_sagemaker.py {CLOUD} --instance_type=ml.g4dn.xlarge
    run_sagemaker.py {GPU} --image_uri=sagemaker-tutorial
    upload-cifar-10.sh my-bucket/folder
    docker/push-image.sh --build-arg BASE_IMAGE=mirror
    docker/image-uri.sh
    run_sagemaker.py {GPU} --dry_run --hyperparams trainer.max_epoch=1
    run_sagemaker.py {GPU} --dry_run --max_run=0
    run_sagemaker.py {GPU} --dry_run --estimator security_groups=[sg-1]
    run_sagemaker.py --dry_run --spot_instances
"""

RUNS = {
    "tiny": (*SYNTHETIC, *TINY, "--trainer.log_every_n_steps=5"),
    "resnet18": SYNTHETIC,
    "fast": ("--config", str(ROOT / "examples/fast/fast.yaml"), *SYNTHETIC[:3], "--data.batch_size=64"),
}
ON_ONE_CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true")
# Different instruction sets (SSE, AVX2, AVX-512) changed losses by up to 1e-7, 3e-5 and 2e-4; a different seed, order,
# split or augmentation changed at least one loss of each run by 3e-3 or more.
TOLERANCE = {"tiny": 1e-5, "resnet18": 2e-4, "fast": 1e-3}


def frozen(name: str, found: Any) -> Any:
    """Returns what is frozen under a name; with FREEZE=1, first replaces it by what was found."""
    path = FROZEN / f"{name}.json"
    if "FREEZE" in os.environ:
        path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    return json.loads(path.read_text())


def run(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    program, *options = shlex.split(command.replace("$PWD", str(cwd)))
    command = [sys.executable] * program.endswith(".py") + [str(ROOT / program), *options]
    return subprocess.run(command, cwd=cwd, env=NO_AWS | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_sends_the_frozen_request(tmp_path, name):
    result = run(f"run_sagemaker.py --dry_run {LAUNCHES[name]}", tmp_path)
    assert result.returncode == 0, result.stderr
    text = result.stdout
    for pattern, replacement in {
        re.escape(str(tmp_path)): "FOLDER",
        rf"file://{re.escape(tempfile.gettempdir())}/sagemaker-[^/]+/app": "file://PROJECT/app",
        r"-\d{4}(-\d\d){5}-\d{3}": "-TIME",
        r"(s3://my-bucket/output)/[^/\"]+/(?=[^/]+/source/)": r"\1/RANDOM/",
    }.items():
        text = re.sub(pattern, replacement, text)
    request = json.loads(text)
    assert request == frozen(f"request-{name}", request)


@pytest.mark.parametrize("command", [line.strip() for line in MISTAKES.strip().splitlines()])
def test_a_mistake_ends_in_one_line_that_begins_with_the_program(tmp_path, command):
    program, *options = command.split()
    if program == "train.py":
        result = run_train_warm(*options, cwd=tmp_path, code=2)
    else:
        # Only what the scripts need to start: neither Docker nor the AWS CLI.
        for name in ("bash", "dirname", "tr", "env"):
            (tmp_path / name).symlink_to(shutil.which(name))
        result = run(command, tmp_path, PATH=str(tmp_path))
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{Path(program).name}: ")


@pytest.fixture(scope="module", params=RUNS)
def finished(request, tmp_path_factory) -> tuple[str, Path, str]:
    """Returns the name, the folder and the output of a run."""
    folder = tmp_path_factory.mktemp(request.param)
    two_batches = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2") if request.param != "tiny" else ()
    here = ("--checkpoint.dirpath=logs/checkpoints", *ON_ONE_CPU, *two_batches)
    return request.param, folder, run_train_warm(*RUNS[request.param], *here, cwd=folder).stdout


def test_a_run_leaves_the_frozen_files_and_names(finished):
    name, folder, stdout = finished
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = [re.sub(r"events\.out.*", "events", path) for path in files]
    (log_dir,) = (folder / "logs/tensorboard").glob("*/version_0")
    summary = stdout.rstrip().rpartition("\n\n")[2].splitlines()
    found = {
        "files": [re.sub(r"\d+", "N", path) for path in files],
        "checkpoint": sorted(torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)),
        "model.pt": list(exported_weights(folder)),
        "tags": sorted(tag for tag in scalars(log_dir) if not tag.startswith("lr")),
        "epoch line": list(epoch_lines(stdout)[0]),
        "summary": [re.split(r" {2,}", line)[0] for line in summary if not line.startswith(" ")],
    }
    assert found == frozen(f"names-{name}", found)


def test_a_run_has_the_frozen_losses(finished):
    name, folder, _ = finished
    (log_dir,) = (folder / "logs/tensorboard").glob("*/version_0")
    series = {tag: [value for _, value in points] for tag, points in scalars(log_dir).items()}
    found = {tag: series[tag] for tag in series if re.fullmatch("(train|val|test)_(loss|acc)", tag)}
    expected = frozen(f"losses-{name}", found)
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        # A different CPU may change the predicted class of one or two of about a hundred images.
        assert found[tag] == pytest.approx(values, rel=TOLERANCE[name], abs=0.025 if tag.endswith("_acc") else 0), tag
