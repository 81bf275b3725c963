"""The launcher's options: how they are read, and which are refused before anything else is done."""

import re
import shlex
from pathlib import Path

import pytest

from launcher.checks import check_options
from launcher.command_line import errors_in_one_line, parse_options
from run_sagemaker import ARCHIVE, DEFAULT_HYPERPARAMS, METRICS, Options

LOCAL = "--instance_type=local --hyperparams trainer.accelerator=cpu"
CLOUD = (
    "--image_uri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-tutorial:1",
    "--role=arn:aws:iam::123456789012:role/sagemaker",
    "--instance_type=ml.g4dn.12xlarge",
    "--input_path=s3://my-bucket/datasets/cifar-10",
    "--output_path=s3://my-bucket/output",
)


def parse(*args: str) -> Options:
    return parse_options(Options, list(args))


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch) -> Path:
    """A folder with data in .cache, as the tutorial has it before a launch."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / ARCHIVE).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys, *args: str) -> str:
    """The only line on stderr, without the program's name; the exit code is 2."""
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        check_options(parse(*args), ARCHIVE)
    assert end.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("run_sagemaker.py: error: ") and stderr.count("\n") == 1
    return stderr.removeprefix("run_sagemaker.py: error: ").rstrip()


def test_without_options_the_defaults_count():
    options = parse()
    assert options == Options()
    assert options.hyperparams == DEFAULT_HYPERPARAMS and options.metrics == METRICS
    assert options.wait and not options.dry_run


@pytest.mark.parametrize(
    "words, value",
    [("--spot_instances", True), ("--spot_instances=true", True), ("--spot_instances=false", False), ("", False)],
)
def test_a_switch_can_be_said_with_and_without_a_value(words, value):
    assert parse(*words.split()).spot_instances is value


def test_an_item_keeps_all_that_follows_its_first_equals_sign():
    options = parse("--environment", "A=b=c", "B=", "--hyperparams", "logger.name=a=b")
    assert options.environment == {"A": "b=c", "B": ""}
    assert options.hyperparams == DEFAULT_HYPERPARAMS | {"logger.name": "a=b"}


def test_reading_options_leaves_the_defaults_as_they_are():
    parse("--hyperparams", "optimizer=SGD", "--environment", "A=b")
    assert parse() == Options()


def test_arguments_of_the_estimator_are_yaml():
    items = ["volume_size=100", "subnets=[subnet-1, subnet-2]", "tags={team: vision}", "output_kms_key=alias/mine"]
    assert parse("--estimator", *items).estimator == {
        "volume_size": 100,
        "subnets": ["subnet-1", "subnet-2"],
        "tags": {"team": "vision"},
        "output_kms_key": "alias/mine",
    }


def test_metrics_take_the_place_of_the_default_ones():
    assert parse("--metrics", "loss", "val/acc").metrics == ["loss", "val/acc"]


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=two", 'Parser key "instance_count": Expected .*int.* Got value: two; --help explains'),
        ("--instance_cont=2", "unrecognized arguments: --instance_cont=2; --help explains all options"),
        ("--use_spot", "unrecognized arguments: --use_spot; --help explains all options"),
        ("--wait=perhaps", "argument --wait/--no_wait: invalid .* value: 'perhaps'; --help"),
        ("--hyperparams trainer.max_epochs", "--hyperparams trainer.max_epochs: must be key=value, such as trainer"),
        ("--hyperparams =1", "--hyperparams =1: must be key=value, such as "),
        ("--environment A", "--environment A: must be key=value, such as NAME=value"),
        ("--estimator 'subnets=[a'", r"--estimator subnets=\[a: its value is no YAML"),
    ],
)
def test_what_cannot_be_read_ends_in_one_line(capsys, args, line):
    assert re.match(line, refusal(capsys, *shlex.split(args)))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=0", "--instance_count=0: must be 1 or more"),
        ("--instance_type=gpu", "ResourceConfig.InstanceType=gpu: SageMaker does not know it; did you mean "),
        ("--instance_count=2", "--instance_count=2: one container takes all GPUs; or train on the CPU with --instance"),
        ("--instance_type=local", "--instance_type=local: has no GPU for trainer.accelerator=gpu; train on the CPU "),
        ("--input_path=no-such-folder", "--input_path=no-such-folder: is no folder; README.md says how to make it"),
        ("--input_path=.", "--input_path=.: has no cifar-10-python.tar.gz; README.md says how to get it"),
        (f"--wait=false {LOCAL}", "--wait=false: containers on this machine end with the launcher"),
        (f"--spot_instances {LOCAL}", "--spot_instances: is for jobs in the cloud, with --instance_type=ml"),
        (f"--max_retry=2 {LOCAL}", "--max_retry: is for jobs in the cloud, with --instance_type=ml"),
        (f"--max_wait=2 {LOCAL}", "--max_wait=2: is for --spot_instances only"),
        (f"--checkpoint_path=s3://b/c {LOCAL}", "--checkpoint_path=s3://b/c: must be a folder of this machine"),
    ],
)
def test_an_option_that_does_not_fit_this_machine_ends_in_one_line(laptop, capsys, args, line):
    assert re.match(line, refusal(capsys, *args.split()))


@pytest.mark.parametrize(
    "args, line",
    [
        ("--instance_count=0", "--instance_count=0: must be 1 or more"),
        ("--instance_count=-1", "--instance_count=-1: must be 1 or more"),
        ("--instance_type=ml.g4dn", "ResourceConfig.InstanceType=ml.g4dn: SageMaker .*; did you mean ml.g4dn.xlarge"),
        ("--instance_type=g4dn.xlarge", "ResourceConfig.InstanceType=g4dn.xlarge: SageMaker does .* ml.g4dn.xlarge"),
        ("--instance_type=ml.m5.large", "--instance_type=ml.m5.large: has no GPU for trainer.accelerator=gpu"),
        ("--image_uri=sagemaker-tutorial", "--image_uri=sagemaker-tutorial: is not in a registry; push it"),
        ("--image_uri=", "--image_uri=: is not in a registry; push it"),
        ("--role=", "--role: is missing"),
        ("--role=sagemaker", "RoleArn: 9 characters, where SageMaker allows 20 to 2048"),
        ("--role=arn:aws:iam::role/sagemaker-execution", "RoleArn=arn:aws:iam::role/.*: must have the form arn:aws"),
        ("--input_path=.cache", "--input_path=.cache: must be in S3"),
        ("--input_path=S3://Bucket/x", "--input_path=S3://Bucket/x: must be in S3"),
        ("--input_path=s3://my_bucket/x", "--input_path=s3://my_bucket/x: must be in S3"),
        ("--output_path=s3:/my-bucket", "--output_path=s3:/my-bucket: must be in S3"),
        ("--output_path=output", "--output_path=output: must be in S3"),
        ("--output_path=", "--output_path=: must be in S3"),
        ("--checkpoint_path=checkpoints", "--checkpoint_path=checkpoints: must be in S3"),
        ("--max_run=2419201", "--max_run=2419201: must be 2419200 seconds, 28 days, or less"),
        ("--max_wait=90000", "--max_wait=90000: is for --spot_instances only"),
        ("--spot_instances --max_wait=3600", "--max_wait=3600: must be --max_run=86400 or more"),
        ("--spot_instances --max_wait=0", "--max_wait=0: must be --max_run=86400 or more"),
        ("--estimator subnets=[subnet-1]", "--estimator subnets, security_group_ids: SageMaker needs both or none"),
        (
            "--estimator enable_network_isolation=true --hyperparams logger.save_dir=s3://b/t",
            "--estimator enable_network_isolation: leaves no way to logger.save_dir=s3://b/t",
        ),
    ],
)
def test_an_option_that_does_not_fit_the_cloud_ends_in_one_line(capsys, args, line):
    assert re.match(line, refusal(capsys, *CLOUD, *args.split()))


def test_other_data_needs_another_file_or_none(laptop, capsys):
    (laptop / ".cache" / ARCHIVE).rename(laptop / ".cache/mine.npz")
    check_options(parse(*LOCAL.split()), needed_file="")
    (laptop / ".cache/mine.npz").unlink()
    with pytest.raises(ValueError, match="is empty"):
        check_options(parse(*LOCAL.split()), needed_file="")


def test_spot_instances_without_a_checkpoint_path_are_warned_of(capsys):
    check_options(parse(*CLOUD, "--spot_instances"), ARCHIVE)
    assert capsys.readouterr().err == (
        "run_sagemaker.py: warning: --spot_instances: without --checkpoint_path the job starts anew after each "
        "interruption\n"
    )
