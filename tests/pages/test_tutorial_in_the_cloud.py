"""The README's commands for the cloud, executed with a simulated AWS and no more permissions than they need."""

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import time

import pytest
import torch
from fake_aws.aws import ACCOUNT, BUCKET, REGION, ROLE, filled_in
from fake_aws.instances import execute
from runs.archives import cifar10_files, write_archive
from runs.programs import ROOT, copy_project
from runs.tutorial import block

TINY = ("model=tiny.Tiny", "data.verify=false", "data.val_split=20", "data.batch_size=10")
CPU = ("trainer.accelerator=cpu", "trainer.devices=1")


@pytest.mark.slow
def test_the_tutorial_works_in_the_cloud_with_the_permissions_of_its_policies(aws, tmp_path):
    variables = filled_in(block("export SAGEMAKER_ROLE="))
    (tmp_path / "project").mkdir()
    project = copy_project(tmp_path / "project", "app", "docker", "launcher", "run_sagemaker.py", "upload-cifar-10.sh")
    (project / ".cache").mkdir()
    write_archive(project / ".cache", cifar10_files())
    person, role = aws.person_with("laptop"), aws.person_with("execution-role")
    aws.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}

    def start(command: str, **changed: str) -> subprocess.Popen:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", "-ec", variables + command], cwd=project, env=person | changed, **output)

    with aws.enforce_policies():
        # The push needs Docker: tests/docker/test_registry.py. This has the same effect on the registry.
        stdout, stderr = start("docker/image-uri.sh").communicate()
        aws.put_image(tag=stdout.strip().split(":")[1])

        checksum = hashlib.md5((project / ".cache/cifar-10-python.tar.gz").read_bytes()).hexdigest()
        stdout, stderr = start(
            block("./upload-cifar-10.sh ${S3_PATH}/datasets/cifar-10\n"), CIFAR10_MD5=checksum
        ).communicate()
        assert aws.keys() == ["datasets/cifar-10/cifar-10-python.tar.gz"], stderr

        hyperparams = ("trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights", *TINY, *CPU)
        process = start(
            block("logger.flush_secs=5").rstrip() + f" {' '.join(hyperparams)} --environment PYTHONPATH=$PYTHONPATH"
        )
        while not aws.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        (request,) = aws.requests
        execute(aws, request, tmp_path / "job", role)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr

        # What lies outside is denied.
        for environment, command in (
            (person, "aws sagemaker list-training-jobs"),
            (person, f"aws s3 rm s3://{BUCKET}/datasets/cifar-10/cifar-10-python.tar.gz"),
            (person, "aws ecr delete-repository --repository-name sagemaker-tutorial --force"),
            (role, f"aws s3 cp README.md s3://{BUCKET}/datasets/README.md"),
            (role, "aws s3 mb s3://another-bucket"),
            (role, "aws sagemaker describe-training-job --training-job-name x"),
        ):
            result = subprocess.run(command.split(), env=environment, cwd=ROOT, capture_output=True, text=True)
            assert result.returncode and re.search("AccessDenied|Forbidden", result.stderr), command
        command = f"aws s3 cp README.md s3://{BUCKET}/checkpoints/README.md"
        subprocess.run(command.split(), env=role, cwd=ROOT, capture_output=True, check=True)

    assert request["ResourceConfig"]["InstanceType"] == "ml.g4dn.12xlarge"
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["AlgorithmSpecification"]["TrainingImage"].startswith(f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/")
    assert request["RoleArn"] == ROLE
    weights = re.findall(r"^rank=\d world_size=2 weights=(\w+)", stdout, re.MULTILINE)
    assert len(weights) == 2 and len(set(weights)) == 1
    key = stdout.split(f"model        s3://{BUCKET}/")[1].split()[0]
    content = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert torch.load(tar.extractfile("./model.pt"), weights_only=True)["2.weight"].shape == (10, 192)
    logdir = block("tensorboard --logdir ${S3_PATH}").strip().removeprefix("tensorboard --logdir ${S3_PATH}/")
    events = f"{logdir}/{request['TrainingJobName']}/tensorboard-output/tutorial/version_0/events.out.tfevents"
    assert [key for key in aws.keys(logdir) if key.startswith(events)]

    # No secret of the person or the role is in the request, in what the launcher prints, or in what it uploads.
    source = request["HyperParameters"]["sagemaker_submit_directory"].strip('"').removeprefix(f"s3://{BUCKET}/")
    code = gzip.decompress(aws.client("s3").get_object(Bucket=BUCKET, Key=source)["Body"].read())
    for environment in (person, role):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert environment[name] not in json.dumps(request) + stdout + stderr
            assert environment[name].encode() not in code
    with tarfile.open(fileobj=io.BytesIO(code)) as tar:
        names = {name.split("/")[0] for name in tar.getnames()}
    assert names - {"__pycache__"} == {path.name for path in (ROOT / "app").iterdir()} - {"__pycache__"}
