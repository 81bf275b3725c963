"""The launcher on the laptop, up to where Docker would start: options, request, and what train.py makes of it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import ENVIRONMENT, ROOT
from toolkit import Host, free_port

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
    assert {"image_uri", "max_run", "estimator", "wait", "dry_run"} < set(options) and len(options) > 20
    for option in options:
        explanation = usage.split(f"\n  --{option}")[1].split("\n  --")[0].partition("\n")
        assert len("".join(explanation[2]).split("(default")[0].strip()) > 20, option


def test_a_dry_run_prints_request_and_command_line(laptop):
    result = run_sagemaker("--dry_run", cwd=laptop)
    request, command = result.stdout.split("\nEach container runs:\n")
    request = json.loads(request)
    assert request["AlgorithmSpecification"]["TrainingImage"] == "sagemaker-tutorial"
    assert request["ResourceConfig"] == {"InstanceType": "local_gpu", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert request["InputDataConfig"][0]["DataSource"]["FileDataSource"]["FileUri"] == f"file://{laptop}/.cache"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"file://{laptop}/output"
    assert command.startswith("python -- train.py --data CIFAR10DataModule --logger.name tutorial --optimizer Adam ")
    # The settings are those of the direct command, but for its folders.
    direct = re.search(r"PYTHONPATH=. python app/train.py \\\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    settings = dict(re.findall(r"--(\S+)=(\S+)", direct))
    for folder in ("data.data_dir", "trainer.weights_save_path", "logger.save_dir"):
        del settings[folder]
    words = shlex.split(command)[3:]
    assert dict(zip(words[::2], words[1::2], strict=True)) == {f"--{key}": value for key, value in settings.items()}
    assert result.stderr == ""
    assert not (laptop / "output").exists()


def test_a_dry_run_connects_to_nothing(laptop):
    # sitecustomize.py is what Python runs first.
    (laptop / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): print(event, args, file=sys.stderr)\n"
        "sys.addaudithook(hook)\n"
    )
    assert run_sagemaker("--dry_run", cwd=laptop, PYTHONPATH=str(laptop)).stderr == ""


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


LOCAL = ("--instance_type=local", "--hyperparams", *CPU)


@pytest.mark.parametrize(
    "options, line",
    [
        (["--instance_count=0"], "--instance_count=0: must be 1 or more"),
        (
            ["--instance_count=two"],
            "Parser key .instance_count.: Expected .*int.* Got value: two; --help explains ",
        ),
        (["--instance_cont=2"], "unrecognized arguments: --instance_cont=2; --help explains all options"),
        (["--instance_type=gpu"], "--instance_type=gpu: SageMaker does not know it; did you mean "),
        (["--wait=false", *LOCAL], "--wait=false: containers on this machine end with the launcher"),
        (["--instance_count=2"], "--instance_count=2: one container takes all GPUs; or train on the CPU with "),
        (
            ["--instance_type=local"],
            "--instance_type=local: has no GPU for trainer.accelerator=gpu; train ",
        ),
        (["--input_path=no-such-folder"], "--input_path=no-such-folder: is no folder; README.md says how to make it"),
        (["--input_path=."], "--input_path=.: has no cifar-10-python.tar.gz; README.md says how to get it"),
        (["--spot_instances", *LOCAL], "--spot_instances: is for jobs in the cloud, with --instance_type=ml"),
        (["--max_retry=2", *LOCAL], "--max_retry: is for jobs in the cloud, with --instance_type=ml"),
        (["--checkpoint_path=s3://b/c", *LOCAL], "--checkpoint_path=s3://b/c: must be a folder of this machine"),
        ([*LOCAL, "trainer.max_epochs"], "--hyperparams trainer.max_epochs: must be key=value, such as "),
        ([*LOCAL, "=1"], "--hyperparams =1: must be key=value, such as "),
    ],
)
def test_a_wrong_option_ends_in_one_line_at_once(laptop, options, line):
    result = run_sagemaker(*options, cwd=laptop, code=2)
    assert result.stderr.count("\n") == 1
    assert re.match(f"run_sagemaker.py: error: {line}", result.stderr)


@pytest.mark.parametrize(
    "item, line",
    [
        ("trainer.max_epoch=1", "there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("trainer.max_epochs=many", "--trainer.max_epochs=many is not valid: it must be int or null"),
        (
            "model=no_such.Network",
            "--model=no_such.Network is not valid: it must be LightningModule ",
        ),
    ],
)
def test_a_wrong_hyperparameter_ends_in_one_line_on_the_laptop(laptop, item, line):
    result = run_sagemaker("--dry_run", "--hyperparams", item, cwd=laptop, code=2)
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"run_sagemaker.py: error: --hyperparams: {line}")


def test_more_hyperparameters_than_sagemaker_allows_are_refused(laptop):
    items = [f"trainer.limit_{number}=1" for number in range(100)]
    result = run_sagemaker("--dry_run", "--hyperparams", *items, cwd=laptop, code=2)
    assert result.stderr == ("run_sagemaker.py: error: --hyperparams: 112 entries, where SageMaker allows 0 to 100\n")


def test_without_docker_the_launcher_says_where_to_get_it(laptop):
    result = run_sagemaker(*LOCAL, cwd=laptop, code=2, PATH="")
    assert result.stderr == (
        "run_sagemaker.py: error: there is no `docker` on this machine; see https://docs.docker.com/engine/install/\n"
    )


def test_without_a_gpu_the_launcher_says_which_options_train_on_the_cpu(laptop):
    result = run_sagemaker(cwd=laptop, code=2, PATH="")
    assert result.stderr == (
        "run_sagemaker.py: error: --instance_type=local_gpu: nvidia-smi finds no GPU; train on the CPU with "
        "--instance_type=local --hyperparams trainer.accelerator=cpu trainer.devices=1\n"
    )
