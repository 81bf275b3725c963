"""The private and monkey-patched names of the SageMaker SDK (tested in test_sagemaker_sdk.py)."""

# ruff: noqa: E402 - the SDK must be silenced before it is imported.

import contextlib
import logging
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["SAGEMAKER_SUPPRESS_V2_WARNING"] = "1"
for name in ("sagemaker", "sagemaker.config", "botocore"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

from sagemaker import Session
from sagemaker.debugger import TensorBoardOutputConfig as TensorBoardOutputConfig
from sagemaker.estimator import EstimatorBase
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.local import LocalSession, data, image, local_session
from sagemaker.local.local_session import LocalSagemakerClient as LocalClient
from sagemaker.pytorch import PyTorch as PyTorch

from launcher.local_mode import compose_command, output_of

# Both are wrapped in telemetry, which sends the account's ID, waits without a timeout, and swallows Ctrl-C.
EstimatorBase.fit = EstimatorBase.fit.__wrapped__
LocalClient.create_training_job = LocalClient.create_training_job.__wrapped__
# The SDK accepts the plugin `docker compose` in version 2 only: aws/sagemaker-python-sdk #5739, #4137.
image._SageMakerContainer._get_compose_cmd_prefix = staticmethod(compose_command)
# The SDK mounts nothing below /root, even if that is the home folder.
data._SENSITIVE_SYSTEM_PATHS = [path for path in data._SENSITIVE_SYSTEM_PATHS if path != "/root"]


def make_session(boto_session: Any, container_root: str = "") -> Session:
    if not container_root:
        return Session(boto_session)
    session = LocalSession(boto_session)
    session.config = {"local": {"local_code": True, "container_root": container_root}}
    return session


def preview_request(estimator: Any, inputs: dict[str, str], job_name: str | None) -> dict[str, Any]:
    """Returns the CreateTrainingJob request of `fit`, without sending it and without uploading the code."""
    request = {}
    session = estimator.sagemaker_session
    clients = session.sagemaker_client, session.s3_resource
    session.sagemaker_client = SimpleNamespace(create_training_job=request.update)
    no_upload = SimpleNamespace(upload_file=lambda *_, **__: None)
    session.s3_resource = SimpleNamespace(Object=lambda *_: no_upload)
    estimator.fit(inputs, job_name=job_name, wait=False)
    session.sagemaker_client, session.s3_resource = clients
    return request


def show_log(session: Session, job_name: str) -> None:
    """Prints the log of a job until the job ends, whether or not it succeeds."""
    # ZeroDivisionError: the SDK computes the savings of a spot job that never trained.
    with contextlib.suppress(UnexpectedStatusException, ZeroDivisionError):
        session.logs_for_job(job_name, wait=True)


def fit_in_containers(estimator: Any, inputs: dict[str, str], checkpoint_path: str | None) -> None:
    """Trains in containers that share the checkpoint folder; raises RuntimeError if one fails."""
    Containers.checkpoint_path = checkpoint_path
    local_session._SageMakerContainer = Containers
    estimator.fit(inputs, wait=False)


class Containers(image._SageMakerContainer):
    """The SDK's containers, with the fixes that this project needs."""

    checkpoint_path: str | None = None
    succeeded = False

    def _create_docker_host(self, host: str, *args: Any) -> dict[str, Any]:
        service = super()._create_docker_host(host, *args)
        if self.checkpoint_path:
            folder = Path(self.checkpoint_path.removeprefix("file://")).expanduser().absolute()
            service["volumes"].append(image._Volume(str(folder), "/opt/ml/checkpoints").map)
        for volume in service["volumes"]:
            # Otherwise Docker creates it, owned by root.
            Path(volume.split(":")[0]).mkdir(parents=True, exist_ok=True)
        num_threads = max(1, os.cpu_count() // self.instance_count)  # more would compete for the cores
        # A container that lost its peer need not wait for SIGTERM: Compose stops all of them. And its user,
        # who may not exist in the image, needs a home for what torchvision downloads.
        defaults = [f"OMP_NUM_THREADS={num_threads}", "SIGTERM_WAIT_SECONDS=0", "HOME=/tmp"]
        variables = dict.fromkeys([*defaults, *service["environment"]])  # Compose rejects identical ones
        service["environment"] = [each.replace("$", "$$") for each in variables]
        # The owner of the files that the container writes; without root, Docker maps 0 to the user.
        is_rootless = "rootless" in output_of("docker", "info", "--format", "{{.SecurityOptions}}").stdout
        service["user"] = "0:0" if is_rootless else f"{os.getuid()}:{os.getgid()}"
        return service | {"container_name": host, "shm_size": "2gb", "tty": False}

    def train(self, *args: Any) -> str:
        image._stream_output = self.stream_output  # the SDK's own loses the last lines
        return super().train(*args)

    def stream_output(self, process: subprocess.Popen) -> None:
        compose = [*compose_command(), "-f", f"{self.container_root}/{image.DOCKER_COMPOSE_FILENAME}"]
        try:
            for line in process.stdout:
                print(line.decode(errors="replace"), end="", flush=True)
            if process.wait():
                states = output_of(*compose, "ps", "--all").stdout
                raise RuntimeError(f"Docker Compose or a container failed (see above). All containers:\n{states}")
            self.succeeded = True
        finally:  # before the SDK deletes folders to which running containers would still write
            output_of(*compose, "down")

    def retrieve_artifacts(self, *args: Any) -> str:
        # After a failure the SDK would overwrite the model of an earlier run with an empty one.
        return super().retrieve_artifacts(*args) if self.succeeded else ""
