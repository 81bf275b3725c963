"""The CreateTrainingJob request: what is in it, and what the SDK refuses. Nothing here needs a network."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator
from runs.launches import offline, preview
from runs.programs import ROOT

from launcher.checks import check_rules, cost
from launcher.command_line import one_line_errors
from run_sagemaker import LOG_DIR, launch, make_estimator, read_options

CLOUD = (
    "--region=eu-central-1",
    "--image_uri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-tutorial:1",
    "--role=arn:aws:iam::123456789012:role/sagemaker",
    "--instance_type=ml.g4dn.12xlarge",
    "--instance_count=2",
    "--input_path=s3://my-bucket/datasets/cifar-10",
    "--output_path=s3://my-bucket/output",
)


pytestmark = pytest.mark.usefixtures(offline.__name__)


def cloud(*args: str) -> list[str]:
    """Returns the options of a job in the cloud, with its input unless `args` has one."""
    has_input = any(arg.startswith("--input_path") for arg in args)
    return [option for option in CLOUD if not (has_input and option.startswith("--input_path"))] + list(args)


def request_of(*args: str) -> dict[str, Any]:
    """The request of a job in the cloud, which fits all that botocore knows of it."""
    request = preview(*cloud(*args))
    model = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert not ParamValidator().validate(request, model).has_errors()
    return request


def test_options_go_where_sagemaker_wants_them():
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
def test_prefixes_end_with_a_slash_so_that_no_neighbour_is_brought_along(slash):
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


def test_a_role_can_be_of_another_partition():
    role = "arn:aws-cn:iam::123456789012:role/sagemaker"
    assert request_of(f"--role={role}")["RoleArn"] == role


@pytest.mark.slow
def test_a_dry_run_says_the_most_that_a_job_can_take(capsys):
    launch(read_options([*CLOUD, "--max_run=5400", "--spot_instances", "--checkpoint_path=s3://b/c", "--dry_run"]))
    name = "ml.g4dn.12xlarge for spot training job usage"
    assert f'uses at most 3 instance-hours, and 2 of your quota "{name}"\n' in capsys.readouterr().err


def test_the_example_of_the_tutorial_works():
    text = (ROOT / "docs/command-line.md").read_text()
    request = request_of(
        "--estimator", *shlex.split(re.search(r"--estimator (volume_size=.*?\}')`", text, re.DOTALL)[1])
    )
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
    assert request["CheckpointConfig"] == {"S3Uri": "s3://my-bucket/checkpoints/mine/"}
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
    [definition] = request_of("--metrics", name)["AlgorithmSpecification"]["MetricDefinitions"]
    assert re.findall(definition["Regex"], line) == ["-1.5e-3"]
    assert re.findall(definition["Regex"], f"{name}=0.5 epoch=1") == ["0.5"]


def test_an_argument_that_the_estimator_does_not_know_is_refused():
    # The SDK itself says nothing, and the job would be without it.
    with pytest.raises(
        ValueError, match="--estimator security_groups: unknown or unsupported argument of the Estimator"
    ):
        request_of("--estimator", "volume_size=9", "security_groups=[sg-1]")


def test_a_launch_under_the_name_of_another_job_does_not_write_over_its_code():
    # SageMaker refuses the name, but only after the code is in S3, from where a restart of the other job gets its own.
    jobs = [preview(*CLOUD, "--job_name=my-job") for _ in range(2)]
    first, second = (json.loads(job["HyperParameters"]["sagemaker_submit_directory"]) for job in jobs)
    assert first.startswith("s3://my-bucket/output/") and first != second


def test_sagemaker_copies_a_log_for_s3_from_the_container():
    request = request_of("--hyperparams", "logger.save_dir=s3://my-bucket/tensorboard/")
    assert request["TensorBoardOutputConfig"] == {"S3OutputPath": "s3://my-bucket/tensorboard"}
    assert request["HyperParameters"]["logger.save_dir"] == f'"{LOG_DIR}"'


def test_a_log_that_is_not_for_s3_is_not_copied():
    assert "TensorBoardOutputConfig" not in request_of()


@pytest.mark.slow
def test_a_dry_run_shows_both_ends_of_the_copy_of_the_log(capsys):
    launch(read_options([*CLOUD, "--hyperparams", "logger.save_dir=s3://my-bucket/tensorboard", "--dry_run"]))
    request = json.loads(capsys.readouterr().out)
    assert request["TensorBoardOutputConfig"]["S3OutputPath"] == "s3://my-bucket/tensorboard"
    assert request["HyperParameters"]["logger.save_dir"] == json.dumps(LOG_DIR)


def test_letters_of_all_languages_are_allowed_in_tags():
    assert request_of("--estimator", "tags={größe: 火 1}")["Tags"] == [{"Key": "größe", "Value": "火 1"}]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=2", "Distributed Training in Local GPU is not supported. Set instance_count to 1."),
        ("--spot_instances", "Spot training is not supported in local mode."),
        ("--checkpoint_path=s3://b/c", "Setting checkpoint_s3_uri is not supported in local mode."),
    ],
)
def test_what_the_sdk_does_not_do_on_this_machine_it_says_itself(tmp_path, capsys, args, line):
    with pytest.raises(SystemExit) as end, one_line_errors():
        preview(*args.split())
    assert end.value.code == 2 and capsys.readouterr().err == f"run_sagemaker.py: error: {line}\n"


def test_on_this_machine_folders_become_uris_and_checkpoints_stay_out_of_the_request(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = preview(f"--checkpoint_path=file://{tmp_path}/checkpoints")
    assert request["AlgorithmSpecification"]["TrainingImage"] == "sagemaker-tutorial"
    assert request["ResourceConfig"] == {"InstanceType": "local_gpu", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert request["InputDataConfig"][0]["DataSource"]["FileDataSource"]["FileUri"] == f"file://{tmp_path}/.cache"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"file://{tmp_path}/output"
    assert "CheckpointConfig" not in request
    assert json.loads(request["HyperParameters"]["sagemaker_submit_directory"]).startswith("file://")


def test_several_channels_and_fast_file_work_on_this_machine_too(tmp_path: Path):
    paths = ["--input_path", f"train={tmp_path}", "val=s3://my-bucket/val"]
    request = preview(*paths, "--estimator", "input_mode=FastFile")
    sources = {item["ChannelName"]: item["DataSource"] for item in request["InputDataConfig"]}
    assert sources["train"]["FileDataSource"]["FileUri"] == f"file://{tmp_path}"
    assert sources["val"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/val/"


@pytest.mark.parametrize(
    "args, line",
    [
        (
            "--max_run=0",
            "Invalid value for parameter StoppingCondition.MaxRuntimeInSeconds, value: 0, valid min value: ",
        ),
        (
            "--max_retry=0",
            "Invalid value for parameter RetryStrategy.MaximumRetryAttempts, value: 0, valid min value: 1",
        ),
        ("--estimator volume_size=big", r"(?s).*Invalid type for parameter ResourceConfig.VolumeSizeInGB, value: big"),
        ("--estimator 'tags=[{Kye: a, Value: b}]'", r"(?s)Missing required .*Unknown parameter in Tags\[0\]: .Kye."),
    ],
    ids=lambda text: text[:40],
)
def test_what_sagemaker_would_not_take_is_named_in_a_dry_run(args, line):
    with pytest.raises(ValueError, match=line):
        check_rules(preview(*CLOUD, *shlex.split(args)))


MISTAKES = {
    "--job_name=has_underscore": "TrainingJobName=has_underscore: expected the pattern",
    f"--job_name={'x' * 70}": "TrainingJobName=x+: (value or length is 70, expected|expected the pattern)",
    f"--hyperparams a={'x' * 3000}": "HyperParameters.a=.*: value or length is 30.., expected 0 to 2500",
    f"--hyperparams {'x' * 300}=1": "name in HyperParameters=x+: value or length is 300, expected 0 to 256",
    f"--environment A={'x' * 600}": "Environment.A=x+: value or length is 600, expected 0 to 512",
    "--environment 1A=b": "name in Environment=1A: expected the pattern",
    f"--metrics {' '.join(f'm{number}' for number in range(41))}": "AlgorithmSpecification.MetricDefinitions=.*is 41",
    "--instance_type=ml.g4dn.13xlarge": "ResourceConfig.InstanceType=ml.g4dn.13xlarge: expected one of ",
    "--role=arn:aws:iam::1:role/x": "RoleArn=arn:aws:iam::1:role/x: (value or length is|expected the pattern)",
    "--max_retry=31": "RetryStrategy.MaximumRetryAttempts=31: value or length is 31, expected 1 to 30",
    "--spot_instances --max_wait=3600": "--max_wait=3600: requires --spot_instances, and at least --max_run=86400",
    "--max_wait=90000": "--max_wait=90000: requires --spot_instances",
    "--estimator keep_alive_period_in_seconds=99999": "ResourceConfig.KeepAlivePeriodInSeconds=99999: value or length",
    "--estimator input_mode=file": "AlgorithmSpecification.TrainingInputMode=file: expected one of ",
    "--estimator subnets=[subnet_1] security_group_ids=[sg-1]": "VpcConfig.Subnets=subnet_1: expected the pattern",
}


@pytest.mark.parametrize(("args", "line"), MISTAKES.items(), ids=[args[:40] for args in MISTAKES])
def test_what_sagemaker_would_reject_is_rejected_before_the_upload(args, line):
    with pytest.raises(ValueError, match=line):
        check_rules(preview(*cloud(*shlex.split(args))))


def test_the_hours_are_those_of_the_request_with_a_warm_pool():
    options = ["--estimator", "max_run=3600", "keep_alive_period_in_seconds=1800"]
    line = 'uses at most 3 instance-hours, and 2 of your quota "ml.g4dn.12xlarge for training job usage"'
    assert cost(preview(*CLOUD, *options)) == line


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
