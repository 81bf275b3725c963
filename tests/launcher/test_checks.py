"""Tests of launcher/checks.py: the options on their own, the request against botocore's model, and train.py's check."""

import functools
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs.launcher import CLOUD, cloud, rejection
from runs.launches import offline, preview
from runs.programs import ROOT

from launcher.checks import (
    check_options,
    check_rules,
    cost,
    start_check,
    wait_for_check,
    warn_of_missing_packages,
)
from run_sagemaker import APP_DIR, DEFAULT_HYPERPARAMS, DEVICE_HYPERPARAMS, launch, read_options

use_offline = pytest.mark.usefixtures(offline.__name__)
NOT_IN_S3 = ": --input_path, --output_path and --checkpoint_path must be S3 URIs"
INVALID = "Invalid value for parameter"


def error_of_options(capsys, *args: str) -> str:
    """Returns the error of options that are rejected before there is a request."""
    return rejection(capsys, lambda: check_options(read_options(list(args))))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_type=local --hyperparams config=photos.yaml", "--instance_type=local has no GPU"),
        ("--instance_type=local --hyperparams trainer.accelerator=cuda", "--instance_type=local has no GPU"),
        ("--instance_type=local", "--instance_type=local has no GPU; train on the CPU "),
        (
            "--hyperparams logger.save_dir=s3://b/x",
            "--hyperparams logger.save_dir=s3://b/x: only jobs in the cloud can log to S3",
        ),
        ("--hyperparams trainer.callbacks+=A trainer.callbacks+=B", "--hyperparams trainer.callbacks\\+: given twice"),
        ("--input_path a#b", "a#b: paths must not contain #"),
        ("--output_path a$b", r"a\$b: paths must not contain #"),
    ],
)
def test_an_invalid_option_for_local_mode_is_reported_in_one_line(capsys, args, line):
    assert re.match(line, error_of_options(capsys, *args.split()))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_type=ml.m5.large", "--instance_type=ml.m5.large has no GPU"),
        ("--instance_type=ml.trn1.2xlarge", "--instance_type=ml.trn1.2xlarge has no GPU"),
        ("--instance_type=ml.inf2.xlarge", "--instance_type=ml.inf2.xlarge has no GPU"),
        ("--input_path a=s3://b/c d=e", f"e{NOT_IN_S3}"),
        ("--image_uri=", "--image_uri=: not in ECR; push it, and pass"),
        ("--image_uri=sagemaker-tutorial", "--image_uri=sagemaker-tutorial: not in ECR; push it, and pass"),
        ("--role=", "--role=: expected the ARN of a SageMaker execution role"),
        ("--role=sagemaker", "--role=sagemaker: expected the ARN of a SageMaker execution role"),
        ("--instance_type=g4dn.xlarge", "--instance_type=g4dn.xlarge: expected local, local_gpu, or an ml"),
        ("--input_path=.cache", f".cache{NOT_IN_S3}"),
        ("--input_path=S3://Bucket/x", f"S3://Bucket/x{NOT_IN_S3}"),
        ("--output_path=s3:/my-bucket", f"s3:/my-bucket{NOT_IN_S3}"),
        ("--output_path=output", f"output{NOT_IN_S3}"),
        ("--output_path=", NOT_IN_S3),
        ("--checkpoint_path=checkpoints", f"checkpoints{NOT_IN_S3}"),
    ],
)
def test_an_invalid_option_for_the_cloud_is_reported_in_one_line(capsys, args, line):
    assert re.match(line, error_of_options(capsys, *cloud(*args.split())))


@pytest.mark.parametrize(
    "instance_type", ["ml.g4dn.xlarge", "ml.gr6.4xlarge", "ml.p4de.24xlarge", "ml.p6-b200.48xlarge"]
)
def test_every_gpu_instance_family_is_accepted(instance_type):
    check_options(read_options([*CLOUD, f"--instance_type={instance_type}"]))


@use_offline
@pytest.mark.slow
def test_a_dry_run_prints_the_maximum_instance_hours_and_the_quota(capsys):
    options = ["--region=eu-central-1", "--max_run=5400", "--spot_instances", "--checkpoint_path=s3://b/c", "--dry_run"]
    launch(read_options([*CLOUD, *options]))
    name = "ml.g4dn.12xlarge for spot training job usage"
    assert f'up to 3 instance-hours, and needs a quota "{name}" of at least 2\n' in capsys.readouterr().err


@use_offline
@pytest.mark.parametrize(
    "args, line",
    [
        ("--max_run=0", f"{INVALID} StoppingCondition.MaxRuntimeInSeconds, value: 0, valid min value: "),
        ("--max_retry=0", f"{INVALID} RetryStrategy.MaximumRetryAttempts, value: 0, valid min value: 1"),
        ("--estimator volume_size=big", r"(?s).*Invalid type for parameter ResourceConfig.VolumeSizeInGB, value: big"),
        ("--estimator 'tags=[{Kye: a, Value: b}]'", r"(?s)Missing required .*Unknown parameter in Tags\[0\]: .Kye."),
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_value_is_reported_with_its_field_of_the_request(args, line):
    with pytest.raises(ValueError, match=line):
        check_rules(preview(*CLOUD, *shlex.split(args)))


MISTAKES = {
    "--job_name=has_underscore": "TrainingJobName=has_underscore: must match",
    f"--job_name={'x' * 70}": "TrainingJobName=x+: (value or length is 70, expected|must match)",
    f"--hyperparams a={'x' * 3000}": "HyperParameters.a=.*: value or length is 30.., expected 0 to 2500",
    f"--hyperparams {'x' * 300}=1": "name in HyperParameters=x+: value or length is 300, expected 0 to 256",
    f"--environment A={'x' * 600}": "Environment.A=x+: value or length is 600, expected 0 to 512",
    "--environment 1A=b": "name in Environment=1A: must match",
    f"--metrics {' '.join(f'm{number}' for number in range(41))}": "AlgorithmSpecification.MetricDefinitions=.*is 41",
    "--instance_type=ml.g4dn.13xlarge": "ResourceConfig.InstanceType=ml.g4dn.13xlarge: expected one of ",
    "--role=arn:aws:iam::1:role/x": "RoleArn=arn:aws:iam::1:role/x: (value or length is|must match)",
    "--max_retry=31": "RetryStrategy.MaximumRetryAttempts=31: value or length is 31, expected 1 to 30",
    "--spot_instances --max_wait=3600": "--max_wait=3600: needs --spot_instances, and a value of at least --max_run=",
    "--max_wait=90000": "--max_wait=90000: needs --spot_instances",
    "--estimator keep_alive_period_in_seconds=99999": "ResourceConfig.KeepAlivePeriodInSeconds=99999: value or length",
    "--estimator input_mode=file": "AlgorithmSpecification.TrainingInputMode=file: expected one of ",
    "--estimator subnets=[subnet_1] security_group_ids=[sg-1]": "VpcConfig.Subnets=subnet_1: must match",
}


@use_offline
@pytest.mark.parametrize(("args", "line"), MISTAKES.items(), ids=[args[:40] for args in MISTAKES])
def test_a_request_that_sagemaker_would_reject_is_rejected_locally(args, line):
    with pytest.raises(ValueError, match=line):
        check_rules(preview(*cloud(*shlex.split(args))))


@use_offline
def test_the_instance_hours_include_the_warm_pool():
    options = ["--estimator", "max_run=3600", "keep_alive_period_in_seconds=1800"]
    line = cost(preview(*CLOUD, *options))
    quota = '"ml.g4dn.12xlarge for training job usage" of at least 2'
    assert line == f"the job uses up to 3 instance-hours, and needs a quota {quota}"


def check_hyperparams(app_dir: Path, hyperparams: dict[str, str], channels: Iterable[str]) -> None:
    """Lets the train.py of a folder check hyperparameters."""
    options = SimpleNamespace(hyperparams=hyperparams, channels=channels, environment=[], instance_count=1)
    wait_for_check(start_check(options, app_dir))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "item, line",
    [
        ("trainer.max_epoch=1", "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        slow("trainer.max_epochs=many", "--trainer.max_epochs=many is not valid: expected int or null"),
        slow("trainer.num_nodes=2", "--trainer.num_nodes=2: expected 1, the number of hosts"),
        slow("model=no_such.Network", "--model=no_such.Network is not valid: No module named 'no_such'"),
    ],
)
def test_a_wrong_hyperparameter_is_reported_in_one_line_before_the_launch(capsys, item, line):
    hyperparams = DEVICE_HYPERPARAMS | DEFAULT_HYPERPARAMS | dict([item.split("=")])
    error = rejection(capsys, check_hyperparams, APP_DIR, hyperparams, ["training"])
    assert error.startswith(f"--hyperparams: train.py: error: {line}")


def check(folder: Path, text: str, hyperparams: dict[str, str] | None = None, channels: Iterable[str] = ()) -> None:
    """Writes a train.py with this text, and lets it check hyperparameters."""
    (folder / "train.py").write_text(text)
    check_hyperparams(folder, hyperparams or {}, channels)


def test_train_py_checks_its_options_in_the_environment_of_a_container(tmp_path):
    text = "import os, sys\n"
    text += "seen = [f'{name}={value}' for name, value in sorted(os.environ.items()) if name.startswith('SM_')]\n"
    text += "sys.exit(f'{seen} {sys.argv[1:]}')\n"
    seen = {
        "SM_CHANNEL_MORE-DATA": "/opt/ml/input/data/more-data",
        "SM_CHANNEL_TRAIN": "/opt/ml/input/data/train",
        "SM_HOSTS": '["algo-1"]',
        "SM_MODEL_DIR": "/opt/ml/model",
        "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
    }
    with pytest.raises(RuntimeError) as error:
        check(tmp_path, text, {"b": "2", "a": "x=y"}, ["train", "more-data"])
    expected = [f"{name}={value}" for name, value in seen.items()]
    assert str(error.value) == f"--hyperparams: {expected} {['--a=x=y', '--b=2', '--print_config']}"


def test_a_long_stderr_does_not_block_the_check(tmp_path):
    check(tmp_path, "import sys\nprint('x' * 10**6, file=sys.stderr)\n")


def test_stderr_of_a_successful_check_is_printed(tmp_path, capsys):
    check(tmp_path, "import sys\nprint('any words', file=sys.stderr)\n")
    assert capsys.readouterr().err == "any words\n"


def test_a_failed_check_is_reported_with_all_of_stderr(tmp_path):
    with pytest.raises(RuntimeError, match=r"^--hyperparams: any words\nthe reason$"):
        check(tmp_path, "import sys\nprint('any words', file=sys.stderr)\nsys.exit('the reason')\n")


def test_a_check_that_fails_without_a_word_is_reported_with_its_exit_code(tmp_path):
    with pytest.raises(RuntimeError, match=r"--hyperparams: train\.py exited with code 3"):
        check(tmp_path, "import os\nos._exit(3)\n")


def test_an_exception_in_train_py_is_reported_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)--hyperparams: Traceback .*line 1.*ZeroDivisionError"):
        check(tmp_path, "1 / 0\n")


def test_a_package_that_only_this_machine_has_is_reported(tmp_path, capsys):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/table_data.py").write_text("import yaml\nimport torch.nn as nn\nfrom pandas import read_csv\n")
    (tmp_path / "docker/requirements").mkdir(parents=True)
    for file in (ROOT / "docker/requirements").glob("*.txt"):
        shutil.copy(file, tmp_path / "docker/requirements")
    warn_of_missing_packages(tmp_path / "app")
    line = "train.py will not find pandas in the container: docker/requirements/ lacks it\n"
    assert capsys.readouterr().err == line


def test_the_image_has_all_packages_that_the_tutorial_imports(capsys):
    warn_of_missing_packages(APP_DIR)
    assert capsys.readouterr().err == ""
