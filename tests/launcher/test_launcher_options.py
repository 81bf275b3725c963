"""The launcher's options: how they are read, and which are refused before anything else is done."""

import re
import shlex

import pytest

from launcher.checks import check_options
from launcher.command_line import one_line_errors
from run_sagemaker import DEFAULT_HYPERPARAMS, DEVICE_HYPERPARAMS, LOG_DIR, METRICS, read_options

ALL_HYPERPARAMS = DEFAULT_HYPERPARAMS | DEVICE_HYPERPARAMS
CLOUD = (
    "--image_uri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-tutorial:1",
    "--role=arn:aws:iam::123456789012:role/sagemaker",
    "--instance_type=ml.g4dn.12xlarge",
    "--input_path=s3://my-bucket/datasets/cifar-10",
    "--output_path=s3://my-bucket/output",
)


def refusal(capsys, *args: str) -> str:
    """The only line on stderr, without the program's name; the exit code is 2."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        check_options(read_options(list(args)))
    assert end.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("run_sagemaker.py: error: ") and stderr.count("\n") == 1
    return stderr.removeprefix("run_sagemaker.py: error: ").rstrip()


def test_without_options_the_defaults_count():
    options = read_options([])
    assert options.hyperparams == ALL_HYPERPARAMS and options.metrics == METRICS
    assert options.image_uri == "sagemaker-tutorial" and options.is_local
    assert options.wait and not options.dry_run


@pytest.mark.parametrize(
    "words, value",
    [("--spot_instances", True), ("--spot_instances=true", True), ("--spot_instances=false", False), ("", False)],
)
def test_a_switch_can_be_said_with_and_without_a_value(words, value):
    assert read_options(words.split()).spot_instances is value


def test_an_item_keeps_all_that_follows_its_first_equals_sign():
    options = read_options(["--environment", "A=b=c", "B=", "--hyperparams", "logger.name=a=b"])
    assert dict(options.environment) == {"A": "b=c", "B": ""}
    assert options.hyperparams == ALL_HYPERPARAMS | {"logger.name": "a=b"}


def test_null_removes_a_hyperparameter():
    hyperparams = read_options(["--hyperparams", "optimizer=null", "optimizer.lr=null"]).hyperparams
    assert hyperparams.keys() == ALL_HYPERPARAMS.keys() - {"optimizer", "optimizer.lr"}


def test_config_drops_all_default_hyperparameters_except_the_devices():
    hyperparams = read_options(["--hyperparams", "config=photos.yaml", "trainer.max_epochs=1"]).hyperparams
    assert hyperparams == DEVICE_HYPERPARAMS | {"config": "photos.yaml", "trainer.max_epochs": "1"}


@pytest.mark.parametrize(
    "args, devices",
    [
        ("trainer.accelerator=cpu trainer.devices=2", {"trainer.accelerator": "cpu", "trainer.devices": "2"}),
        ("trainer.accelerator=null trainer.devices=null", {}),
    ],
)
def test_with_config_the_devices_can_be_set_or_removed(args, devices):
    hyperparams = read_options(["--hyperparams", "config=photos.yaml", *args.split()]).hyperparams
    assert hyperparams == {"config": "photos.yaml"} | devices


def test_a_log_in_s3_is_written_to_the_folder_from_which_sagemaker_copies_it():
    options = read_options([*CLOUD, "--hyperparams", "logger.save_dir=s3://my-bucket/tensorboard"])
    assert options.hyperparams["logger.save_dir"] == LOG_DIR == "/opt/ml/output/tensorboard"
    check_options(options)


def test_a_log_in_a_folder_stays_there():
    options = read_options(["--hyperparams", "logger.save_dir=/tmp/log"])
    assert options.hyperparams["logger.save_dir"] == "/tmp/log" and options.log_uri is None


def test_arguments_of_the_estimator_are_yaml():
    items = ["volume_size=100", "subnets=[subnet-1, subnet-2]", "tags={team: vision}", "output_kms_key=alias/mine"]
    assert dict(read_options(["--estimator", *items]).estimator) == {
        "volume_size": 100,
        "subnets": ["subnet-1", "subnet-2"],
        "tags": {"team": "vision"},
        "output_kms_key": "alias/mine",
    }


def test_metrics_take_the_place_of_the_default_ones():
    assert read_options(["--metrics", "loss", "val/acc"]).metrics == ["loss", "val/acc"]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=two", "--instance_count: invalid PositiveInt value: 'two'; see --help"),
        ("--instance_cont=2", "unrecognized arguments: --instance_cont=2; see --help"),
        ("--use_spot", "unrecognized arguments: --use_spot; see --help"),
        ("--wait=perhaps", "--wait: invalid choice: 'perhaps' .*; see --help"),
        ("--hyperparams trainer.max_epochs", "--hyperparams: trainer.max_epochs: expected NAME=value; see --help"),
        ("--hyperparams =1", "--hyperparams: =1: expected NAME=value; see --help"),
        ("--environment A", "--environment: A: expected NAME=value; see --help"),
        ("--estimator 'subnets=[a'", "while parsing a flow sequence .* \\[a "),
        ("--input_path a b", "--input_path: each channel needs a name of its own, as in train=s3"),
        ("--input_path a=b a=c", "--input_path: each channel needs a name of its own, as in train=s3"),
    ],
)
def test_what_cannot_be_read_ends_in_one_line(capsys, args, line):
    assert re.match(line, refusal(capsys, *shlex.split(args)))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_type=local --hyperparams config=photos.yaml", "--instance_type=local has no GPU"),
        ("--instance_type=local", "--instance_type=local has no GPU; train on the CPU "),
        (
            "--hyperparams logger.save_dir=s3://my-bucket/x",
            "--hyperparams logger.save_dir=s3://my-bucket/x: only jobs in the cloud can log to S3",
        ),
    ],
)
def test_an_option_that_does_not_fit_this_machine_ends_in_one_line(capsys, args, line):
    assert re.match(line, refusal(capsys, *args.split()))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_type=ml.m5.large", "--instance_type=ml.m5.large has no GPU"),
        ("--instance_type=ml.trn1.2xlarge", "--instance_type=ml.trn1.2xlarge has no GPU"),
        ("--instance_type=ml.inf2.xlarge", "--instance_type=ml.inf2.xlarge has no GPU"),
        ("--input_path a=s3://b/c d=e", "e: expected a folder in S3"),
        ("--image_uri=", "--image_uri=: expected an image in ECR"),
        ("--image_uri=sagemaker-tutorial", "--image_uri=sagemaker-tutorial: expected an image in ECR"),
        ("--role=", "--role=: expected the ARN of SageMaker's execution role"),
        ("--role=sagemaker", "--role=sagemaker: expected the ARN of SageMaker's execution role"),
        ("--instance_type=g4dn.xlarge", "--instance_type=g4dn.xlarge: expected local, local_gpu, or an ml"),
        ("--input_path=.cache", ".cache: expected a folder in S3"),
        ("--input_path=S3://Bucket/x", "S3://Bucket/x: expected a folder in S3"),
        ("--output_path=s3:/my-bucket", "s3:/my-bucket: expected a folder in S3"),
        ("--output_path=output", "output: expected a folder in S3"),
        ("--output_path=", ": expected a folder in S3"),
        ("--checkpoint_path=checkpoints", "checkpoints: expected a folder in S3"),
    ],
)
def test_an_option_that_does_not_fit_the_cloud_ends_in_one_line(capsys, args, line):
    has_input = args.startswith("--input_path")
    cloud = [option for option in CLOUD if not (has_input and option.startswith("--input_path"))]
    assert re.match(line, refusal(capsys, *cloud, *args.split()))


@pytest.mark.parametrize("kind", ["ml.g4dn.xlarge", "ml.gr6.4xlarge", "ml.p4de.24xlarge", "ml.p6-b200.48xlarge"])
def test_every_family_with_gpus_may_train_on_gpus(kind):
    check_options(read_options([*CLOUD, f"--instance_type={kind}"]))


@pytest.mark.parametrize(
    "words, channels",
    [
        (["s3://b/x=1"], {"training": "s3://b/x=1"}),
        (["train=s3://b/t", "val=s3://b/v"], {"train": "s3://b/t", "val": "s3://b/v"}),
        (["s3://b/t", "more-data=.cache"], {"training": "s3://b/t", "more-data": ".cache"}),
    ],
)
def test_a_folder_is_the_channel_training_unless_it_has_a_name(words, channels):
    assert read_options(["--input_path", *words]).channels == channels


def test_a_repeated_option_adds_to_the_first():
    args = "--hyperparams a=1 --hyperparams b=2 --environment A=1 --environment B=2 --estimator volume_size=9"
    args += " --estimator max_run=1 --input_path t=s3://b/t --input_path v=s3://b/v --metrics loss --metrics accuracy"
    options = read_options(args.split())
    assert {"a": "1", "b": "2"}.items() <= options.hyperparams.items()
    assert dict(options.environment) == {"A": "1", "B": "2"}
    assert dict(options.estimator) == {"volume_size": 9, "max_run": 1}
    assert options.channels == {"t": "s3://b/t", "v": "s3://b/v"}
    assert options.metrics == ["loss", "accuracy"]


def test_null_removes_a_default_of_the_launcher_and_is_passed_on_otherwise():
    hyperparams = read_options(["--hyperparams", "optimizer.lr=null", "checkpoint.monitor=null"]).hyperparams
    assert "optimizer.lr" not in hyperparams and hyperparams["checkpoint.monitor"] == "null"
    assert read_options(["--hyperparams", "config=mine.yaml", "data=null"]).hyperparams["data"] == "null"


@pytest.mark.parametrize(
    "text, value",
    [
        ("012345670123", "012345670123"),
        ("1.10", "1.10"),
        ("on", "on"),
        ("nullable", "nullable"),
        ("true-north", "true-north"),
        ("2026-01-01", "2026-01-01"),
        ("100", 100),
        ("true", True),
        ("null", None),
        ("[sg-1, '2']", ["sg-1", "2"]),
        ("{account: 012345670123}", {"account": "012345670123"}),
    ],
)
def test_values_of_the_estimator_have_the_types_of_json(text, value):
    assert read_options(["--estimator", f"name={text}"]).estimator == [("name", value)]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--hyperparams trainer.callbacks+=A trainer.callbacks+=B", "--hyperparams trainer.callbacks\\+: given twice"),
        ("--input_path a#b", "a#b: paths must not contain #"),
        ("--output_path a$b", r"a\$b: paths must not contain #"),
        ("--instance_type=local --hyperparams trainer.accelerator=cuda", "--instance_type=local has no GPU"),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(capsys, args, line):
    assert re.match(line, refusal(capsys, *args.split()))
