"""Trains with SageMaker's Python SDK: app/train.py, in containers of the image sagemaker-tutorial on this machine.

In one container, on all GPUs:  python run_sagemaker.py
In four, on the CPU:            python run_sagemaker.py --instance_type=local --instance_count=4 \\
                                    --hyperparams trainer.accelerator=cpu trainer.devices=1
What would be started:          python run_sagemaker.py --dry_run
"""

import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

DEFAULT_HYPERPARAMS = {
    "data": "CIFAR10DataModule",
    "optimizer": "Adam",
    "optimizer.lr": "0.001",
    "trainer.accelerator": "gpu",
    "trainer.devices": "-1",
    "trainer.max_epochs": "5",
    "logger.name": "tutorial",
}

APP_DIR = Path(__file__).resolve().parent / "app"
USE_CPU = "train on the CPU with --instance_type=local --hyperparams trainer.accelerator=cpu trainer.devices=1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    options = parse_options()
    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    try:
        hyperparams = merge_hyperparams(options.hyperparams)
        check_options(options, hyperparams)
        compose = [] if options.dry_run else check_machine(options)
        args = [f"--{key}={value}" for key, value in sorted(hyperparams.items())]  # in the toolkit's order
        command = [sys.executable, "train.py", *args, "--print_config"]
        check = subprocess.Popen(command, cwd=APP_DIR, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with tempfile.TemporaryDirectory(prefix="sagemaker-", ignore_cleanup_errors=True) as container_root:
            estimator = make_estimator(options, hyperparams, str(Path(container_root).resolve()))
            request = make_request(estimator, options)
            if check.wait():
                line = check.stderr.read().strip().splitlines()[-1]
                raise ValueError(f"--hyperparams: {line.removeprefix('train.py: error: ')}")
            if not options.dry_run:
                return train_locally(estimator, options, compose)
        words = [word for key, value in sorted(hyperparams.items()) for word in (f"--{key}", value)]
        print(json.dumps(request, indent=2))
        print(f"\nEach container runs:\npython -- train.py {shlex.join(words)}")
    except ValueError as error:
        exit_with(error, 2)
    except RuntimeError as error:
        exit_with(error, 1)
    except Interrupted as error:
        (signum,) = error.args
        exit_with(f"stopped by {signal.Signals(signum).name}", 128 + signum)


def parse_options() -> Namespace:
    parser = Parser(prog="run_sagemaker.py", usage="python run_sagemaker.py [options]", allow_abbrev=False)
    parser.description = "Trains with app/train.py in SageMaker's containers on this machine."
    parser.add_argument(
        "--image_uri", default="sagemaker-tutorial", help="Image that ./docker/build-image.sh has made."
    )
    parser.add_argument("--role", type=str | None, help="ARN of SageMaker's execution role; not needed locally.")
    kinds = "local_gpu for a container with all GPUs of this machine, local for containers without."
    parser.add_argument("--instance_type", default="local_gpu", help=kinds)
    parser.add_argument("--instance_count", type=int, default=1, help="Number of containers, which train one model.")
    parser.add_argument("--input_path", default=".cache", help="Folder with cifar-10-python.tar.gz.")
    parser.add_argument("--output_path", default="output", help="Folder for model.tar.gz and output.tar.gz.")
    hyperparams = parser.add_argument("--hyperparams", nargs="*", default=[], metavar="KEY=VALUE")
    defaults = " ".join(f"{key}={value}" for key, value in DEFAULT_HYPERPARAMS.items())
    hyperparams.help = f"Options of app/train.py; they override the defaults, {defaults}. key=null removes one."
    parser.add_argument("--dry_run", action=ActionYesNo, help="Check and print all that would be started, and end.")
    return parser.parse_args()


class Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        exit_with(f"{message}; --help explains all options", 2)


class Interrupted(Exception):
    """Takes the place of KeyboardInterrupt, which the SDK's `finally: return` would swallow."""


def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # the containers are being removed
    raise Interrupted(signum)


def exit_with(error: Exception | str, code: int) -> NoReturn:
    message = str(error) if code == 1 else " ".join(str(error).split())
    print(f"run_sagemaker.py: error: {message}", file=sys.stderr)
    sys.exit(code)


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs a command to its end, whatever its exit code, and keeps what it prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def merge_hyperparams(items: list[str]) -> dict[str, str]:
    """DEFAULT_HYPERPARAMS, overridden by `key=value` items."""
    hyperparams = dict(DEFAULT_HYPERPARAMS)
    for item in items:
        key, separator, value = item.partition("=")
        if not (key and separator):
            raise ValueError(f"--hyperparams {item}: must be key=value, such as trainer.max_epochs=1")
        hyperparams[key] = value
    return {key: value for key, value in hyperparams.items() if value != "null"}


def check_options(options: Namespace, hyperparams: dict[str, str]) -> None:
    """Raises ValueError for what is wrong whatever the machine."""
    if options.instance_type not in ("local", "local_gpu"):
        raise ValueError(f"--instance_type={options.instance_type}: must be local or local_gpu")
    if options.instance_count < 1:
        raise ValueError(f"--instance_count={options.instance_count}: must be 1 or more")
    if options.instance_type == "local_gpu" and options.instance_count > 1:
        raise ValueError(f"--instance_count={options.instance_count}: one container takes all GPUs; or {USE_CPU}")
    if options.instance_type == "local" and hyperparams.get("trainer.accelerator") == "gpu":
        raise ValueError(f"--instance_type=local: has no GPU for trainer.accelerator=gpu; {USE_CPU}")
    archive = Path(options.input_path, "cifar-10-python.tar.gz")
    if "://" not in options.input_path:
        if not archive.parent.is_dir():
            raise ValueError(f"--input_path={options.input_path}: is no folder; README.md says how to make it")
        if hyperparams.get("data") == "CIFAR10DataModule" and not archive.is_file():
            raise ValueError(f"--input_path={options.input_path}: has no {archive.name}; README.md says how to get it")


def check_machine(options: Namespace) -> list[str]:
    """Raises ValueError for what is missing on this machine; returns the command of Docker Compose."""
    has_gpu = shutil.which("nvidia-smi") and "GPU 0" in run("nvidia-smi", "-L").stdout
    if options.instance_type == "local_gpu" and not has_gpu:
        raise ValueError(f"--instance_type=local_gpu: nvidia-smi finds no GPU; {USE_CPU}")
    if not shutil.which("docker"):
        raise ValueError("there is no `docker` on this machine; see https://docs.docker.com/engine/install/")
    version = run("docker", "version")
    if version.returncode:
        raise ValueError(f"Docker is not running, or not for you: {version.stdout.strip().splitlines()[-1]}")
    has_plugin = run("docker", "compose", "version").returncode == 0
    if not (has_plugin or shutil.which("docker-compose")):
        raise ValueError("there is no Docker Compose on this machine; see https://docs.docker.com/compose/install/")
    if "/" not in options.image_uri and run("docker", "image", "inspect", options.image_uri).returncode:
        raise ValueError(f"--image_uri={options.image_uri}: not built yet; build it with ./docker/build-image.sh")
    return ["docker", "compose"] if has_plugin else ["docker-compose"]


def as_uri(path: str) -> str:
    return path if "://" in path else f"file://{Path(path).absolute()}"


def make_estimator(options: Namespace, hyperparams: dict[str, str], container_root: str) -> Any:
    """The SDK's PyTorch Estimator, which keeps its temporary files in `container_root`."""
    os.environ["SAGEMAKER_SUPPRESS_V2_WARNING"] = "1"
    if "://" not in options.input_path + options.output_path:
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # no need to wait there for credentials
    for name in ("sagemaker", "sagemaker.config"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    excepthook = sys.excepthook
    import boto3  # and the SDK take seconds to import
    from sagemaker.config import load_sagemaker_config
    from sagemaker.local import LocalSession
    from sagemaker.pytorch import PyTorch

    sys.excepthook = excepthook  # which the SDK has replaced
    config = {"SchemaVersion": "1.0"} | load_sagemaker_config()
    modules = config.setdefault("SageMaker", {}).setdefault("PythonSDK", {}).setdefault("Modules", {})
    modules["TelemetryOptOut"] = True
    region = boto3.Session().region_name or os.environ.get("AWS_REGION", "us-east-1")
    session = LocalSession(boto3.Session(region_name=region), sagemaker_config=config)
    session.config = {"local": {"local_code": True, "container_root": container_root}}
    return PyTorch(
        entry_point="train.py",
        source_dir=str(APP_DIR),
        **{name: options[name] for name in ("image_uri", "instance_type", "instance_count")},
        role=options.role or "arn:aws:iam::000000000000:role/not-needed-locally",
        output_path=as_uri(options.output_path),
        hyperparameters=dict(hyperparams),  # to which the SDK adds its own
        container_log_level=logging.WARNING,
        debugger_hook_config=False,
        disable_profiler=True,
        sagemaker_session=session,
    )


def make_request(estimator: Any, options: Namespace) -> dict[str, Any]:
    """The SDK's CreateTrainingJob request, without sending it; ValueError if it has too many hyperparameters."""
    request = {}
    session = estimator.sagemaker_session
    client, session.sagemaker_client = session.sagemaker_client, SimpleNamespace(create_training_job=request.update)
    estimator.fit({"training": as_uri(options.input_path)}, wait=False)
    session.sagemaker_client = client
    if (num_hyperparams := len(request["HyperParameters"])) > 100:
        raise ValueError(f"--hyperparams: {num_hyperparams}, the SDK's own included; SageMaker allows 100")
    return request


def train_locally(estimator: Any, options: Namespace, compose: list[str]) -> None:
    """Trains in containers of this machine, and removes them whatever happens.

    Raises:
        RuntimeError: A container failed; the message names it and repeats its last lines.
    """
    from sagemaker.local import image, local_session

    rootless = "rootless" in run("docker", "info", "--format", "{{.SecurityOptions}}").stdout
    user = {} if rootless else {"user": f"{os.getuid()}:{os.getgid()}"}  # to whom the files will belong

    class Containers(image._SageMakerContainer):
        """Mends what the SDK's own class does wrong for us."""

        succeeded = False

        @staticmethod
        def _get_compose_cmd_prefix() -> list[str]:
            return list(compose)  # the SDK knows version 2 only: aws/sagemaker-python-sdk #5739, #4137

        def _compose(self, detached: bool = False) -> list[str]:
            return [*super()._compose(detached), "--no-color"]

        def _create_docker_host(self, host: str, *args: Any) -> dict[str, Any]:
            service = super()._create_docker_host(host, *args)
            for volume in service["volumes"]:
                Path(volume.split(":")[0]).mkdir(parents=True, exist_ok=True)  # Docker would do it, as root
            num_threads = max(1, os.cpu_count() // self.instance_count)  # more than there are cores wait for each other
            service["environment"] = [*service["environment"], f"OMP_NUM_THREADS={num_threads}"]
            return service | user | {"container_name": host, "shm_size": "2gb", "tty": False}

        def train(self, *args: Any) -> str:
            image._stream_output = self.stream_output  # the SDK's own loses the last lines
            try:
                return super().train(*args)
            finally:
                run(*compose, "-f", f"{self.container_root}/{image.DOCKER_COMPOSE_FILENAME}", "down")

        def stream_output(self, process: subprocess.Popen) -> None:
            """Prints the containers' log, and what Compose itself says only if there is no container to blame."""
            remarks = []
            for line in process.stdout:
                text = line.decode(errors="replace")
                if text.startswith(image.CONTAINER_PREFIX):
                    print(text, end="", flush=True)
                else:
                    remarks.append(text)
            if process.wait():
                raise RuntimeError(self.find_failure() or f"Docker Compose failed:\n{''.join(remarks[-10:])}")
            self.succeeded = True

        def find_failure(self) -> str:
            """Name, exit code and last lines of the container that ended first without success, if there is one."""
            state = "{{.State.FinishedAt}} {{.State.ExitCode}} {{.Name}}"
            states = run("docker", "inspect", "--format", state, *self.hosts).stdout
            failures = re.findall(r"^(\S+)Z ([1-9]\d*) /(\S+)$", states, re.MULTILINE)
            if not failures:
                return ""
            _, code, host = min(failures)
            log = run("docker", "logs", "--tail", "10", host).stdout
            return f"container {host} failed with exit code {code}; its last lines:\n{log}"

        def retrieve_artifacts(self, *args: Any) -> str:
            # After a failure the SDK would overwrite the model of an earlier run with an empty one.
            return super().retrieve_artifacts(*args) if self.succeeded else ""

    local_session._SageMakerContainer = Containers
    estimator.fit({"training": as_uri(options.input_path)}, wait=False)
    model = estimator.model_data.removeprefix("file://")
    print(f"\nmodel   {model}\noutput  {model.replace('model.tar', 'output.tar')} (checkpoints, TensorBoard logs)")


if __name__ == "__main__":
    main()
