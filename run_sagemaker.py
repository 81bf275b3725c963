"""Trains with SageMaker's Python SDK: app/train.py, in containers of one image, on this machine or in the cloud.

In one container, on all GPUs:  python run_sagemaker.py
In four, on the CPU:            python run_sagemaker.py --instance_type=local --instance_count=4 \\
                                    --hyperparams trainer.accelerator=cpu trainer.devices=1
On two cloud instances:         python run_sagemaker.py --instance_type=ml.g4dn.12xlarge --instance_count=2 \\
                                    --image_uri=$(docker/image-uri.sh) --role=ARN --input_path=S3 --output_path=S3
What would be started:          the same with --dry_run
"""
# ruff: noqa: RUF009 - option() makes a field.

import json
import logging
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.account import check_account
from launcher.checks import check_options, end_check, estimator_arguments, start_check
from launcher.command_line import errors_in_one_line, option, parse_options, stop_at_signals
from launcher.local_mode import check_machine
from launcher.request import check_request

DEFAULT_HYPERPARAMS = {
    "data": "CIFAR10DataModule",
    "optimizer": "Adam",
    "optimizer.lr": "0.001",
    "trainer.accelerator": "gpu",
    "trainer.devices": "-1",
    "trainer.max_epochs": "5",
    "logger.name": "tutorial",
}
METRICS = ["train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "images_per_second"]
ARCHIVE = "cifar-10-python.tar.gz"
APP_DIR = Path(__file__).resolve().parent / "app"
ESTIMATOR_HELP = """Other arguments of SageMaker's PyTorch Estimator, their values as YAML, such as
volume_size=100 'subnets=[subnet-1, subnet-2]' 'security_group_ids=[sg-1]' 'tags={team: vision}'."""
DAY = 24 * 60 * 60


@dataclass
class Options:
    """Trains with app/train.py in SageMaker's containers, on this machine or in the cloud."""

    # Default, explanation, what SageMaker's PyTorch Estimator calls it if not the same, and an example of many values.
    image_uri: str = option("sagemaker-tutorial", "Image: of docker/build-image.sh, or $(docker/image-uri.sh).")
    role: str | None = option(None, "ARN of SageMaker's execution role; not needed locally.")
    instance_type: str = option(
        "local_gpu", "ml.… in the cloud; here local_gpu, with all GPUs in one container, or local."
    )
    instance_count: int = option(1, "Number of instances or local containers, which train one model.")
    input_path: str = option(".cache", f"Folder, in the cloud s3://…, with {ARCHIVE}.")
    output_path: str = option("output", "Folder, in the cloud s3://…, for model.tar.gz and output.tar.gz.")
    hyperparams: dict[str, str] = option(
        DEFAULT_HYPERPARAMS, "Options of app/train.py; key=null removes one.", "hyperparameters", "trainer.max_epochs=1"
    )
    metrics: list[str] = option(METRICS, "Names of metrics that CloudWatch plots.", "metric_definitions", "NAME")
    environment: dict[str, str] = option({}, "Variables in the containers; AWS shows them to many.", "", "NAME=value")
    job_name: str | None = option(None, "Name of the job, if not that of the image with the time.")
    max_run: int = option(DAY, "Seconds after which SageMaker stops the job, up to 28 days.")
    checkpoint_path: str | None = option(
        None, "Folder, in the cloud s3://…, for checkpoints, where the next job goes on.", "checkpoint_s3_uri"
    )
    spot_instances: bool = option(
        False, "Use spare instances at a third of the price, which AWS may take back any time.", "use_spot_instances"
    )
    max_wait: int | None = option(None, "Seconds for waiting and training on spot instances; max_run if not said.")
    max_retry: int | None = option(
        None, "How often SageMaker repeats a job after an error of its own, from 1 to 30.", "max_retry_attempts"
    )
    estimator: dict[str, Any] = option({}, ESTIMATOR_HELP, "", "volume_size=100")
    wait: bool = option(True, "Show the log until the job ends; --wait=false returns at once.")
    dry_run: bool = option(False, "Check and print all that would be started, and end. Needs no AWS account.")

    @property
    def is_local(self) -> bool:
        return self.instance_type in ("local", "local_gpu")


def main() -> None:
    options = parse_options(Options)
    stop_at_signals()
    with errors_in_one_line():
        launch(options)


def launch(options: Options) -> None:
    options.hyperparams = {key: value for key, value in options.hyperparams.items() if value != "null"}
    needed_file = ARCHIVE if options.hyperparams.get("data", "CIFAR10DataModule") == "CIFAR10DataModule" else ""
    check_options(options, needed_file)
    if not options.dry_run:
        check_machine(options) if options.is_local else check_account(options, needed_file)
    check = start_check(options.hyperparams, APP_DIR)
    with tempfile.TemporaryDirectory(prefix="sagemaker-", ignore_cleanup_errors=True) as container_root:
        estimator = make_estimator(options, str(Path(container_root).resolve()))
        request = make_request(estimator, options)
        end_check(check)
        if options.dry_run:
            print(json.dumps(request, indent=2))
            words = [word for key, value in sorted(options.hyperparams.items()) for word in (f"--{key}", value)]
            print(f"\nEach container runs:\npython -- train.py {shlex.join(words)}")
        elif options.is_local:
            train_here(estimator, options)
        else:
            train_in_cloud(estimator, request["TrainingJobName"], options)


def make_estimator(options: Options, container_root: str) -> Any:
    """SageMaker's PyTorch Estimator; `container_root` is for temporary files of containers on this machine."""
    if options.dry_run or "://" not in options.input_path + options.output_path:
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # nobody needs the credentials that might be there
    from launcher.sagemaker_sdk import PyTorch, make_session  # takes seconds to import

    arguments = estimator_arguments(options, PyTorch) | {
        "entry_point": "train.py",
        "source_dir": str(APP_DIR),
        "role": options.role or "arn:aws:iam::000000000000:role/not-needed-locally",
        "output_path": as_uri(options.output_path),
        "code_location": None if options.is_local else options.output_path.rstrip("/"),
        "checkpoint_s3_uri": None if options.is_local else options.checkpoint_path,
        "max_wait": options.max_wait or (options.max_run if options.spot_instances else None),
        "hyperparameters": dict(options.hyperparams),  # to which the SDK adds its own
        "metric_definitions": [{"Name": name, "Regex": metric_regex(name)} for name in options.metrics],
        "container_log_level": logging.WARNING,
        "debugger_hook_config": False,
        "disable_profiler": True,
        "sagemaker_session": make_session(options.is_local, container_root),
    }
    return PyTorch(**arguments | options.estimator)


def make_request(estimator: Any, options: Options) -> dict[str, Any]:
    """What `fit` would send to SageMaker; ValueError if SageMaker would not take it."""
    from launcher.sagemaker_sdk import preview_request

    request = preview_request(estimator, inputs(options), options.job_name)
    check_request({"HyperParameters": request["HyperParameters"]} if options.is_local else request)
    return request


def inputs(options: Options) -> dict[str, str]:
    """The channels of the job, each of which becomes a folder of the container."""
    return {"training": as_uri(options.input_path)}


def as_uri(path: str) -> str:
    return path if "://" in path else f"file://{Path(path).absolute()}"


def metric_regex(name: str) -> str:
    """What finds the value of a metric in lines of `name=value`, and not in those of `other/name=value`."""
    return rf"(?:^|\s){re.escape(name)}=([-+.\deE]+)"


def train_here(estimator: Any, options: Options) -> None:
    """Trains in containers of this machine.

    Raises:
        RuntimeError: A container failed; the message names it and repeats its last lines.
    """
    from launcher.sagemaker_sdk import fit_in_containers

    fit_in_containers(estimator, inputs(options), options.checkpoint_path)
    model = estimator.model_data.removeprefix("file://")
    output = options.checkpoint_path or model.replace("model.tar", "output.tar")
    print(f"\nmodel   {model}\noutput  {output} (checkpoints, TensorBoard logs)")


def train_in_cloud(estimator: Any, job_name: str, options: Options) -> None:
    """Starts the job, and shows its log until it ends if asked to wait.

    Raises:
        RuntimeError: The job has failed or was stopped; the message says why.
    """
    from launcher.sagemaker_sdk import show_log

    goes_on = f"""
{job_name} is a job of its own now. Follow it, or stop it:
  aws logs tail /aws/sagemaker/TrainingJobs --follow --log-stream-name-prefix {job_name}/
  aws sagemaker stop-training-job --training-job-name {job_name}"""
    estimator.fit(inputs(options), job_name=job_name, wait=False)
    with errors_in_one_line(aws_exit_code=1):
        try:
            print(f"started {job_name}", flush=True)
            if not options.wait:
                print(goes_on)
                return
            show_log(estimator.sagemaker_session, job_name)
            job = estimator.sagemaker_session.describe_training_job(job_name)
        except BaseException:  # a signal, an expired token, no network
            print(goes_on, flush=True)
            raise
    print_results(job, options.checkpoint_path)


def print_results(job: dict[str, Any], checkpoint_path: str | None) -> None:
    """Prints what the job has cost and where its model is, from SageMaker's description of it."""
    job_name, status = job["TrainingJobName"], job["TrainingJobStatus"]
    seconds, num_instances = job.get("BillableTimeInSeconds", 0), job["ResourceConfig"]["InstanceCount"]
    print(f"""
job               {job_name}: {status}
billable seconds  {seconds * num_instances} ({seconds} on each of {num_instances} instances)""")
    if job.get("EnableManagedSpotTraining") and (training_seconds := job.get("TrainingTimeInSeconds")):
        print(f"saved by spot     {1 - seconds / training_seconds:.0%} of {training_seconds} seconds of training")
    if status != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise RuntimeError(f"job {job_name} ended as {status}: {' '.join(reason.split())}")
    model = job["ModelArtifacts"]["S3ModelArtifacts"]
    print(f"model             {model}\ncheckpoints       {checkpoint_path or model.replace('model.tar', 'output.tar')}")


if __name__ == "__main__":
    main()
