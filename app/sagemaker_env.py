"""What SageMaker says in the environment of its containers: the hosts of a job for Lightning, its folders for train.py.

Without train.py: Trainer(plugins=[SageMakerEnvironment()] if SageMakerEnvironment.detect() else [], num_nodes=..., ...)
"""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment


class SageMakerEnvironment(LightningEnvironment):
    """The hosts of a SageMaker job, one container each. TimeoutError if one has not come up after `timeout` seconds."""

    def __init__(self, timeout: float = 300.0):
        super().__init__()
        self.hosts: list[str] = json.loads(os.environ["SM_HOSTS"])
        if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        deadline = time.monotonic() + timeout
        for host in self.hosts:
            while not can_resolve(host):  # DNS can take a while to know a host that has started
                if time.monotonic() > deadline:
                    raise TimeoutError(f"host {host} of {', '.join(self.hosts)} has not come up within {timeout:g} s")
                time.sleep(1)

    @staticmethod
    def detect() -> bool:
        return "SM_HOSTS" in os.environ and not TorchElasticEnvironment.detect()

    @property
    def main_address(self) -> str:
        return self.hosts[0]

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT", 29500))  # Lightning's random one would differ from host to host

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


# A restart of a job has the same name.
def job_name() -> str | None:
    return os.environ.get("TRAINING_JOB_NAME")


def checkpoint_dir() -> str | None:
    """The folder that survives the instances, as the output does not, if the job has a checkpoint path."""
    config = Path(os.environ.get("SM_INPUT_CONFIG_DIR", ""), "checkpointconfig.json")
    if config.is_file():
        return json.loads(config.read_text())["LocalPath"]
    path = Path(os.environ["SM_MODEL_DIR"]).with_name("checkpoints")  # in local mode, which has no such file
    return str(path) if path.is_dir() else None


def sagemaker_defaults() -> dict[str, str | int]:
    """Options of train.py for the job's hosts and folders, in SageMaker; none elsewhere."""
    if not in_sagemaker():
        return {}
    output_dir = os.environ["SM_OUTPUT_DATA_DIR"]
    options = {
        "checkpoint.dirpath": checkpoint_dir() or f"{output_dir}/checkpoints",
        "logger.save_dir": f"{output_dir}/tensorboard",
        "model_dir": os.environ["SM_MODEL_DIR"],
        "trainer.enable_progress_bar": "false",
        "trainer.num_nodes": len(json.loads(os.environ["SM_HOSTS"])),
    }
    if "SM_CHANNEL_TRAINING" in os.environ:
        options["data.data_dir"] = os.environ["SM_CHANNEL_TRAINING"]
    return options


# SageMaker's toolkit separates names and values, so that a value like -1e-3 would look like an option.
def join_values(args: list[str]) -> list[str]:
    names = args[::2]
    if in_sagemaker() and len(args) % 2 == 0 and all(name.startswith("--") and "=" not in name for name in names):
        return [f"{name}={value}" for name, value in zip(names, args[1::2], strict=True)]
    return args


def report_failure(reason: str) -> None:
    """Gives SageMaker the reason of a failure (it shows 1,024 characters), unless another process has been first."""
    if "SM_OUTPUT_DIR" in os.environ:
        with contextlib.suppress(OSError), open(Path(os.environ["SM_OUTPUT_DIR"], "failure"), "x") as file:
            file.write(reason)
