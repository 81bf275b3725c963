"""The CreateTrainingJob request: what is in it, and what SageMaker would not take. Nothing here needs a network."""

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aws import NO_AWS
from botocore.session import get_session
from botocore.validate import ParamValidator

from launcher.command_line import errors_in_one_line
from launcher.sagemaker_sdk import make_session
from run_sagemaker import ESTIMATOR_HELP, make_estimator, make_request, metric_regex, read_options

CLOUD = (
    "--image_uri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-tutorial:1",
    "--role=arn:aws:iam::123456789012:role/sagemaker",
    "--instance_type=ml.g4dn.12xlarge",
    "--instance_count=2",
    "--input_path=s3://my-bucket/datasets/cifar-10",
    "--output_path=s3://my-bucket/output",
)


one_session = cache(make_session)  # which takes 0.7 seconds to make


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch):
    """No configuration of AWS, and an address where any request fails."""
    monkeypatch.setattr("launcher.sagemaker_sdk.make_session", one_session)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, NO_AWS[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def request_of(*args: str) -> dict[str, Any]:
    """The request of a job in the cloud, which fits all that botocore knows of it."""
    options = read_options([*CLOUD, *args])
    request = make_request(make_estimator(options, container_root=""), options)
    model = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert not ParamValidator().validate(request, model).has_errors()
    return request


def refusal(*args: str) -> str:
    """What is wrong with the request of a job in the cloud."""
    options = read_options([*CLOUD, *args])
    with pytest.raises(ValueError) as error:
        make_request(make_estimator(options, container_root=""), options)
    return str(error.value)


def test_options_go_where_sagemaker_wants_them():
    options = ["--job_name=my-job", "--max_run=3600", "--max_retry=2"]
    request = request_of(*options, "--environment", "A=b=c", "B=1", "--hyperparams", "trainer.max_epochs=1")
    assert request["TrainingJobName"] == "my-job"
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/sagemaker"
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/sagemaker-tutorial:1")
    assert request["ResourceConfig"] == {"InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert request["Environment"] == {"A": "b=c", "B": "1"}
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "training"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/datasets/cifar-10"
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://my-bucket/output"}
    assert request["HyperParameters"]["trainer.max_epochs"] == '"1"'
    assert request["HyperParameters"]["optimizer.lr"] == '"0.001"'


def test_the_example_of_the_help_works():
    request = request_of("--estimator", *shlex.split(re.search(r"volume_size=.*\}'", ESTIMATOR_HELP)[0]))
    assert request["ResourceConfig"]["VolumeSizeInGB"] == 100
    assert request["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_every_other_argument_of_the_estimator_reaches_the_request():
    items = ["keep_alive_period_in_seconds=600", "code_location=s3://my-bucket/code", "output_kms_key=alias/mine"]
    items += ["encrypt_inter_container_traffic=true", "enable_network_isolation=true"]
    items += ["tags=[{Key: team, Value: vision}]"]
    request = request_of("--job_name=my-job", "--estimator", *items)
    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/mine"
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]
    assert request["EnableNetworkIsolation"] and request["EnableInterContainerTrafficEncryption"]
    # Without a network the container cannot fetch the code: it becomes a channel.
    (code,) = [channel for channel in request["InputDataConfig"] if channel["ChannelName"] == "code"]
    assert code["DataSource"]["S3DataSource"]["S3Uri"].startswith("s3://my-bucket/code/my-job/source/")


def test_a_spot_job_has_checkpoints_and_waits():
    options = ["--spot_instances", "--max_run=3600", "--max_wait=7200", "--max_retry=3"]
    request = request_of(*options, "--checkpoint_path=s3://my-bucket/checkpoints/mine")
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["CheckpointConfig"] == {"S3Uri": "s3://my-bucket/checkpoints/mine"}
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}


def test_a_spot_job_waits_as_long_as_it_may_run_if_nothing_is_said():
    request = request_of("--spot_instances=true")
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400, "MaxWaitTimeInSeconds": 86400}


def test_cloudwatch_finds_every_metric_in_the_lines_that_training_prints():
    definitions = request_of()["AlgorithmSpecification"]["MetricDefinitions"]
    line = (
        "epoch=4 step=1565 train_loss=0.921277 train_acc=0.67 val_loss=1.2e-05 val_acc=1 images_per_second=592.958\n"
        "test_loss=0.9 test_acc=0.68"
    )
    found = {item["Name"]: float(re.search(item["Regex"], line)[1]) for item in definitions}
    assert found == {
        "train_loss": 0.921277,
        "train_acc": 0.67,
        "val_loss": 1.2e-05,
        "val_acc": 1,
        "test_loss": 0.9,
        "test_acc": 0.68,
        "images_per_second": 592.958,
    }


def test_cloudwatch_is_told_the_names_of_other_metrics():
    definitions = request_of("--metrics", "rmse", "val/f1.macro")["AlgorithmSpecification"]["MetricDefinitions"]
    assert [item["Name"] for item in definitions] == ["rmse", "val/f1.macro"]


@pytest.mark.parametrize("name", ["val_acc", "acc", "val/acc", "val.acc", "f1,macro", "top-5"])
def test_a_metric_is_found_by_its_whole_name(name):
    others = ["best_val_acc=1 x/val_acc=2 x.acc=3 x-acc=3 my_val/acc=4 valxacc=5 f1,f1,macro=6 x-top-5=7"]
    others += [f"{name}_2=8 2{name}=9 a/{name}=10"]
    line = f"{' '.join(others)} {name}=-1.5e-3 {name}x=11"
    assert re.findall(metric_regex(name), line) == ["-1.5e-3"]
    assert re.findall(metric_regex(name), f"{name}=0.5 epoch=1") == ["0.5"]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_type=ml.g4dn", "ResourceConfig.InstanceType=ml.g4dn: SageMaker .*; did you mean ml.g4dn.xlarge"),
        ("--role=arn:aws:iam::role/sagemaker-execution", "RoleArn=arn:aws:iam::role/.*: must have the form arn:aws"),
        ("--job_name=my_job", "TrainingJobName=my_job: must have the form"),
        ("--job_name=-job", "TrainingJobName=-job: must have the form"),
        (f"--job_name={'j' * 64}", "TrainingJobName: 64 characters, where SageMaker allows 63 at most"),
        (
            f"--image_uri=a/{'b' * 300}",
            "AlgorithmSpecification.TrainingImage: 302 characters, where SageMaker allows 255 at most",
        ),
        (
            "--max_run=0",
            "Invalid value for parameter StoppingCondition.MaxRuntimeInSeconds, value: 0, valid min value: ",
        ),
        (
            "--max_retry=0",
            "Invalid value for parameter RetryStrategy.MaximumRetryAttempts, value: 0, valid min value: 1",
        ),
        ("--max_retry=31", "RetryStrategy.MaximumRetryAttempts: 31, where SageMaker allows 30 at most"),
        ("--environment 1A=b", "Environment 1A=1A: must have the form"),
        (f"--environment A={'b' * 513}", "Environment A: 513 characters, where SageMaker allows 512 at most"),
        (f"--environment {' '.join(f'A{number}=' for number in range(101))}", "Environment: 101 entries"),
        (f"--hyperparams logger.name={'x' * 2501}", "HyperParameters logger.name: 2503 characters, where SageMaker "),
        (f"--hyperparams {'x' * 257}=1", "HyperParameters x*: 257 characters, where SageMaker allows 256 at most"),
        (f"--metrics {' '.join(f'm{number}' for number in range(41))}", "AlgorithmSpecification.MetricDefinitions: 41"),
        (
            "--estimator volume_size=-1",
            "Invalid value for parameter ResourceConfig.VolumeSizeInGB, value: -1, valid min value: ",
        ),
        ("--estimator volume_size=big", r"(?s).*Invalid type for parameter ResourceConfig.VolumeSizeInGB, value: big"),
        (
            "--estimator keep_alive_period_in_seconds=-1",
            "Invalid value for parameter ResourceConfig.KeepAlivePeriodInSeconds, value: -1, ",
        ),
        (
            "--estimator subnets=[s] security_group_ids=[a_b]",
            r"VpcConfig.SecurityGroupIds\[0\]=a_b: must have the form",
        ),
        ("--estimator subnets=[s] security_group_ids=[a,b,c,d,e,f]", "VpcConfig.SecurityGroupIds: 6 entries"),
        (
            "--estimator subnets=s security_group_ids=[a]",
            r"(?s).*Invalid type for parameter VpcConfig.Subnets, value: s",
        ),
        ("--estimator 'tags=[{Kye: a, Value: b}]'", r"(?s)Missing required .*Unknown parameter in Tags\[0\]: .Kye."),
        (f"--estimator 'tags={dict.fromkeys(range(51), 1)}'", "Tags: 51 entries"),
        ("--estimator instance_count=3", "--estimator instance_count: the launcher sets it itself"),
        ("--estimator max_retry_attempts=3", "--estimator max_retry_attempts: the launcher sets it itself"),
        ("--estimator hyperparameters={}", "--estimator hyperparameters: the launcher sets it itself"),
        ("--estimator max_retries=3", "--estimator max_retries: the Estimator has no such argument"),
    ],
    ids=lambda text: text[:40],
)
def test_what_sagemaker_would_not_take_is_named(args, line):
    assert re.match(line, refusal(*shlex.split(args)))


def test_letters_of_all_languages_are_allowed_in_tags():
    assert request_of("--estimator", "tags={größe: 火 1}")["Tags"] == [{"Key": "größe", "Value": "火 1"}]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=2", "Distributed Training in Local GPU is not supported. Set instance_count to 1."),
        ("--spot_instances", "Spot training is not supported in local mode."),
    ],
)
def test_what_the_sdk_does_not_do_on_this_machine_it_says_itself(tmp_path, capsys, args, line):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        options = read_options(args.split())
        make_request(make_estimator(options, str(tmp_path)), options)
    assert end.value.code == 2 and capsys.readouterr().err == f"run_sagemaker.py: error: {line}\n"


def test_on_this_machine_folders_become_uris_and_checkpoints_stay_out_of_the_request(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = read_options([f"--checkpoint_path=file://{tmp_path}/checkpoints"])
    request = make_request(make_estimator(options, str(tmp_path)), options)
    assert request["AlgorithmSpecification"]["TrainingImage"] == "sagemaker-tutorial"
    assert request["ResourceConfig"] == {"InstanceType": "local_gpu", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert request["InputDataConfig"][0]["DataSource"]["FileDataSource"]["FileUri"] == f"file://{tmp_path}/.cache"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"file://{tmp_path}/output"
    assert "CheckpointConfig" not in request
    assert json.loads(request["HyperParameters"]["sagemaker_submit_directory"]).startswith("file://")
