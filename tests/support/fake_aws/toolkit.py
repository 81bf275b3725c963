"""A simulation of SageMaker's containers: runs its real toolkit once per host, with hosts at 127.0.0.x.

It does not imitate the limits of memory and CPU, nor the isolation of the network and of the file system.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from runs.programs import ENVIRONMENT, ROOT

IMAGE_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "LOGNAME": "sagemaker"}

GROUP = "homogeneousCluster"  # as SageMaker names the instances of a job without instance groups


class Host:
    """A container as SageMaker starts it: folders as in /opt/ml, the job's configuration, and the command `train`.

    Args:
        base_dir: The folder that replaces /opt/ml.
        name: The address of this host.
        hosts: The addresses of all hosts of the job.
        hyperparameters: The hyperparameters of the job.
        data_dir: The files of the channel `training`, if the job has one.
        interface: The name of the network interface.
        project: A folder with files of a custom project, which are copied into app/.
        checkpoint_dir: The checkpoint folder, if the job has a checkpoint path.
        instance_type: The instance type of all hosts.
    """

    process: subprocess.Popen | None = None  # None until start()

    def __init__(
        self,
        base_dir: Path,
        name: str,
        hosts: list[str],
        hyperparameters: dict[str, str],
        data_dir: Path | None = None,
        interface: str = "lo",
        project: Path | None = None,
        checkpoint_dir: Path | None = None,
        instance_type: str = "ml.c5.xlarge",
    ):
        self.name = name
        self.base_dir = base_dir
        self.model_dir = base_dir / "model"
        self.output_dir = base_dir / "output"
        config_dir = base_dir / "input/config"
        for directory in (config_dir, base_dir / "input/data", self.model_dir, self.output_dir / "data"):
            directory.mkdir(parents=True)
        if hyperparameters.get("sagemaker_submit_directory", "").startswith("s3://"):  # the toolkit downloads the code
            (base_dir / "code").mkdir()
        else:
            for source in (ROOT / "app", *([project] if project else [])):
                no_caches = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, base_dir / "code", ignore=no_caches, dirs_exist_ok=True)
        if data_dir:
            shutil.copytree(data_dir, base_dir / "input/data/training")
        configs = {
            "hyperparameters": {
                key: json.dumps(value) for key, value in {"sagemaker_program": "train.py", **hyperparameters}.items()
            },
            "resourceconfig": {
                "current_host": name,
                "current_instance_type": instance_type,
                "current_group_name": GROUP,
                "hosts": hosts,
                "instance_groups": [{"instance_group_name": GROUP, "instance_type": instance_type, "hosts": hosts}],
                "network_interface_name": interface,
            },
            "inputdataconfig": {"training": {"TrainingInputMode": "File"}} if data_dir else {},
        }
        if checkpoint_dir:
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            configs["checkpointconfig"] = {"LocalPath": str(checkpoint_dir)}
        for config_name, content in configs.items():
            (config_dir / f"{config_name}.json").write_text(json.dumps(content))

    def start(self, **environment: str) -> None:
        """Runs `train` with the image's entrypoint, as the container does, but with a shorter wait after SIGTERM."""
        names = ("HOME", "TMPDIR", "PYTHONPATH", "OMP_NUM_THREADS")  # everything that it inherits
        variables = {name: ENVIRONMENT[name] for name in names if name in ENVIRONMENT}
        variables |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SIGTERM_WAIT_SECONDS": "2"}
        variables |= IMAGE_ENVIRONMENT | {"SAGEMAKER_BASE_DIR": str(self.base_dir)} | of_container(environment)
        # Hyperparameters may point into /opt/ml, which here is a different folder for each host.
        hyperparameters = self.base_dir / "input/config/hyperparameters.json"
        hyperparameters.write_text(hyperparameters.read_text().replace('"/opt/ml', f'"{self.base_dir}'))
        self.log_path = self.base_dir / "log"
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "docker/entrypoint.py", "train"],
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = 120) -> int:
        """Waits until the host has finished and returns its exit code."""
        return self.process.wait(timeout)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def failure(self) -> str:
        """The failure reason that SageMaker would show."""
        return (self.output_dir / "failure").read_text()

    def kill(self) -> None:
        """Kills all remaining processes of the host at once."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def of_container(variables: dict[str, str]) -> dict[str, str]:
    """Converts AWS variables of a user to those of a container, where the region has a different name."""
    region = {"AWS_REGION": variables["AWS_DEFAULT_REGION"]} if "AWS_DEFAULT_REGION" in variables else {}
    return {name: value for name, value in variables.items() if name != "AWS_DEFAULT_REGION"} | region


def sagemaker_environment(base_dir: Path, **variables: str) -> dict[str, str]:
    """Returns the environment that the toolkit gives to train.py in a job of one host."""
    paths = {"SM_MODEL_DIR": "model", "SM_OUTPUT_DIR": "output", "SM_OUTPUT_DATA_DIR": "output/data"}
    paths |= {"SM_CHANNEL_TRAINING": "data", "SM_INPUT_CONFIG_DIR": "input/config"}
    hosts = {"SM_HOSTS": '["127.0.0.1"]', "SM_CURRENT_HOST": "127.0.0.1"}
    (base_dir / "output").mkdir()
    return {**ENVIRONMENT, **{name: str(base_dir / path) for name, path in paths.items()}, **hosts, **variables}


def free_port() -> str:
    """Returns a free port below the range that the kernel assigns to clients, where a client could occupy it first."""
    for port in random.sample(range(20000, 30000), 100):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("", port))
            return str(port)
    raise OSError("no free port between 20000 and 30000")
