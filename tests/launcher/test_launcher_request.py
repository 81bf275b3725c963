"""Tests of the CreateTrainingJob request, and of what the SDK rejects, without a network."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator
from runs.launcher import CLOUD, cloud, rejection
from runs.launches import offline, preview
from runs.programs import ROOT

from launcher.command_line import one_line_errors
from run_sagemaker import make_estimator, read_options

pytestmark = pytest.mark.usefixtures(offline.__name__)


def request_of(*args: str) -> dict[str, Any]:
    """Returns the request of a job in the cloud after validating it against botocore's model."""
    request = preview(*cloud(*args))
    model = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert not ParamValidator().validate(request, model).has_errors()
    return request


def test_options_become_fields_of_the_request():
    options = ["--job_name=my-job", "--max_run=3600", "--max_retry=2"]
    request = request_of(*options, "--environment", "A=b=c", "B=1", "--hyperparams", "trainer.max_epochs=1")
    assert request["TrainingJobName"] == "my-job"
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/sagemaker"
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/sagemaker-tutorial:1")
    assert request["ResourceConfig"] == {"InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert {name: request["Environment"][name] for name in "AB"} == {"A": "b=c", "B": "1"}
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "training"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/datasets/cifar-10/"
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://my-bucket/output"}
    assert request["HyperParameters"]["trainer.max_epochs"] == '"1"'
    assert request["HyperParameters"]["optimizer.lr"] == '"0.001"'


@pytest.mark.parametrize("args", [(), CLOUD], ids=["on this machine", "in the cloud"])
def test_the_first_commands_of_the_tutorial_send_seven_hyperparameters(tmp_path, args):
    hyperparameters = preview(*args)["HyperParameters"]
    assert {name: value for name, value in hyperparameters.items() if not name.startswith("sagemaker_")} == {
        "data": '"CIFAR10DataModule"',
        "optimizer": '"Adam"',
        "optimizer.lr": '"0.001"',
        "trainer.accelerator": '"gpu"',
        "trainer.devices": '"-1"',
        "trainer.max_epochs": '"5"',
        "logger.name": '"tutorial"',
    }


@pytest.mark.parametrize("slash", ["", "/"])
def test_s3_prefixes_end_with_a_slash_so_that_they_match_one_folder_only(slash):
    options = [f"--input_path=s3://my-bucket/cifar-10{slash}", f"--checkpoint_path=s3://my-bucket/my-run{slash}"]
    request = request_of(*options)
    assert request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/cifar-10/"
    assert request["CheckpointConfig"] == {"S3Uri": "s3://my-bucket/my-run/"}


def test_a_job_can_have_several_channels_and_stream_them():
    paths = ["--input_path", "train=s3://my-bucket/a=b", "val=s3://my-bucket/val/"]
    request = request_of(*paths, "--estimator", "input_mode=FastFile")
    channels = {item["ChannelName"]: item["DataSource"]["S3DataSource"]["S3Uri"] for item in request["InputDataConfig"]}
    assert channels == {"train": "s3://my-bucket/a=b/", "val": "s3://my-bucket/val/"}
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "FastFile"


def test_a_role_can_belong_to_a_different_partition():
    role = "arn:aws-cn:iam::123456789012:role/sagemaker"
    assert request_of(f"--role={role}")["RoleArn"] == role


def test_the_estimator_example_in_the_docs_works():
    text = (ROOT / "docs/command-line.md").read_text()
    items = re.search(r"--estimator (volume_size=.*?\}')`", text, re.DOTALL)[1]
    request = request_of("--estimator", *shlex.split(items))
    assert request["ResourceConfig"]["VolumeSizeInGB"] == 100
    assert request["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_other_estimator_arguments_reach_the_request():
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


def test_a_spot_job_sends_its_checkpoint_path_and_its_limits():
    options = ["--spot_instances", "--max_run=3600", "--max_wait=7200", "--max_retry=3"]
    request = request_of(*options, "--checkpoint_path=s3://my-bucket/checkpoints/mine")
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["CheckpointConfig"] == {"S3Uri": "s3://my-bucket/checkpoints/mine/"}
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}


def test_max_wait_of_a_spot_job_defaults_to_max_run():
    request = request_of("--spot_instances=true")
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400, "MaxWaitTimeInSeconds": 86400}


def test_metric_definitions_match_the_lines_that_training_prints():
    definitions = request_of()["AlgorithmSpecification"]["MetricDefinitions"]
    metrics = "train_loss=0.921277 train_acc=0.67 val_loss=1.2e-05 val_acc=1 images_per_second=592.958\n"
    metrics += "test_loss=0.9 test_acc=0.68"
    found = {item["Name"]: re.search(item["Regex"], f"epoch=4 step=1565 {metrics}")[1] for item in definitions}
    assert found == dict(item.split("=") for item in metrics.split())


def test_custom_metrics_replace_the_metric_definitions():
    definitions = request_of("--metrics", "rmse", "val/f1.macro")["AlgorithmSpecification"]["MetricDefinitions"]
    assert [item["Name"] for item in definitions] == ["rmse", "val/f1.macro"]


@pytest.mark.parametrize("name", ["val_acc", "acc", "val/acc", "val.acc", "f1,macro", "top-5"])
def test_a_metric_definition_matches_the_whole_name_only(name):
    others = ["best_val_acc=1 x/val_acc=2 x.acc=3 x-acc=3 my_val/acc=4 valxacc=5 f1,f1,macro=6 x-top-5=7"]
    others += [f"{name}_2=8 2{name}=9 a/{name}=10"]
    line = f"{' '.join(others)} {name}=-1.5e-3 {name}x=11"
    [definition] = request_of("--metrics", name)["AlgorithmSpecification"]["MetricDefinitions"]
    assert re.findall(definition["Regex"], line) == ["-1.5e-3"]
    assert re.findall(definition["Regex"], f"{name}=0.5 epoch=1") == ["0.5"]


def test_an_unknown_estimator_argument_is_rejected():
    # The SDK ignores it without a message.
    line = "--estimator security_groups: unknown or unsupported argument of the Estimator"
    with pytest.raises(ValueError, match=line):
        request_of("--estimator", "volume_size=9", "security_groups=[sg-1]")


def test_reusing_a_job_name_does_not_overwrite_the_code_of_the_first_job():
    # SageMaker rejects the name only after the upload, and a restart of the first job downloads its code again.
    jobs = [preview(*CLOUD, "--job_name=my-job") for _ in range(2)]
    first, second = (json.loads(job["HyperParameters"]["sagemaker_submit_directory"]) for job in jobs)
    assert first.startswith("s3://my-bucket/output/") and first != second


def test_only_a_log_in_s3_sets_the_tensorboard_output_config():
    assert "TensorBoardOutputConfig" not in request_of()
    request = request_of("--hyperparams", "logger.save_dir=s3://my-bucket/tensorboard/")
    assert request["TensorBoardOutputConfig"] == {"S3OutputPath": "s3://my-bucket/tensorboard"}
    assert request["HyperParameters"]["logger.save_dir"] == '"/opt/ml/output/tensorboard"'


def test_tags_can_contain_letters_of_all_languages():
    assert request_of("--estimator", "tags={größe: 火 1}")["Tags"] == [{"Key": "größe", "Value": "火 1"}]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=2", "Distributed Training in Local GPU is not supported. Set instance_count to 1."),
        ("--spot_instances", "Spot training is not supported in local mode."),
        ("--checkpoint_path=s3://b/c", "Setting checkpoint_s3_uri is not supported in local mode."),
    ],
)
def test_an_option_that_the_sdk_rejects_in_local_mode_is_reported_in_one_line(tmp_path, capsys, args, line):
    assert rejection(capsys, preview, *args.split()) == line


def test_local_mode_sends_folders_as_file_uris_and_no_checkpoint_config(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = preview(f"--checkpoint_path=file://{tmp_path}/checkpoints")
    assert request["AlgorithmSpecification"]["TrainingImage"] == "sagemaker-tutorial"
    assert request["ResourceConfig"] == {"InstanceType": "local_gpu", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert request["InputDataConfig"][0]["DataSource"]["FileDataSource"]["FileUri"] == f"file://{tmp_path}/.cache"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"file://{tmp_path}/output"
    assert "CheckpointConfig" not in request
    assert json.loads(request["HyperParameters"]["sagemaker_submit_directory"]).startswith("file://")


def test_local_mode_supports_several_channels_and_fast_file(tmp_path: Path):
    paths = ["--input_path", f"train={tmp_path}", "val=s3://my-bucket/val"]
    request = preview(*paths, "--estimator", "input_mode=FastFile")
    sources = {item["ChannelName"]: item["DataSource"] for item in request["InputDataConfig"]}
    assert sources["train"]["FileDataSource"]["FileUri"] == f"file://{tmp_path}"
    assert sources["val"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/val/"


def test_only_code_is_uploaded(tmp_path, monkeypatch):
    app = tmp_path / "app"
    for name in ("train.py", ".env", ".cache/cifar-10-python.tar.gz", "logs/last-step=1.ckpt", "net/weights.yaml"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).touch()
    (app / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    (tmp_path / "elsewhere.py").write_text("pass")
    monkeypatch.setattr("run_sagemaker.APP_DIR", app)
    make_estimator(read_options(list(CLOUD)), None, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy/app")) for path in (tmp_path / "copy/app").rglob("*.*")}
    assert copied == {"train.py", "linked.py", "net/weights.yaml"}
    assert not (tmp_path / "copy/app/linked.py").is_symlink()


def test_a_broken_link_in_app_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/weights.pt").symlink_to("missing.pt")
    monkeypatch.setattr("run_sagemaker.APP_DIR", tmp_path / "app")
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        make_estimator(read_options(list(CLOUD)), None, tmp_path / "copy")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"error: .*No such file or directory: '.*/app/weights\.pt'", line)
