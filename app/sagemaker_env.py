"""SageMaker's training environment: the hosts of a job for Lightning, its folders, and its failure file.

This file needs only Lightning; copy it into other projects:

    from sagemaker_env import SageMakerEnvironment

    plugins = [SageMakerEnvironment()] if SageMakerEnvironment.detect() else []
    trainer = Trainer(plugins=plugins, num_nodes=..., devices=...)
"""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

# Tags at the start of the failure file, which docker/entrypoint.py reads.
PEER_LOST = "PeerLost"
STOPPED = "Stopped"


class SageMakerEnvironment(LightningEnvironment):
    """The hosts of a SageMaker training job, one container each.

    Args:
        timeout: Seconds to wait for the names of all hosts to resolve.

    Raises:
        TimeoutError: If the name of a host does not resolve in that time.
    """

    def __init__(self, timeout: float = 300.0):
        super().__init__()
        self.hosts = hosts()
        if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        deadline = time.monotonic() + timeout
        for host in self.hosts:
            while not can_resolve(host):  # DNS can lag behind the start of a host
                if time.monotonic() > deadline:
                    raise TimeoutError(f"host {host} of {', '.join(self.hosts)} did not resolve within {timeout:g} s")
                time.sleep(1)

    @staticmethod
    def detect() -> bool:
        return in_sagemaker() and not TorchElasticEnvironment.detect()

    @property
    def main_address(self) -> str:
        return self.hosts[0]

    @property
    def main_port(self) -> int:
        # Lightning's random port would differ from host to host.
        return int(os.environ.get("MASTER_PORT", 29500))

    def node_rank(self) -> int:
        return self.hosts.index(os.environ["SM_CURRENT_HOST"])

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        if num_nodes != len(self.hosts):
            raise ValueError(f"--trainer.num_nodes={num_nodes}: the SageMaker job has {len(self.hosts)} hosts")


def can_resolve(host: str) -> bool:
    try:
        return bool(socket.gethostbyname(host))
    except OSError:
        return False


def in_sagemaker() -> bool:
    return "SM_HOSTS" in os.environ


def hosts() -> list[str]:
    """Returns the names of the hosts of the job, in the order of their node ranks."""
    return json.loads(os.environ["SM_HOSTS"])


def job_name() -> str | None:
    """Returns the name of the job, which stays the same when SageMaker restarts it."""
    return os.environ.get("TRAINING_JOB_NAME")


def channel_dir(name: str) -> str | None:
    """Returns the folder of an input channel, if the job has it."""
    return os.environ.get(f"SM_CHANNEL_{name.upper()}")


def model_dir() -> str:
    """Returns the folder that SageMaker uploads as model.tar.gz."""
    return os.environ["SM_MODEL_DIR"]


def output_dir() -> str:
    """Returns the folder that SageMaker uploads as output.tar.gz."""
    return os.environ["SM_OUTPUT_DATA_DIR"]


def checkpoint_dir() -> str | None:
    """Returns the folder that SageMaker copies to S3 during the job, if the job has a checkpoint path."""
    config = Path(os.environ.get("SM_INPUT_CONFIG_DIR", ""), "checkpointconfig.json")
    if config.is_file():
        return json.loads(config.read_text()).get("LocalPath", "/opt/ml/checkpoints")
    path = Path(model_dir()).with_name("checkpoints")
    # Local mode has no such file.
    is_local = os.environ.get("SM_CURRENT_INSTANCE_TYPE", "local").startswith("local")
    return str(path) if is_local and path.is_dir() else None


def report_failure(reason: str, tag: str | None = None) -> None:
    """Writes the failure file, whose first 1,024 characters SageMaker shows, if no other process has written it."""
    if "SM_OUTPUT_DIR" in os.environ:
        with contextlib.suppress(OSError), open(Path(os.environ["SM_OUTPUT_DIR"], "failure"), "x") as file:
            file.write(f"{tag}: {reason}" if tag else reason)
