"""The image in a real Docker Engine, alone and in a simulated job in the cloud: `make test-docker`."""

import os
import subprocess

import pytest
import torch
from fake_aws.aws import BUCKET, ROLE, Endpoint
from fake_aws.instances import make_hosts
from fake_aws.toolkit import of_container
from runs.containers import CPU_HYPERPARAMS, TINY_HYPERPARAMS, docker, launch
from runs.programs import ROOT, copy_project
from runs.results import assert_all_ranks_have_one_model

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("image", "nothing_is_left")]


def test_the_image_has_dependencies_only():
    assert docker("run", "--rm", "sagemaker-tutorial", "ls", "-A", "/opt/ml/code") == ""
    assert docker("run", "--rm", "sagemaker-tutorial", "ls", "-A", "/root") == ".bashrc\n.profile\n"
    assert "AWS" not in docker("image", "inspect", "sagemaker-tutorial")
    docker("run", "--rm", "sagemaker-tutorial", "python", "-m", "pip", "check")


def test_upgrading_another_package_does_not_download_torch_again(tmp_path):
    build = ("--quiet", "--target", "torch", "--file")
    copy_project(tmp_path, "docker", ".dockerignore")
    before = docker("build", *build, str(ROOT / "docker/Dockerfile"), str(ROOT))
    others = tmp_path / "docker/requirements/others.txt"
    changed = others.read_text().replace("tensorboard==2.21.0", "tensorboard==2.20.0")
    assert "tensorboard==2.20.0" in changed
    others.write_text(changed)
    assert docker("build", *build, str(tmp_path / "docker/Dockerfile"), str(tmp_path)) == before


def test_two_containers_train_one_model_from_the_request_of_a_cloud_job(aws, checkout, tmp_path):
    aws.client("s3").upload_file(f"{checkout}/.cache/cifar-10-python.tar.gz", BUCKET, "data/cifar-10-python.tar.gz")
    options = ("--instance_type=ml.g4dn.12xlarge", f"--role={ROLE}", "--image_uri=registry/image", "--wait=false")
    options += (f"--input_path=s3://{BUCKET}/data", f"--output_path=s3://{BUCKET}/output")
    options += ("--hyperparams", *CPU_HYPERPARAMS, *TINY_HYPERPARAMS)
    options += ("trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights", f"logger.save_dir=s3://{BUCKET}/logs")
    launch(checkout, *options, instance_count=2, env=aws.environment)
    (request,) = aws.requests

    names, endpoint = ("algo-1", "algo-2"), Endpoint(address="0.0.0.0")
    network, user = "sagemaker-tutorial-test", f"{checkout.stat().st_uid}:{checkout.stat().st_gid}"
    hosts = make_hosts(aws, request, tmp_path / "job", names, interface="eth0")
    for path in (tmp_path / "job").rglob("*"):
        os.chown(path, checkout.stat().st_uid, checkout.stat().st_gid)
    docker("network", "create", network)
    try:
        gateway = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network).strip()
        variables = of_container({name: value for name, value in aws.environment.items() if name.startswith("AWS_")})
        variables |= {"AWS_ENDPOINT_URL": endpoint.url.replace("0.0.0.0", gateway), "OMP_NUM_THREADS": "1"}
        variables |= {"TRAINING_JOB_NAME": request["TrainingJobName"]}
        environment = [word for item in variables.items() for word in ("--env", "=".join(item))]
        for host in hosts:
            options = ["--detach", "--user", user, "--network", network, "--hostname", host.name, "--name", host.name]
            options += ["--volume", f"{host.base_dir}:/opt/ml", "--shm-size", "2g", *environment]
            docker("run", *options, "sagemaker-tutorial", "train")
        codes = docker("wait", *names).split()
        logs = docker("logs", names[0]) + docker("logs", names[1])
    finally:
        subprocess.run(["docker", "rm", "--force", *names], check=True, capture_output=True)
        docker("network", "rm", network)
    assert codes == ["0", "0"], logs
    assert_all_ranks_have_one_model(logs, world_size=2)
    assert torch.load(hosts[0].model_dir / "model.pt", weights_only=True)["2.weight"].shape == (10, 192)
    assert list(hosts[0].output_dir.glob("tensorboard/tutorial/version_0/events.out.tfevents.*"))
