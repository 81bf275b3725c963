"""Trains with the SageMaker Python SDK: runs app/train.py in containers, on this machine or in the cloud.

In one container, on all GPUs:  python run_sagemaker.py
In four, on the CPU:            python run_sagemaker.py --instance_type=local --instance_count=4 \\
                                    --hyperparams trainer.accelerator=cpu trainer.devices=1
On two cloud instances:         python run_sagemaker.py --instance_type=ml.g4dn.12xlarge --instance_count=2 \\
                                    --image_uri=$(docker/image-uri.sh) --role=ARN --input_path=S3 --output_path=S3
"""

import logging
import os
import re
import shutil
import tempfile
from argparse import Namespace
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from launcher.account import create_session
from launcher.checks import check_options, check_request, start_check, wait_for_check, warn_of_missing_packages
from launcher.command_line import BOOLEAN, Parser, channel, exit_on_signals, key_value, one_line_errors, yaml_key_value
from launcher.local_mode import as_uri, check_machine

# Sent with every job, so that a job whose GPU does not work fails instead of training on the CPU.
DEVICE_HYPERPARAMS = {"trainer.accelerator": "gpu", "trainer.devices": "-1"}
# Not sent with config=FILE, because they would override the values of that file.
DEFAULT_HYPERPARAMS = {
    "data": "CIFAR10DataModule",
    "optimizer": "Adam",
    "optimizer.lr": "0.001",
    "trainer.max_epochs": "5",
    "logger.name": "tutorial",
}
METRICS = ["train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "images_per_second"]
APP_DIR = Path(__file__).resolve().parent / "app"
# These may contain data, results or credentials.
NOT_CODE = shutil.ignore_patterns(".*", "__pycache__", "logs", "output", "*.ckpt")


def read_options(args: list[str] | None = None) -> Namespace:
    """Parses the command line.

    Adds `is_local`, `channels` (name to path), `hyperparams` (as sent), and `log_uri`.
    """
    parser = Parser(usage=f"python run_sagemaker.py [options]\n\n{__doc__}", allow_abbrev=False)
    key_values = {"nargs": "*", "action": "extend", "default": [], "type": key_value, "metavar": "NAME=value"}

    group = parser.add_argument_group
    job = group("job", "Example: --job_name=my-job --hyperparams data.batch_size=128")
    add = job.add_argument
    add("--hyperparams", **key_values, help="Options of train.py without dashes; NAME=null removes a default.")
    add("--job_name", help="Name of the job in the cloud (default: image name and timestamp).")
    add("--wait", **BOOLEAN, default=True, help="Stream a cloud job's log; --wait=false returns at once.")
    add = job.add_mutually_exclusive_group().add_argument
    add("--attach", metavar="JOB", help="Stream the log of a cloud job from its start to its end.")
    add("--stop", metavar="JOB", help="Stop a job in the cloud. Its checkpoints in S3 are kept.")
    add("--dry_run", **BOOLEAN, default=False, help="Check options and print the request; send nothing.")

    add = group("data", "Example: --input_path train=s3://bucket/train val=s3://...").add_argument
    paths = {"nargs": "+", "action": "extend", "default": [], "type": channel, "metavar": "[NAME=]PATH"}
    add("--input_path", **paths, help="Channels: local folders (default: training=.cache) or S3 URIs.")
    add("--output_path", default="output", help="Results: a local folder (default: output), or an S3 URI.")
    add("--checkpoint_path", help="Checkpoints: a local folder or an S3 URI; a job that is run again resumes.")

    add = group("containers", "Example: --instance_type=local --instance_count=4").add_argument
    add("--instance_type", default="local_gpu", help="ml.*, or local or local_gpu (default: local_gpu).")
    add("--instance_count", type=PositiveInt, default=1, help="Number of instances or containers (default: 1).")
    add("--image_uri", default="sagemaker-tutorial", help="Name, or URI in ECR (default: sagemaker-tutorial).")
    add("--environment", **key_values, help="Environment variables; no secrets: others can read them.")

    add = group("cloud", "Example: --spot_instances --max_wait=172800 --max_run=86400").add_argument
    add("--role", help="ARN of the SageMaker execution role; required in the cloud.")
    add("--region", help="AWS region of the job (default: AWS_REGION, AWS_DEFAULT_REGION, or the profile's).")
    add("--profile", help="Named profile of your AWS configuration (default: AWS_PROFILE).")
    add("--max_run", type=int, default=86400, help="Seconds after which the job is stopped (default: 86400).")
    add("--spot_instances", **BOOLEAN, default=False, help="Use spot instances; set --checkpoint_path too.")
    add("--max_wait", type=int, help="Maximum seconds of waiting plus training (default: --max_run).")
    add("--max_retry", type=int, help="Retries after an internal error, from 1 to 30 (default: none).")
    add("--estimator", **key_values | {"type": yaml_key_value}, help="Other Estimator arguments, as YAML.")

    add = group("monitoring", "Example: --metrics train_loss val_acc").add_argument
    add("--metrics", nargs="*", action="extend", help="Metrics in CloudWatch (default: losses, accuracies, speed).")

    options = parser.parse_args(args)
    options.metrics = METRICS if options.metrics is None else options.metrics
    options.is_local = options.instance_type in ("local", "local_gpu") and not (options.attach or options.stop)
    options.channels = dict(options.input_path) or {"training": ".cache"}
    if len(options.channels) < len(options.input_path):
        parser.error("--input_path: each channel needs a name of its own, as in train=s3://... val=s3://...")
    given = parser.last_values(options.hyperparams)
    defaults = DEVICE_HYPERPARAMS | ({} if "config" in given else DEFAULT_HYPERPARAMS)
    removed = [name for name, value in given.items() if value == "null" and name in defaults]
    options.hyperparams = {name: value for name, value in (defaults | given).items() if name not in removed}
    save_dir = options.hyperparams.get("logger.save_dir", "")
    options.log_uri = save_dir if save_dir.startswith("s3://") else None
    if options.log_uri:
        # SageMaker copies this folder to S3 during the job.
        options.hyperparams["logger.save_dir"] = "/opt/ml/output/tensorboard"
    return options


def main() -> None:
    exit_on_signals()
    with one_line_errors():
        launch(read_options())


def launch(options: Namespace) -> None:
    if options.attach or options.stop:
        return attach_or_stop(options, create_session(options))
    check_options(options)
    session = create_session(options)
    if options.is_local and not options.dry_run:
        check_machine(options)
    if not options.dry_run and "s3://" in f"{options.channels} {options.output_path}":
        # Without credentials, stop before anything is uploaded or trained.
        session.client("sts").get_caller_identity()
    with tempfile.TemporaryDirectory(prefix="sagemaker-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with start_check(options, APP_DIR) as check:
            estimator = make_estimator(options, session, folder)
            warn_of_missing_packages(APP_DIR)
            wait_for_check(check)
        if options.is_local and not options.dry_run:
            return train_locally(estimator, options)
        check_request(estimator, inputs(options), options)
        if not options.dry_run:
            estimator.fit(inputs(options), job_name=options.job_name, wait=False)
            follow_job(estimator.sagemaker_session, estimator.latest_training_job.name, options)


def make_estimator(options: Namespace, session: Any, folder: Path) -> Any:
    """Returns SageMaker's PyTorch Estimator.

    Args:
        options: What `read_options` returns.
        session: A boto3 session.
        folder: Temporary folder of this launch, also for the containers on this machine.

    Raises ValueError for an unknown or unsupported name in `--estimator`.
    """
    if options.dry_run or (options.is_local and "s3://" not in f"{options.channels} {options.output_path}"):
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # no credentials are needed
    # The SDK takes seconds to import.
    from launcher.sagemaker_sdk import PyTorch, TensorBoardOutputConfig, make_session

    in_s3 = "://" in (options.checkpoint_path or "").removeprefix("file://")
    # Finds `name=value`, but not `other/name=value`.
    metrics = [{"Name": name, "Regex": rf"(?:^|\s){re.escape(name)}=([-+.\deE]+)"} for name in options.metrics]
    log_config = TensorBoardOutputConfig(as_uri(options.log_uri)) if options.log_uri else None
    arguments = {
        "entry_point": "train.py",
        "source_dir": shutil.copytree(APP_DIR, str(folder / "app"), ignore=NOT_CODE),
        "image_uri": options.image_uri,
        "role": options.role or "arn:aws:iam::000000000000:role/not-needed-locally",
        "instance_type": options.instance_type,
        "instance_count": options.instance_count,
        "output_path": as_uri(options.output_path),
        "checkpoint_s3_uri": as_uri(options.checkpoint_path, "/") if in_s3 else None,
        "hyperparameters": dict(options.hyperparams),  # to which the SDK adds its own
        "metric_definitions": metrics,
        "environment": dict(options.environment),
        "max_run": options.max_run,
        "use_spot_instances": options.spot_instances,
        "max_wait": options.max_wait or (options.max_run if options.spot_instances else None),
        "max_retry_attempts": options.max_retry,
        "tensorboard_output_config": log_config,
        "sagemaker_session": make_session(session, str(folder) if options.is_local else ""),
        # A separate folder for each launch: the code is uploaded before SageMaker can reject a job name that
        # is already in use.
        "code_location": None if options.is_local else f"{as_uri(options.output_path)}/{folder.name}",
        "container_log_level": logging.WARNING,
        "debugger_hook_config": False,
        "disable_profiler": True,
    }
    known = {name for base in PyTorch.__mro__ for name in signature(base.__init__).parameters}
    for name, _ in options.estimator:
        # The SDK ignores unknown arguments, and needs instance_groups as objects.
        if name not in known - {"instance_groups"}:
            raise ValueError(f"--estimator {name}: unknown or unsupported argument of the Estimator")
    return PyTorch(**arguments | dict(options.estimator))


def inputs(options: Namespace) -> dict[str, str]:
    """Returns the URIs of the channels.

    In a container, the channel NAME is the folder /opt/ml/input/data/NAME, and SM_CHANNEL_<NAME> contains its
    path.
    """
    return {name: as_uri(path, "/") for name, path in options.channels.items()}


def train_locally(estimator: Any, options: Namespace) -> None:
    from launcher.sagemaker_sdk import fit_in_containers

    with one_line_errors(code=1):
        fit_in_containers(estimator, inputs(options), options.checkpoint_path)
    model = estimator.model_data.removeprefix("file://")
    output = model.replace("model.tar", "output.tar")
    print(f"\nmodel        {model}\ncheckpoints  {options.checkpoint_path or output}\nTensorBoard  {output}")


def attach_or_stop(options: Namespace, session: Any) -> None:
    if options.stop:
        session.client("sagemaker").stop_training_job(TrainingJobName=options.stop)
        print(f"stopping {options.stop}; --attach={options.stop} shows how it ends")
    else:
        from launcher.sagemaker_sdk import make_session

        # Fails if there is no such job.
        session.client("sagemaker").describe_training_job(TrainingJobName=options.attach)
        follow_job(make_session(session), options.attach, options)


def follow_job(session: Any, job_name: str, options: Namespace) -> None:
    """Prints how to attach to a job; if asked to wait, shows its log until it ends, and its results."""
    from launcher.sagemaker_sdk import show_log

    command = f"python run_sagemaker.py --region={session.boto_region_name}"
    command += f" --profile={options.profile}" if options.profile else ""
    print(f"Ending this command does not stop job {job_name}. To follow or stop it:")
    print(f"  {command} --attach={job_name}\n  {command} --stop={job_name}", flush=True)
    if options.wait:
        with one_line_errors(code=1):
            show_log(session, job_name)
            print_results(session.describe_training_job(job_name))


def print_results(job: dict[str, Any]) -> None:
    job_name, status = job["TrainingJobName"], job["TrainingJobStatus"]
    if status != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise RuntimeError(f"job {job_name} {status.lower()}: {' '.join(reason.split())}")
    model = job["ModelArtifacts"]["S3ModelArtifacts"]
    checkpoints = job.get("CheckpointConfig", {}).get("S3Uri") or model.replace("model.tar", "output.tar")
    print(f"\nmodel        {model}\ncheckpoints  {checkpoints}")


if __name__ == "__main__":
    main()
