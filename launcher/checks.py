"""What can be wrong with the options, whatever the machine and the account."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from launcher.command_line import warn
from launcher.local_mode import USE_CPU
from launcher.request import check_request

MAX_RUN = 28 * 24 * 60 * 60
# What a container has in its environment.
CONTAINER = {
    "SM_HOSTS": '["algo-1"]',
    "SM_CURRENT_HOST": "algo-1",
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
    "SM_CHANNEL_TRAINING": "/opt/ml/input/data/training",
}


def refuse_if(is_wrong: Any, message: str) -> None:
    if is_wrong:
        raise ValueError(message)


def folders(options: Any) -> dict[str, str]:
    """The folders among the options, by the words to name them."""
    values = {name: value for name, value in vars(options).items() if name.endswith("_path")}
    return {f"--{name}={value}": value for name, value in values.items() if value is not None}


def check_options(options: Any, needed_file: str) -> None:
    """Raises ValueError for what nobody else would notice, or not before the upload."""
    kind, count, folder = options.instance_type, options.instance_count, options.input_path
    use_cpu = USE_CPU.format(kind.replace("local_gpu", "local"))
    refuse_if(count < 1, f"--instance_count={count}: must be 1 or more")
    refuse_if(
        kind == "local_gpu" and count > 1, f"--instance_count={count}: one container takes all GPUs; or {use_cpu}"
    )
    max_run, max_wait = options.max_run, options.max_wait
    refuse_if(max_run > MAX_RUN, f"--max_run={max_run}: must be {MAX_RUN} seconds, 28 days, or less")
    if max_wait is not None:
        refuse_if(not options.spot_instances, f"--max_wait={max_wait}: is for --spot_instances only")
        refuse_if(max_wait < max_run, f"--max_wait={max_wait}: must be --max_run={max_run} or more")
    check_local_options(options) if options.is_local else check_cloud_options(options)
    has_gpu = kind == "local_gpu" or re.match(r"ml\.[gp]\d", kind)
    needs_gpu = options.hyperparams.get("trainer.accelerator") == "gpu"
    refuse_if(needs_gpu and not has_gpu, f"--instance_type={kind}: has no GPU for trainer.accelerator=gpu; {use_cpu}")
    if "://" not in folder:
        refuse_if(not Path(folder).is_dir(), f"--input_path={folder}: is no folder; README.md says how to make it")
        check_input(folder, os.listdir(folder), needed_file)


def check_input(input_path: str, names: list[str], needed_file: str) -> None:
    """Raises ValueError if these are not the names of an input's files."""
    is_missing = needed_file and needed_file not in names
    refuse_if(is_missing, f"--input_path={input_path}: has no {needed_file}; README.md says how to get it there")
    refuse_if(not names, f"--input_path={input_path}: is empty")


def check_local_options(options: Any) -> None:
    for name in ("spot_instances", "max_retry"):
        refuse_if(getattr(options, name), f"--{name}: is for jobs in the cloud, with --instance_type=ml.…")
    folder = options.checkpoint_path or ""
    refuse_if("://" in folder.removeprefix("file://"), f"--checkpoint_path={folder}: must be a folder of this machine")
    refuse_if(not options.wait, "--wait=false: containers on this machine end with the launcher")


def check_cloud_options(options: Any) -> None:
    check_request({"ResourceConfig": {"InstanceType": options.instance_type}})
    line = "is not in a registry; push it with ./docker/push-image.sh and say --image_uri=$(docker/image-uri.sh)"
    refuse_if("/" not in options.image_uri, f"--image_uri={options.image_uri}: {line}")
    refuse_if(not options.role, "--role: is missing; it is the ARN of SageMaker's execution role, as README.md says")
    check_request({"RoleArn": options.role})  # the SDK would ask AWS for the ARN of a name
    for name, uri in folders(options).items():
        is_s3 = re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", uri)
        refuse_if(not is_s3, f"{name}: must be in S3, such as s3://my-bucket/folder")
    given, save_dir = options.estimator, options.hyperparams.get("logger.save_dir", "")
    has_half = ("subnets" in given) != ("security_group_ids" in given)
    refuse_if(has_half, "--estimator subnets, security_group_ids: SageMaker needs both or none")
    is_isolated = given.get("enable_network_isolation") and "://" in save_dir
    refuse_if(is_isolated, f"--estimator enable_network_isolation: leaves no way to logger.save_dir={save_dir}")
    if options.spot_instances and not options.checkpoint_path:
        warn("--spot_instances: without --checkpoint_path the job starts anew after each interruption")


def estimator_arguments(options: Any, estimator: type) -> dict[str, Any]:
    """The options that are arguments of the Estimator, by their names there; ValueError if --estimator is wrong."""
    known = {name for base in estimator.__mro__ for name in signature(base.__init__).parameters}
    ours = {option.metadata["argument"] or option.name: option.name for option in fields(options)}
    for name in options.estimator:
        refuse_if(name in ours, f"--estimator {name}: use --{ours.get(name)}")
        refuse_if(name not in known, f"--estimator {name}: the Estimator has no such argument")
    values = {argument: getattr(options, name) for argument, name in ours.items() if argument in known}
    return {argument: value for argument, value in values.items() if value not in (None, {})}


def start_check(hyperparams: dict[str, str], app_dir: Path) -> subprocess.Popen:
    """Starts train.py as in a container, only to check its options, while the SDK is being imported."""
    options = [f"--{key}={value}" for key, value in sorted(hyperparams.items())]  # in the toolkit's order
    command = [sys.executable, "train.py", *options, "--print_config"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | CONTAINER
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=app_dir, env=environment, **output)


def end_check(check: subprocess.Popen) -> None:
    """Repeats the warnings of train.py; raises ValueError with its own message if it takes the options not."""
    lines = check.communicate()[1].strip().splitlines()
    if check.returncode:
        raise ValueError(f"--hyperparams: {lines[-1].removeprefix('train.py: error: ')}")
    for line in dict.fromkeys(lines):
        if line.startswith("train.py: warning: "):
            warn(line.removeprefix("train.py: warning: "))
