"""Tests of launcher/sagemaker_sdk.py: they fail if the SageMaker SDK changes a name that the launcher replaces."""

import inspect
import os
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from runs.launcher import rejection
from runs.programs import executable
from sagemaker import Session
from sagemaker.local import LocalSession, data, image, local_session

from launcher import sagemaker_sdk

PARENT = image._SageMakerContainer
METHODS = ("_create_docker_host", "train", "retrieve_artifacts")


@pytest.fixture
def containers(tmp_path: Path, monkeypatch) -> sagemaker_sdk.Containers:
    """Returns two containers that are not started, with a `docker` that can only print a Compose version, 5.0.1."""
    executable(tmp_path / "bin/docker", "echo Docker Compose version 5.0.1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(sagemaker_sdk.Containers, "checkpoint_path", f"file://{tmp_path}/checkpoints")
    (tmp_path / "containers").mkdir()
    session = sagemaker_sdk.make_session(boto3.Session(region_name="us-east-1"), str(tmp_path / "containers"))
    containers = sagemaker_sdk.Containers("local", 2, "sagemaker-tutorial", sagemaker_session=session)
    containers.container_root = str(tmp_path / "containers")
    return containers


@pytest.mark.parametrize("name", METHODS)
def test_the_overridden_methods_exist_in_the_sdk(name):
    assert name in vars(PARENT)
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (sagemaker_sdk.Containers, PARENT))
    assert set(ours) - {"args"} <= set(theirs)


def test_local_mode_uses_the_names_that_the_launcher_replaces():
    assert "_SageMakerContainer(" in inspect.getsource(local_session.LocalSagemakerClient.create_training_job)
    assert "_stream_output(process)" in inspect.getsource(PARENT.train)
    assert image._stream_output


def test_sessions_have_the_clients_that_the_launcher_replaces():
    for kind in (Session, LocalSession):
        assert "s3_resource" in inspect.getsource(kind) and "sagemaker_client" in inspect.getsource(kind)


@pytest.mark.parametrize(
    "method", [sagemaker_sdk.PyTorch.fit, local_session.LocalSagemakerClient.create_training_job], ids=["fit", "client"]
)
def test_starting_a_job_sends_no_telemetry(method):
    assert "_send_telemetry_request" not in method.__code__.co_names


def test_the_compose_file_corrects_that_of_the_sdk(containers, tmp_path):
    containers._generate_compose_file(
        "train", additional_volumes=[], additional_env_vars={"A": "b$c", "OMP_NUM_THREADS": "7", "HOME": "/tmp"}
    )
    services = yaml.safe_load((tmp_path / "containers/docker-compose.yaml").read_text())["services"]
    assert list(services) == containers.hosts and len(services) == 2
    for host, service in services.items():
        assert service["container_name"] == host and service["shm_size"] == "2gb" and not service["tty"]
        assert service["user"] and "HOME=/tmp" in service["environment"]
        assert "A=b$$c" in service["environment"]  # which Compose reads as b$c
        assert len(set(service["environment"])) == len(service["environment"])  # as Compose requires
        threads = [item for item in service["environment"] if item.startswith("OMP_NUM_THREADS=")]
        assert threads[-1] == "OMP_NUM_THREADS=7"
        assert f"{tmp_path}/checkpoints:/opt/ml/checkpoints" in service["volumes"]
        assert all(Path(volume.split(":")[0]).is_dir() for volume in service["volumes"])


def test_with_rootless_docker_the_container_runs_as_its_root_who_is_the_user(containers, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    executable(tmp_path / "bin/docker", "echo [name=seccomp,profile=builtin name=rootless]")
    assert containers._create_docker_host("algo-1", [], set(), "train", [])["user"] == "0:0"


def test_an_image_that_the_sdk_cannot_pull_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    executable(tmp_path / "docker", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert rejection(capsys, image._pull_image, "my-image").startswith("Command '")


def test_data_in_the_home_folder_of_root_can_be_mounted():
    restricted = data._SENSITIVE_SYSTEM_PATHS
    assert "/root" not in restricted and {"/etc", "/var/lib"} <= set(restricted)


def test_each_channel_is_mounted_under_its_name(containers, tmp_path):
    for name in ("data", "train", "val"):
        (tmp_path / name).mkdir()
    channels = [{"ChannelName": name, "DataUri": f"file://{tmp_path}/{name}"} for name in ("train", "val")]
    output = {"S3OutputPath": f"file://{tmp_path}/output"}
    volumes = containers._prepare_training_volumes(str(tmp_path / "data"), channels, output, {})
    mounted = {volume.container_dir: volume.host_dir for volume in volumes}
    for name in ("train", "val"):
        assert mounted[f"/opt/ml/input/data/{name}"] == f"{tmp_path}/{name}"


def test_any_version_of_docker_compose_is_accepted(containers):
    # The method of the SDK requires "v2" in the version.
    command = containers._compose()
    assert command[:2] == ["docker", "compose"] and "up" in command


def test_a_failed_job_collects_no_artifacts(containers, capfd):
    process = subprocess.Popen(["sh", "-c", "echo no such image; exit 1"], stdout=subprocess.PIPE)
    with pytest.raises(RuntimeError, match="a container failed"):
        containers.stream_output(process)
    assert capfd.readouterr().out == "no such image\n"
    assert containers.retrieve_artifacts({}, {}, "job") == ""
