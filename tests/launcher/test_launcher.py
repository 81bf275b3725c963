"""The launcher as a process on the laptop, up to where Docker would start, and what train.py makes of it."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fake_aws.toolkit import Host, free_port
from runs.programs import ENVIRONMENT, ROOT
from runs.tutorial import block

from launcher.checks import start_check, wait_for_check
from launcher.command_line import one_line_errors
from run_sagemaker import APP_DIR, DEFAULT_HYPERPARAMS, DEVICE_HYPERPARAMS

CPU = ("trainer.accelerator=cpu", "trainer.devices=1")
AWS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("AWS_")}


def run_sagemaker(*options: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python run_sagemaker.py` without any AWS configuration, and checks its exit code."""
    no_aws = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    result = subprocess.run(
        [sys.executable, ROOT / "run_sagemaker.py", *options],
        cwd=cwd,
        env={**AWS, **no_aws, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A folder with data in .cache, as the tutorial has it before a launch."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/cifar-10-python.tar.gz").touch()
    return tmp_path


def test_help_explains_every_option(tmp_path):
    usage = run_sagemaker("--help", cwd=tmp_path).stdout
    options = re.findall(r"^  --(\w+)", usage, re.MULTILINE)
    assert {"image_uri", "max_run", "estimator", "wait", "dry_run"} < set(options) and len(options) > 15
    for option in options:
        explanation = usage.split(f"\n  --{option} ")[1].split("\n  --")[0].split("(default")[0]
        assert len(explanation.split()) > 4, option


def test_a_dry_run_prints_the_request_and_creates_nothing(laptop):
    result = run_sagemaker("--dry_run", cwd=laptop)
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
def test_a_dry_run_connects_to_nothing(laptop):
    # sitecustomize.py is what Python runs first.
    (laptop / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): print(event, args, file=sys.stderr)\n"
        "sys.addaudithook(hook)\n"
    )
    assert "socket." not in run_sagemaker("--dry_run", cwd=laptop, PYTHONPATH=str(laptop)).stderr


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
    request = json.loads(run_sagemaker(*options, cwd=laptop).stdout.split("\nEach container runs:\n")[0])
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


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
LOCAL = ("--instance_type=local", "--hyperparams", *CPU)


def error_line(result: subprocess.CompletedProcess) -> str:
    """The only line on stderr."""
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    return result.stderr.removeprefix("run_sagemaker.py: error: ").rstrip("\n")


@pytest.mark.parametrize(
    "option, line",
    [
        ("--instance_cont=2", "unrecognized arguments: --instance_cont=2; see --help"),
        ("--role", "--role: expected one argument; see --help"),
    ],
)
def test_a_wrong_option_ends_in_one_line_at_once(laptop, option, line):
    before = time.monotonic()
    assert error_line(run_sagemaker(option, cwd=laptop, code=2)) == line
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    "item, line",
    [
        ("trainer.max_epoch=1", "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        slow("trainer.max_epochs=many", "--trainer.max_epochs=many is not valid: expected int or null"),
        slow("trainer.num_nodes=2", "--trainer.num_nodes=2: expected 1, the number of hosts"),
        slow("model=no_such.Network", "--model=no_such.Network is not valid: No module named 'no_such'"),
    ],
)
def test_a_wrong_hyperparameter_ends_in_one_line_on_the_laptop(capsys, item, line):
    hyperparams = DEVICE_HYPERPARAMS | DEFAULT_HYPERPARAMS | dict([item.split("=")])
    with pytest.raises(SystemExit) as end, one_line_errors():
        options = SimpleNamespace(hyperparams=hyperparams, channels=["training"], environment=[], instance_count=1)
        wait_for_check(start_check(options, APP_DIR))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"run_sagemaker.py: error: --hyperparams: train.py: error: {line}")


def train_py(folder: Path, text: str) -> Path:
    """A folder with a train.py of one's own."""
    (folder / "train.py").write_text(text)
    return folder


def check(folder: Path, text: str, hyperparams: dict[str, str] | None = None, channels: Iterable[str] = ()) -> None:
    """Lets a train.py with this text check hyperparameters."""
    options = SimpleNamespace(hyperparams=hyperparams or {}, channels=channels, environment=[], instance_count=1)
    wait_for_check(start_check(options, train_py(folder, text)))


def test_train_py_checks_its_options_as_in_a_container(tmp_path):
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
    with pytest.raises(ValueError) as error:
        check(tmp_path, text, {"b": "2", "a": "x=y"}, ["train", "more-data"])
    expected = [f"{name}={value}" for name, value in seen.items()]
    assert str(error.value) == f"--hyperparams: {expected} {['--a=x=y', '--b=2', '--print_config']}"


def test_much_on_stderr_does_not_stop_train_py(tmp_path):
    check(tmp_path, "import sys\nprint('x' * 10**6, file=sys.stderr)\n")


def test_what_train_py_prints_on_stderr_is_printed_too(tmp_path, capsys):
    check(tmp_path, "import sys\nprint('any words', file=sys.stderr)\n")
    assert capsys.readouterr().err == "any words\n"


def test_the_last_line_of_a_train_py_that_fails_is_the_error(tmp_path):
    with pytest.raises(ValueError, match=r"^--hyperparams: the reason$"):
        check(tmp_path, "import sys\nprint('any words', file=sys.stderr)\nsys.exit('the reason')\n")


def test_an_error_of_python_itself_is_one_line_too(tmp_path):
    with pytest.raises(ValueError, match=r"--hyperparams: .*ZeroDivisionError"):
        check(tmp_path, "1 / 0\n")


def test_without_docker_the_launcher_says_where_to_get_it(laptop):
    result = run_sagemaker(*LOCAL, cwd=laptop, code=2, PATH="")
    assert result.stderr == (
        "run_sagemaker.py: error: Docker cannot be used: docker is not installed; "
        "see https://docs.docker.com/engine/install/\n"
    )


def test_without_a_gpu_the_launcher_says_which_options_train_on_the_cpu(laptop):
    result = run_sagemaker(cwd=laptop, code=2, PATH="")
    assert result.stderr == (
        "run_sagemaker.py: error: --instance_type=local_gpu: nvidia-smi finds no GPU; use "
        "local instead, and train on the CPU with --hyperparams trainer.accelerator=cpu trainer.devices=1\n"
    )
