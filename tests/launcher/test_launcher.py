"""Tests of run_sagemaker.py as a process, without AWS and up to where Docker would start."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_aws.aws import NO_AWS
from fake_aws.toolkit import Host, free_port
from runs.launcher import error_line, run_launcher
from runs.programs import ROOT, executable
from runs.tutorial import block

CPU = ("trainer.accelerator=cpu", "trainer.devices=1")


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """Returns a folder with data in .cache, as in the tutorial before a launch."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/cifar-10-python.tar.gz").touch()
    return tmp_path


def test_help_explains_every_option(tmp_path):
    usage = run_launcher("--help", cwd=tmp_path).stdout
    options = re.findall(r"^  --(\w+)", usage, re.MULTILINE)
    assert {"image_uri", "max_run", "estimator", "wait", "dry_run"} < set(options) and len(options) > 15
    for option in options:
        explanation = usage.split(f"\n  --{option} ")[1].split("\n  --")[0].split("(default")[0]
        assert len(explanation.split()) > 4, option


def test_a_signal_that_nohup_ignores_does_not_end_the_launcher():
    program = """import os, signal
from launcher.command_line import exit_on_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
exit_on_signals()
os.kill(os.getpid(), signal.SIGHUP)
print("running")
os.kill(os.getpid(), signal.SIGTERM)"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("running\n", 128 + signal.SIGTERM)


def test_a_dry_run_prints_the_request_and_creates_nothing(laptop):
    result = run_launcher("--dry_run", cwd=laptop)
    request = json.loads(result.stdout)
    assert request["AlgorithmSpecification"]["TrainingImage"] == "sagemaker-tutorial"
    assert request["ResourceConfig"] == {"InstanceType": "local_gpu", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert request["InputDataConfig"][0]["DataSource"]["FileDataSource"]["FileUri"] == f"file://{laptop}/.cache"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"file://{laptop}/output"
    hyperparameters = {name: json.loads(value) for name, value in request["HyperParameters"].items()}
    # The settings are those of the direct command, but for its folders.
    settings = dict(re.findall(r"--(\S+)=(\S+)", block("PYTHONPATH=. python app/train.py")))
    for folder in ("data.data_dir", "trainer.weights_save_path", "logger.save_dir"):
        del settings[folder]
    assert {name: value for name, value in hyperparameters.items() if not name.startswith("sagemaker_")} == settings
    assert not (laptop / "output").exists()


@pytest.mark.slow
def test_a_dry_run_opens_no_connection(laptop):
    # Python runs sitecustomize.py first.
    (laptop / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): print(event, args, file=sys.stderr)\n"
        "sys.addaudithook(hook)\n"
    )
    environment = NO_AWS | {"PYTHONPATH": str(laptop)}
    assert "socket." not in run_launcher("--dry_run", cwd=laptop, environment=environment).stderr


@pytest.mark.slow
def test_hyperparameters_reach_train_py_unchanged(laptop):
    values = {
        "logger.name": "a=b",
        "logger.prefix": """it's "quoted", $HOME, ünï çödé 火""",
        "logger.sub_dir": "-1e-3",
        "trainer.limit_train_batches": "1",
        "trainer.enable_model_summary": "false",
        "optimizer.lr": "1e-3",
        "optimizer.betas": "[0.8, 0.99]",
        "optimizer.weight_decay": "-1",
    }
    # `optimizer` and `data` are defaults that these remove; train.py has the same
    items = [f"{key}={value}" for key, value in values.items()] + ["optimizer=null", "data=null"]
    options = ["--instance_type=local", "--dry_run", "--hyperparams", *CPU, *items]
    request = json.loads(run_launcher(*options, cwd=laptop).stdout.split("\nEach container runs:\n")[0])
    assert "data" not in request["HyperParameters"] and "optimizer" not in request["HyperParameters"]

    # The toolkit decodes what the SDK has encoded, and calls train.py with it.
    hyperparameters = {key: json.loads(value) for key, value in request["HyperParameters"].items()}
    host = Host(laptop / "host", "127.0.0.1", ["127.0.0.1"], hyperparameters | {"print_config": ""})
    host.start(MASTER_PORT=free_port())
    try:
        assert host.wait() == 0, host.log
    finally:
        host.kill()
    config = yaml.safe_load("seed_everything:" + host.log.split("seed_everything:")[-1])
    assert config["logger"]["name"] == values["logger.name"]
    assert config["logger"]["prefix"] == values["logger.prefix"]
    assert config["logger"]["sub_dir"] == values["logger.sub_dir"]
    assert config["trainer"]["limit_train_batches"] == 1
    assert config["trainer"]["enable_model_summary"] is False
    assert config["optimizer"]["init_args"]["lr"] == 1e-3
    assert config["optimizer"]["init_args"]["betas"] == [0.8, 0.99]
    assert config["optimizer"]["init_args"]["weight_decay"] == -1


LOCAL = ("--instance_type=local", "--hyperparams", *CPU)


@pytest.mark.parametrize(
    "option, line",
    [
        ("--instance_cont=2", "unrecognized arguments: --instance_cont=2; see --help"),
        ("--role", "--role: expected one argument; see --help"),
    ],
)
def test_a_wrong_option_is_reported_at_once_in_one_line(laptop, option, line):
    before = time.monotonic()
    result = run_launcher(option, cwd=laptop, code=2)
    assert error_line(result.stderr) == line and result.stdout == ""
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    "options, line",
    [
        (LOCAL, "Docker cannot be used: docker is not installed; install or start it, or give your user access to it"),
        (
            (),
            "--instance_type=local_gpu finds no GPU; use --instance_type=local, and train on the CPU with "
            "--hyperparams trainer.accelerator=cpu trainer.devices=1",
        ),
    ],
    ids=["Docker", "GPU"],
)
def test_what_is_missing_for_local_mode_is_reported_with_what_to_do(laptop, options, line):
    result = run_launcher(*options, cwd=laptop, code=2, environment=NO_AWS | {"PATH": ""})
    assert result.stderr == f"run_sagemaker.py: error: {line}\n"


def test_a_local_job_with_results_in_s3_needs_credentials_before_it_trains(laptop):
    executable(laptop / "bin/docker", "exit 0")
    environment = NO_AWS | {"PATH": f"{laptop}/bin:/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true"}
    options = ("--output_path=s3://my-bucket/output", *LOCAL)
    assert "locate credentials" in error_line(
        run_launcher(*options, cwd=laptop, code=2, environment=environment).stderr
    )
