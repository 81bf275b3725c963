"""Tests of how train.py reads the environment and the files of a SageMaker container."""

import json
import os

import pytest
import yaml
from fake_aws.toolkit import sagemaker_environment
from lightning_fabric.plugins.environments import LightningEnvironment
from runs.programs import SYNTHETIC, TINY, run_train, run_train_warm
from sagemaker_env import PEER_LOST, checkpoint_dir, set_up_hosts


def test_options_override_the_default_folders_of_the_container(tmp_path):
    environment = sagemaker_environment(tmp_path)
    config = yaml.safe_load(run_train_warm("--print_config", cwd=tmp_path, env=environment).stdout)
    assert config["model_dir"] == str(tmp_path / "model")
    assert config["data"]["init_args"]["data_dir"] == str(tmp_path / "data")
    assert config["logger"]["save_dir"] == str(tmp_path / "output/data/tensorboard")
    assert config["checkpoint"]["dirpath"] == str(tmp_path / "output/data/checkpoints")

    (tmp_path / "checkpoints").mkdir()  # exists if the job has a checkpoint path
    # Such as a file from a run on a laptop.
    (tmp_path / "run.yaml").write_text("{model_dir: null, logger: {save_dir: logs, name: mine}}")
    options = ["--config", "run.yaml"]
    config = yaml.safe_load(run_train_warm(*options, "--print_config", "", cwd=tmp_path, env=environment).stdout)
    assert config["model_dir"] == str(tmp_path / "model")
    assert config["logger"]["save_dir"] == str(tmp_path / "output/data/tensorboard")  # not in the checkpoint folder
    assert config["logger"]["name"] == "mine"

    options = ["--data.data_dir", "mine", "--model_dir", "null", "--optimizer.weight_decay", "-1e-3"]
    config = yaml.safe_load(run_train_warm(*options, "--print_config", "", cwd=tmp_path, env=environment).stdout)
    assert config["checkpoint"]["dirpath"] == str(tmp_path / "checkpoints")
    assert config["data"]["init_args"]["data_dir"] == "mine"
    assert config["model_dir"] is None
    assert config["optimizer"]["init_args"]["weight_decay"] == -1e-3


@pytest.mark.slow
def test_a_host_whose_name_does_not_resolve_counts_as_lost_after_the_timeout(tmp_path):
    hosts = {"SM_HOSTS": '["algo-1.invalid", "algo-2.invalid"]', "SM_CURRENT_HOST": "algo-2.invalid"}
    environment = sagemaker_environment(tmp_path, **hosts)
    result = run_train(*TINY, *SYNTHETIC, "--process_group_timeout=3", cwd=tmp_path, env=environment, code=1)
    assert "train.py: error: lost contact with a peer; see the logs of all hosts" in result.stderr
    assert (tmp_path / "output/failure").read_text().startswith(f"{PEER_LOST}: train.py: error: lost contact")


@pytest.mark.parametrize(
    "set_already, expected",
    [
        ({}, ("algo-1-abc", 29500, 1, "eth0")),
        (
            {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "NODE_RANK": "0", "NCCL_SOCKET_IFNAME": "eth1"},
            ("10.0.0.1", 1234, 0, "eth1"),
        ),
    ],
)
def test_lightning_finds_the_hosts_of_the_job_unless_its_variables_are_set(monkeypatch, set_already, expected):
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    job = {"SM_HOSTS": '["algo-1-abc", "algo-2-abc"]', "SM_CURRENT_HOST": "algo-2-abc"}
    for name, value in (job | {"SM_NETWORK_INTERFACE_NAME": "eth0"} | set_already).items():
        monkeypatch.setenv(name, value)
    set_up_hosts()
    found = LightningEnvironment()
    interface = os.environ["NCCL_SOCKET_IFNAME"]
    assert (found.main_address, found.main_port, found.node_rank(), interface) == expected
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_number_of_nodes_different_from_the_number_of_hosts_is_rejected(tmp_path):
    options = (*TINY, *SYNTHETIC, "--trainer.num_nodes=3")
    result = run_train_warm(*options, cwd=tmp_path, env=sagemaker_environment(tmp_path), code=2)
    assert result.stderr.splitlines()[-1] == "train.py: error: --trainer.num_nodes=3: expected 1, the number of hosts"


@pytest.mark.parametrize(
    "config, instance_type, expected",
    [
        ({"LocalPath": "/elsewhere"}, "ml.g4dn.xlarge", "/elsewhere"),
        ({}, "ml.g4dn.xlarge", "/opt/ml/checkpoints"),
        (None, "ml.g4dn.xlarge", None),
        (None, "local", "{folder}/checkpoints"),
        (None, "local_gpu", "{folder}/checkpoints"),
    ],
)
def test_the_checkpoint_folder_is_in_sagemakers_config_or_else_exists_in_local_mode(
    tmp_path, monkeypatch, config, instance_type, expected
):
    if config is not None:
        (tmp_path / "checkpointconfig.json").write_text(json.dumps(config | {"S3Uri": "s3://my-bucket/checkpoints/"}))
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv("SM_INPUT_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", instance_type)
    assert checkpoint_dir() == (expected and expected.format(folder=tmp_path))
