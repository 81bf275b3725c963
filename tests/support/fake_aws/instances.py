"""A simulation of SageMaker's instances: hosts get code, data and checkpoints from S3 and upload their results.

It does not imitate the time that AWS takes to start or to replace an instance.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from fake_aws.aws import AWS, BUCKET
from fake_aws.checkpoint_agent import CheckpointAgent
from fake_aws.toolkit import Host, free_port

NAMES = ("127.0.0.1", "127.0.0.2")


def make_hosts(
    aws: AWS, request: dict[str, Any], folder: Path, names: tuple[str, ...] = NAMES, interface: str = "lo"
) -> list[Host]:
    """Creates the hosts for a request, with the files of its channel."""
    (channel,) = request["InputDataConfig"]
    prefix = s3_key(channel["DataSource"]["S3DataSource"]["S3Uri"])
    for key in aws.keys(prefix):
        path = folder / "data" / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        aws.client("s3").download_file(BUCKET, key, str(path))
    assert len(names) == request["ResourceConfig"]["InstanceCount"]
    values = {key: json.loads(value) for key, value in request["HyperParameters"].items()}
    hosts = []
    for name in names:
        checkpoint_dir = folder / name / "checkpoints" if "CheckpointConfig" in request else None
        instance_type = request["ResourceConfig"]["InstanceType"]
        arguments = {"interface": interface, "checkpoint_dir": checkpoint_dir, "instance_type": instance_type}
        hosts.append(Host(folder / name, name, list(names), values, folder / "data", **arguments))
    return hosts


def s3_key(uri: str) -> str:
    return uri.removeprefix(f"s3://{BUCKET}/")


class Instances:
    """The two hosts of a job, which are new at each start, and the agents that copy their checkpoints.

    Args:
        aws: The simulated AWS.
        request: The arguments of `create_training_job`.
        folder: A folder for the disks of the hosts.
        role: The environment variables of the execution role.
    """

    def __init__(self, aws: AWS, request: dict[str, Any], folder: Path, role: dict[str, str]):
        self.aws, self.request, self.folder, self.gone_file = aws, request, folder, folder.with_name("gone")
        self.role = {name: value for name, value in role.items() if name.startswith("AWS_")}
        self.hosts: list[Host] = []
        self.agents: list[S3CheckpointAgent] = []

    def start(self, **environment: str) -> None:
        self.gone_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.hosts = make_hosts(self.aws, self.request, self.folder)
        for host in self.hosts if "CheckpointConfig" in self.request else []:
            self.agents.append(S3CheckpointAgent(host, self.aws, self.request, self.gone_file))
            self.agents[-1].start()
        variables = self.role | {"TRAINING_JOB_NAME": self.request["TrainingJobName"], "MASTER_PORT": free_port()}
        for host in self.hosts:
            host.start(**environment | variables)

    def lose(self, host: Host) -> None:
        """Kills all processes of a host at once, and stops its agent."""
        self.gone_file.touch()
        host.kill()

    def end(self) -> None:
        """Kills the hosts and stops their agents, which first copy the remaining changes unless a host is lost."""
        for host in self.hosts:
            host.kill()
        while self.agents:
            self.agents.pop().finish()

    def checkpoints(self) -> list[str]:
        """Returns the names of the files that the agents have copied."""
        return [Path(key).name for key in self.aws.keys(s3_key(self.request["CheckpointConfig"]["S3Uri"]))]

    def put_tensorboard_log(self) -> None:
        """Copies the TensorBoard log to S3 with the permissions of the role, which SageMaker does during training."""
        config, client = self.request["TensorBoardOutputConfig"], self.aws.client("s3", environment=self.role)
        prefix = f"{s3_key(config['S3OutputPath'])}/{self.request['TrainingJobName']}/tensorboard-output"
        for host in self.hosts:
            folder = host.base_dir / "output/tensorboard"  # the default LocalPath, in /opt/ml
            for path in filter(Path.is_file, folder.rglob("*")):
                client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")

    def put_results(self) -> str:
        """Uploads the results and logs of the hosts as SageMaker does, and returns the S3 key of the model."""
        if "TensorBoardOutputConfig" in self.request:
            self.put_tensorboard_log()
        job_name = self.request["TrainingJobName"]
        output = f"{s3_key(self.request['OutputDataConfig']['S3OutputPath'])}/{job_name}/output"
        for name, folder in ("model", "model"), ("output", "output/data"):
            sources = [host.base_dir / folder for host in self.hosts]
            # SageMaker merges the files of all hosts.
            assert not [path for source in sources[1:] for path in source.rglob("*")], "only rank 0 writes results"
            with tarfile.open(self.folder / f"{name}.tar.gz", "w:gz") as tar:
                for source in sources:
                    tar.add(source, arcname=".")
            self.aws.client("s3").upload_file(str(self.folder / f"{name}.tar.gz"), BUCKET, f"{output}/{name}.tar.gz")
        for number, host in enumerate(self.hosts, 1):
            self.aws.log(job_name, f"algo-{number}", host.log.splitlines())
        status = "Failed" if any(host.wait() for host in self.hosts) else "Completed"
        self.aws.describe(job_name, training_job_status=status, secondary_status=status, billable_time_in_seconds=60)
        return f"{output}/model.tar.gz"


def execute(aws: AWS, request: dict[str, Any], folder: Path, role: dict[str, str]) -> None:
    """Trains on two hosts and uploads the results to S3, as SageMaker does."""
    instances = Instances(aws, request, folder, role)
    instances.start()
    for host in instances.hosts:
        host.wait()
    instances.put_results()


class S3CheckpointAgent(CheckpointAgent):
    """The agent of one host, which copies to the checkpoint path of the job in S3."""

    def __init__(self, host: Host, aws: AWS, request: dict[str, Any], gone_file: Path):
        self.aws, self.client = aws, aws.client("s3")
        self.prefix = s3_key(request["CheckpointConfig"]["S3Uri"])
        super().__init__(host.base_dir / "checkpoints", Path(self.prefix), gone_file, seconds=0.1)

    def fetch(self) -> None:
        for key in self.aws.keys(self.prefix):
            self.client.download_file(BUCKET, key, str(self.folder / key.removeprefix(self.prefix)))

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=content)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=self.prefix + name)
