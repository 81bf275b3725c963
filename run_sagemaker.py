"""Trains with SageMaker's Python SDK: app/train.py, in containers of one image, on this machine or in the cloud.

In one container, on all GPUs:  python run_sagemaker.py
In four, on the CPU:            python run_sagemaker.py --instance_type=local --instance_count=4 \\
                                    --hyperparams trainer.accelerator=cpu trainer.devices=1
On two cloud instances:         python run_sagemaker.py --instance_type=ml.g4dn.12xlarge --instance_count=2 \\
                                    --image_uri=$(docker/image-uri.sh) --role=ARN --input_path=S3 --output_path=S3
"""

import json
import logging
import os
import re
import shlex
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from inspect import signature
from pathlib import Path
from typing import Any

from launcher.account import create_session
from launcher.checks import check_options, check_request, start_check, wait_for_check
from launcher.command_line import BOOLEAN, Parser, channel, exit_on_signals, key_value, one_line_errors, yaml_key_value
from launcher.local_mode import check_machine, git_commit

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
LOG_DIR = "/opt/ml/output/tensorboard"  # from where SageMaker copies the log to S3 if it is not told another folder


def read_options(args: list[str] | None = None) -> Namespace:
    usage = f"python run_sagemaker.py [options]\n\n{__doc__}"
    parser = Parser(usage=usage, allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter)
    option, items = parser.add_argument, {"nargs": "*", "default": [], "type": key_value, "metavar": "NAME=value"}
    option("--image_uri", default="sagemaker-tutorial", help="Of docker/build-image.sh, or $(docker/image-uri.sh).")
    option("--role", help="ARN of SageMaker's execution role; not needed locally.")
    option("--instance_type", default="local_gpu", help="ml.…, or here local_gpu, with all GPUs, or local.")
    option("--instance_count", type=int, default=1, help="Instances or local containers, which train one model.")
    paths = {"nargs": "+", "type": channel, "metavar": "[NAME=]FOLDER"}
    option("--input_path", **paths, default=[("training", ".cache")], help="The job's channels, in the cloud s3://….")
    option("--output_path", default="output", help="Folder, in the cloud s3://…, for model.tar.gz and output.tar.gz.")
    option("--hyperparams", **items, help="Options of app/train.py; NAME=null removes a default, config=FILE all.")
    option("--metrics", nargs="*", default=METRICS, help="Names of metrics that CloudWatch plots.")
    option("--environment", **items, help="Variables in the containers; AWS shows them to many.")
    option("--job_name", help="Name of the job, if not that of the image with the time.")
    option("--max_run", type=int, default=24 * 60 * 60, help="Seconds after which SageMaker stops the job.")
    option("--checkpoint_path", help="Folder, in the cloud s3://…, for checkpoints, where the next job goes on.")
    option("--spot_instances", **BOOLEAN, default=False, help="Use spare instances; say a --checkpoint_path too.")
    option("--max_wait", type=int, help="Seconds for waiting and training on spot instances; max_run if not said.")
    option("--max_retry", type=int, help="How often SageMaker repeats a job after an error of its own, from 1 to 30.")
    option(
        "--estimator", **items | {"type": yaml_key_value}, help="The SDK's other arguments, as YAML: volume_size=100."
    )
    option("--region", help="Region of all this, if not that of AWS_REGION, AWS_DEFAULT_REGION or your profile.")
    option("--profile", help="Profile of your AWS configuration, if not that of AWS_PROFILE.")
    option("--attach", metavar="JOB", help="Show the log of a job from its start, and end as if it was started here.")
    option("--stop", metavar="JOB", help="Stop a job that is running; what it has saved stays.")
    option("--wait", **BOOLEAN, default=True, help="Show the log until the job ends; --wait=false returns at once.")
    option("--dry_run", **BOOLEAN, default=False, help="Check the options and print what would be started.")
    options = parser.parse_args(args)
    options.is_local = options.instance_type in ("local", "local_gpu") and not (options.attach or options.stop)
    options.channels = dict(options.input_path)
    if len(options.channels) < len(options.input_path):
        parser.error("--input_path: each folder needs a name of its own, as in train=s3://… val=s3://…")
    given = dict(options.hyperparams)
    defaults = DEVICE_HYPERPARAMS if "config" in given else DEFAULT_HYPERPARAMS | DEVICE_HYPERPARAMS
    hyperparams = defaults | given
    options.hyperparams = {name: value for name, value in hyperparams.items() if value != "null"}
    save_dir = options.hyperparams.get("logger.save_dir", "")
    options.log_uri = save_dir if save_dir.startswith("s3://") else None
    if options.log_uri:
        options.hyperparams["logger.save_dir"] = LOG_DIR
    return options


def main() -> None:
    exit_on_signals()
    with one_line_errors():
        launch(read_options())


def launch(options: Namespace) -> None:
    if options.attach or options.stop:
        return attach_or_stop(options)
    check_options(options)
    if options.is_local and not options.dry_run:
        check_machine(options)
    elif not options.dry_run:  # there must be credentials before anything is uploaded
        create_session(options).client("sts").get_caller_identity()
    check = start_check(options.hyperparams, options.channels, APP_DIR)
    with tempfile.TemporaryDirectory(prefix="sagemaker-", ignore_cleanup_errors=True) as container_root:
        estimator = make_estimator(options, str(Path(container_root).resolve()))
        wait_for_check(check)
        if not options.is_local:
            count, hours = options.instance_count, options.instance_count * options.max_run / 3600
            quota = f"{options.instance_type} for {'spot ' if options.spot_instances else ''}training job usage"
            print(f'takes at most {hours:g} instance-hours, and {count} of your quota "{quota}"')
        if options.dry_run:
            preview(estimator, options)
        elif options.is_local:
            train_locally(estimator, options)
        else:
            estimator.fit(inputs(options), job_name=options.job_name, wait=False)
            follow_job(estimator.sagemaker_session, estimator.latest_training_job.name, options)


def make_estimator(options: Namespace, container_root: str) -> Any:
    """SageMaker's PyTorch Estimator; `container_root` is for temporary files of containers on this machine."""
    if options.dry_run or (options.is_local and "s3://" not in f"{options.input_path} {options.output_path}"):
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # nobody needs the credentials that might be there
    from launcher.sagemaker_sdk import PyTorch, TensorBoardOutputConfig, make_session  # takes seconds to import

    in_s3 = "://" in (options.checkpoint_path or "").removeprefix("file://")
    log_config = TensorBoardOutputConfig(as_uri(options.log_uri)) if options.log_uri else None
    arguments = {
        "entry_point": "train.py",
        "source_dir": str(APP_DIR),
        "image_uri": options.image_uri,
        "role": options.role or "arn:aws:iam::000000000000:role/not-needed-locally",
        "instance_type": options.instance_type,
        "instance_count": options.instance_count,
        "output_path": as_uri(options.output_path),
        "checkpoint_s3_uri": as_uri(options.checkpoint_path, "/") if in_s3 else None,
        "hyperparameters": dict(options.hyperparams),  # to which the SDK adds its own
        "metric_definitions": [{"Name": name, "Regex": metric_regex(name)} for name in options.metrics],
        "environment": git_commit(APP_DIR) | dict(options.environment),
        "max_run": options.max_run,
        "use_spot_instances": options.spot_instances,
        "max_wait": options.max_wait or (options.max_run if options.spot_instances else None),
        "max_retry_attempts": options.max_retry,
        "tensorboard_output_config": log_config,
        "sagemaker_session": make_session(create_session(options), container_root if options.is_local else ""),
        # A folder of its own for each launch: before SageMaker can refuse a taken name, the code is there.
        "code_location": None if options.is_local else f"{as_uri(options.output_path)}/{Path(container_root).name}",
        "container_log_level": logging.WARNING,
        "debugger_hook_config": False,
        "disable_profiler": True,
    }
    known = {name for base in PyTorch.__mro__ for name in signature(base.__init__).parameters}
    for name, _ in options.estimator:  # the SDK takes any name, and does not look at those that it does not know
        if name not in known:
            raise ValueError(f"--estimator {name}: the Estimator has no such argument")
    return PyTorch(**arguments | dict(options.estimator))


def inputs(options: Namespace) -> dict[str, str]:
    """The channels of the job; NAME becomes /opt/ml/input/data/NAME in the container, and SM_CHANNEL_NAME says so."""
    return {name: as_uri(path, "/") for name, path in options.channels.items()}


def as_uri(path: str, end: str = "") -> str:
    """A folder as SageMaker takes it; `end="/"` for what it reads, or it would read `my-run2` along with `my-run`."""
    return path.rstrip("/") + end if "://" in path else f"file://{Path(path).absolute()}"


def metric_regex(name: str) -> str:
    """What finds the value of a metric in lines of `name=value`, and not in those of `other/name=value`."""
    return rf"(?:^|\s){re.escape(name)}=([-+.\deE]+)"


def preview(estimator: Any, options: Namespace) -> None:
    from launcher.sagemaker_sdk import preview_request

    request = preview_request(estimator, inputs(options), options.job_name)
    if not options.is_local:
        check_request(request)
    print(json.dumps(request, indent=2))
    words = [word for name, value in sorted(options.hyperparams.items()) for word in (f"--{name}", value)]
    print(f"\nEach container runs:\npython -- train.py {shlex.join(words)}")


def train_locally(estimator: Any, options: Namespace) -> None:
    from launcher.sagemaker_sdk import fit_in_containers

    with one_line_errors(code=1):
        fit_in_containers(estimator, inputs(options), options.checkpoint_path)
    model = estimator.model_data.removeprefix("file://")
    output = options.checkpoint_path or model.replace("model.tar", "output.tar")
    print(f"\nmodel   {model}\noutput  {output} (checkpoints, TensorBoard logs)")


def attach_or_stop(options: Namespace) -> None:
    session = create_session(options)
    if options.stop:
        session.client("sagemaker").stop_training_job(TrainingJobName=options.stop)
        print(f"stopping {options.stop}; --attach={options.stop} shows how it ends")
    else:
        from launcher.sagemaker_sdk import make_session

        session.client("sagemaker").describe_training_job(TrainingJobName=options.attach)  # or there is none
        follow_job(make_session(session), options.attach, options)


def follow_job(session: Any, job_name: str, options: Namespace) -> None:
    """Says how to come back to a job and, if asked to wait, shows its log until it ends, and its results."""
    from launcher.sagemaker_sdk import show_log

    command = f"python run_sagemaker.py --region={session.boto_region_name}"
    command += f" --profile={options.profile}" if options.profile else ""
    print(f"job {job_name} goes on without this program. Follow it, or stop it:")
    print(f"  {command} --attach={job_name}\n  {command} --stop={job_name}", flush=True)
    if options.wait:
        with one_line_errors(code=1):
            show_log(session, job_name)
            print_results(session.describe_training_job(job_name))


def print_results(job: dict[str, Any]) -> None:
    job_name, status = job["TrainingJobName"], job["TrainingJobStatus"]
    if status != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise RuntimeError(f"job {job_name} ended as {status}: {' '.join(reason.split())}")
    model = job["ModelArtifacts"]["S3ModelArtifacts"]
    checkpoints = job.get("CheckpointConfig", {}).get("S3Uri") or model.replace("model.tar", "output.tar")
    print(f"\nmodel        {model}\ncheckpoints  {checkpoints}")


if __name__ == "__main__":
    main()
