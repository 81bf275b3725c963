"""SageMaker's training environment: the hosts of a job for Lightning, its folders, and its failure file.

This file needs only the standard library; copy it into other projects:

    from sagemaker_env import hosts, in_sagemaker, set_up_hosts

    if in_sagemaker():
        set_up_hosts()
    trainer = Trainer(num_nodes=len(hosts()) if in_sagemaker() else 1, ...)

Outside SageMaker, `set_up_hosts`, `hosts`, `model_dir` and `output_dir` raise KeyError, `job_name` and
`channel_dir` return None, and `report_failure` does nothing.
"""

import contextlib
import json
import os
from pathlib import Path

# Tags at the start of the failure file, which docker/entrypoint.py reads.
PEER_LOST = "PeerLost"
STOPPED = "Stopped"


def set_up_hosts() -> None:
    """Sets the environment variables by which Lightning, NCCL and gloo find the other hosts.

    Those that are already set are kept. torch itself waits for a host whose name does not resolve yet.
    """
    os.environ.setdefault("NODE_RANK", str(hosts().index(os.environ["SM_CURRENT_HOST"])))
    os.environ.setdefault("MASTER_ADDR", hosts()[0])
    os.environ.setdefault("MASTER_PORT", "29500")  # Lightning's random port would differ from host to host
    if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


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
    """Writes the failure file unless another process has. SageMaker shows its first 1,024 characters."""
    if "SM_OUTPUT_DIR" in os.environ:
        with contextlib.suppress(OSError), open(Path(os.environ["SM_OUTPUT_DIR"], "failure"), "x") as file:
            file.write(f"{tag}: {reason}" if tag else reason)
