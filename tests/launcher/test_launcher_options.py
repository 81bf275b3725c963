"""Tests of how the launcher parses its options; test_checks.py has those that it rejects after parsing."""

import re
import shlex

import pytest
from runs.launcher import CLOUD, rejection

from launcher.checks import check_options
from run_sagemaker import DEFAULT_HYPERPARAMS, DEVICE_HYPERPARAMS, METRICS, read_options

ALL_HYPERPARAMS = DEFAULT_HYPERPARAMS | DEVICE_HYPERPARAMS


def test_defaults_apply_without_options():
    options = read_options([])
    assert options.hyperparams == ALL_HYPERPARAMS and options.metrics == METRICS
    assert options.image_uri == "sagemaker-tutorial" and options.is_local
    assert options.wait and not options.dry_run


@pytest.mark.parametrize(
    "words, value",
    [("--spot_instances", True), ("--spot_instances=true", True), ("--spot_instances=false", False), ("", False)],
)
def test_a_boolean_option_works_with_and_without_a_value(words, value):
    assert read_options(words.split()).spot_instances is value


def test_a_value_may_contain_equals_signs_or_be_empty():
    options = read_options(["--environment", "A=b=c", "B=", "--hyperparams", "logger.name=a=b"])
    assert dict(options.environment) == {"A": "b=c", "B": ""}
    assert options.hyperparams == ALL_HYPERPARAMS | {"logger.name": "a=b"}


@pytest.mark.parametrize(
    "args, hyperparams",
    [
        ("trainer.max_epochs=1", DEVICE_HYPERPARAMS | {"trainer.max_epochs": "1"}),
        ("trainer.accelerator=cpu trainer.devices=2", {"trainer.accelerator": "cpu", "trainer.devices": "2"}),
        ("trainer.accelerator=null trainer.devices=null", {}),
        ("data=null", DEVICE_HYPERPARAMS | {"data": "null"}),
    ],
)
def test_config_drops_all_default_hyperparameters_except_the_devices(args, hyperparams):
    options = read_options(["--hyperparams", "config=photos.yaml", *args.split()])
    assert options.hyperparams == {"config": "photos.yaml"} | hyperparams


def test_a_log_in_s3_is_written_to_the_folder_that_sagemaker_uploads():
    options = read_options([*CLOUD, "--hyperparams", "logger.save_dir=s3://my-bucket/tensorboard"])
    assert options.hyperparams["logger.save_dir"] == "/opt/ml/output/tensorboard"
    check_options(options)


def test_a_log_in_a_folder_is_not_redirected():
    options = read_options(["--hyperparams", "logger.save_dir=/tmp/log"])
    assert options.hyperparams["logger.save_dir"] == "/tmp/log" and options.log_uri is None


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
        ("--stop=my-job --dry_run", "--dry_run: not allowed with argument --stop; see --help"),
        ("--attach=my-job --stop=my-job", "--stop: not allowed with argument --attach; see --help"),
        ("--input_path a b", "--input_path: each channel needs a name of its own, as in train=s3"),
        ("--input_path a=b a=c", "--input_path: each channel needs a name of its own, as in train=s3"),
    ],
)
def test_an_option_that_cannot_be_parsed_is_reported_in_one_line(capsys, args, line):
    assert re.match(line, rejection(capsys, read_options, shlex.split(args)))


@pytest.mark.parametrize(
    "words, channels",
    [
        (["s3://b/x=1"], {"training": "s3://b/x=1"}),
        (["train=s3://b/t", "val=s3://b/v"], {"train": "s3://b/t", "val": "s3://b/v"}),
        (["s3://b/t", "more-data=.cache"], {"training": "s3://b/t", "more-data": ".cache"}),
    ],
)
def test_an_unnamed_input_path_is_the_training_channel(words, channels):
    assert read_options(["--input_path", *words]).channels == channels


def test_repeated_options_accumulate():
    args = "--hyperparams a=1 --hyperparams b=2 --environment A=1 --environment B=2 --estimator volume_size=9"
    args += " --estimator max_run=1 --input_path t=s3://b/t --input_path v=s3://b/v --metrics loss --metrics accuracy"
    options = read_options(args.split())
    assert {"a": "1", "b": "2"}.items() <= options.hyperparams.items()
    assert dict(options.environment) == {"A": "1", "B": "2"}
    assert dict(options.estimator) == {"volume_size": 9, "max_run": 1}
    assert options.channels == {"t": "s3://b/t", "v": "s3://b/v"}
    assert options.metrics == ["loss", "accuracy"]


def test_null_removes_a_default_hyperparameter_and_is_otherwise_passed_to_train_py():
    items = ["optimizer=null", "optimizer.lr=null", "checkpoint.monitor=null"]
    hyperparams = read_options(["--hyperparams", *items]).hyperparams
    assert hyperparams.keys() == ALL_HYPERPARAMS.keys() - {"optimizer", "optimizer.lr"} | {"checkpoint.monitor"}
    assert hyperparams["checkpoint.monitor"] == "null"


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
        ("alias/mine", "alias/mine"),
        ("[sg-1, '2']", ["sg-1", "2"]),
        ("{account: 012345670123}", {"account": "012345670123"}),
    ],
)
def test_estimator_arguments_have_json_types(text, value):
    assert read_options(["--estimator", f"name={text}"]).estimator == [("name", value)]
