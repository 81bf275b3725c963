"""SageMaker's containers without containers: its real toolkit, started once per host, hosts on 127.0.0.x."""

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

from programs import ENVIRONMENT, ROOT


class Host:
    """What SageMaker gives a container: folders as in /opt/ml, the job's configuration, and the command `train`.

    `project` is a folder whose files somebody has copied into app/.
    """

    def __init__(
        self,
        base_dir: Path,
        name: str,
        hosts: list[str],
        hyperparameters: dict[str, str],
        data_dir: Path | None = None,
        interface: str = "lo",
        project: Path | None = None,
    ):
        self.name = name
        self.base_dir = base_dir
        self.model_dir = base_dir / "model"
        self.output_dir = base_dir / "output"
        config_dir = base_dir / "input/config"
        for directory in (config_dir, base_dir / "input/data", self.model_dir, self.output_dir / "data"):
            directory.mkdir(parents=True)
        if hyperparameters.get("sagemaker_submit_directory", "").startswith("s3://"):  # where it gets the code from
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
            "resourceconfig": {"current_host": name, "hosts": hosts, "network_interface_name": interface},
            "inputdataconfig": {"training": {"TrainingInputMode": "File"}} if data_dir else {},
        }
        for config_name, content in configs.items():
            (config_dir / f"{config_name}.json").write_text(json.dumps(content))

    def start(self, **environment: str) -> None:
        """Runs `train` behind the image's entrypoint, as the container would."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.log_path = self.base_dir / "log"
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "docker/entrypoint.py", "train"],
                env={**ENVIRONMENT, "PATH": path, "SAGEMAKER_BASE_DIR": str(self.base_dir), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = 120) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def failure(self) -> str:
        """What SageMaker would show as the reason of the failure."""
        return (self.output_dir / "failure").read_text()

    def kill(self) -> None:
        """Ends all processes of the host at once, if there are any left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> str:
    """One below those that the kernel gives to clients: one that waits for a host might be given the host's own."""
    for port in random.sample(range(20000, 30000), 100):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("", port))
            return str(port)
    raise OSError("no free port between 20000 and 30000")
