"""Trains with SageMaker's Python SDK: app/train.py, in containers of one image, on this machine or in the cloud.

In one container, on all GPUs:  python run_sagemaker.py
In four, on the CPU:            python run_sagemaker.py --instance_type=local --instance_count=4 \\
                                    --hyperparams trainer.accelerator=cpu trainer.devices=1
On two cloud instances:         python run_sagemaker.py --instance_type=ml.g4dn.12xlarge --instance_count=2 \\
                                    --image_uri=$(docker/image-uri.sh) --role=ARN --input_path=S3 --output_path=S3
What would be started:          the same with --dry_run
"""

import contextlib
import difflib
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
from collections.abc import Iterator
from inspect import signature
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
S3_PATHS = ("input_path", "output_path", "code_location", "checkpoint_path")
METRICS = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "images_per_second")

APP_DIR = Path(__file__).resolve().parent / "app"
CHECKPOINT_DIR = "/opt/ml/checkpoints"
ARCHIVE = "cifar-10-python.tar.gz"
USE_CPU = "train on the CPU with --instance_type={} --hyperparams trainer.accelerator=cpu trainer.devices=1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DAY = 24 * 60 * 60
AWS_HINTS = {
    "Expired": "log in again, such as with `aws sso login`",
    "credentials": "make them known with `aws configure` or `aws sso login`",
    "InvalidClientTokenId": "make them known with `aws configure` or `aws sso login`",
    "AccessDenied": "docker/policies/laptop.json lists what you must be allowed to do",
}

# Type, default and explanation of each option. Those that are the Estimator's arguments have the same names there.
OPTIONS = {
    "image_uri": (str, "sagemaker-tutorial", "Image: of ./docker/build-image.sh, in the cloud $(docker/image-uri.sh)."),
    "role": (str | None, None, "ARN of SageMaker's execution role; not needed locally."),
    "instance_type": (str, "local_gpu", "ml.… in the cloud, local_gpu for a container with all GPUs here, or local."),
    "instance_count": (int, 1, "Number of instances or local containers, which train one model."),
    "input_path": (str, ".cache", f"Folder, in the cloud s3://…, with {ARCHIVE}."),
    "output_path": (str, "output", "Folder, in the cloud s3://…, for model.tar.gz and output.tar.gz."),
    "hyperparams": (list, [], "Options of app/train.py; key=null removes a default. They override the defaults,"),
    "environment": (list, [], "Environment variables of the containers. Not for secrets: AWS shows them."),
    "tags": (list, [], "Tags of the job, as for its costs."),
    "job_name": (str | None, None, "Name of the job, if not that of the image with the time."),
    "max_run": (int, DAY, "Seconds after which SageMaker stops the job, up to 28 days."),
    "checkpoint_path": (str | None, None, "Folder, in the cloud s3://…, for checkpoints, where the next job goes on."),
    "spot_instances": (bool, False, "Use spare instances at a third of the price, which AWS may take back any time."),
    "max_wait": (int | None, None, "Seconds for waiting and training on spot instances; max_run if not said."),
    "max_retry": (int | None, None, "How often SageMaker repeats a job after an error of its own, from 1 to 30."),
    "volume_size": (int, 30, "GB of storage of each instance; those with NVMe drives use these instead."),
    "keep_alive_period_in_seconds": (int, 0, "How long the instances are kept, and paid, for a next job."),
    "subnets": (list, [], "IDs of your own network's subnets, with --security_group_ids."),
    "security_group_ids": (list, [], "IDs of security groups, which must let the instances talk to each other."),
    "encrypt_inter_container_traffic": (bool, False, "Encrypt what instances send each other; slows training down."),
    "enable_network_isolation": (bool, False, "No network for the containers, so that nothing can log to S3."),
    "code_location": (str | None, None, "Where in S3 the code goes, if not to --output_path."),
    "estimator": (list, [], "Any other arguments of SageMaker's PyTorch Estimator, their values as in YAML."),
    "wait": (bool, True, "Show the log until the job ends; --wait=false returns at once."),
    "dry_run": (bool, False, "Check and print all that would be started, and end. Needs no AWS account."),
}
# Those that have other names there.
ESTIMATOR_NAMES = {
    "checkpoint_path": "checkpoint_s3_uri",
    "spot_instances": "use_spot_instances",
    "max_retry": "max_retry_attempts",
}
NOT_OF_ESTIMATOR = ("input_path", "hyperparams", "job_name", "estimator", "wait", "dry_run")

# Where options go in SageMaker's request CreateTrainingJob, whose model knows what they may be.
FIELDS = {
    "TrainingJobName": "job_name",
    "AlgorithmSpecification.TrainingImage": "image_uri",
    "RoleArn": "role",
    "ResourceConfig.InstanceType": "instance_type",
    "ResourceConfig.KeepAlivePeriodInSeconds": "keep_alive_period_in_seconds",
    "OutputDataConfig.S3OutputPath": "output_path",
    "CheckpointConfig.S3Uri": "checkpoint_path",
    "StoppingCondition.MaxWaitTimeInSeconds": "max_wait",
    "RetryStrategy.MaximumRetryAttempts": "max_retry",
    "HyperParameters": "hyperparams",
    "Environment": "environment",
    "Tags": "tags",
    "VpcConfig.Subnets": "subnets",
    "VpcConfig.SecurityGroupIds": "security_group_ids",
}


def main() -> None:
    options = parse_options()
    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    from boto3.exceptions import Boto3Error  # takes longer to import than --help to print
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        launch(options)
    except ValueError as error:
        exit_with(error, 2)
    except RuntimeError as error:
        exit_with(error, 1)
    except (BotoCoreError, Boto3Error, ClientError) as error:
        hints = [f"; {hint}" for word, hint in AWS_HINTS.items() if word in str(error)]
        exit_with(" ".join(f"AWS: {error}{''.join(hints)}".split()), 1 if "started" in vars(options) else 2)
    except Interrupted as error:
        (signum,) = error.args
        exit_with(f"stopped by {signal.Signals(signum).name}", 128 + signum)


def launch(options: Namespace) -> None:
    is_local = options.instance_type in ("local", "local_gpu")
    options.hyperparams = DEFAULT_HYPERPARAMS | read_items("hyperparams", options.hyperparams)
    options.hyperparams = {key: value for key, value in options.hyperparams.items() if value != "null"}
    options.environment = read_items("environment", options.environment)
    options.estimator = read_items("estimator", options.estimator)
    options.tags = [{"Key": key, "Value": value} for key, value in read_items("tags", options.tags).items()]
    check_options(options, is_local)
    if options.spot_instances and not options.checkpoint_path:
        reason = "without --checkpoint_path the job starts anew after each interruption"
        print(f"run_sagemaker.py: warning: --spot_instances: {reason}", file=sys.stderr)
    if not options.dry_run:
        check_machine(options) if is_local else check_account(options)
    args = [f"--{key}={value}" for key, value in sorted(options.hyperparams.items())]  # in the toolkit's order
    command = [sys.executable, "train.py", *args, "--print_config"]
    check = subprocess.Popen(command, cwd=APP_DIR, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory(prefix="sagemaker-", ignore_cleanup_errors=True) as container_root:
        estimator = make_estimator(options, is_local, str(Path(container_root).resolve()))
        inputs = {"training": as_uri(options.input_path)}
        request = make_request(estimator, inputs, options.job_name)
        check_shape(*(("HyperParameters", request["HyperParameters"]) if is_local else ("", request)))
        if check.wait():
            line = check.stderr.read().strip().splitlines()[-1]
            raise ValueError(f"--hyperparams: {line.removeprefix('train.py: error: ')}")
        if options.dry_run:
            print(json.dumps(request, indent=2))
            words = [word for key, value in sorted(options.hyperparams.items()) for word in (f"--{key}", value)]
            print(f"\nEach container runs:\npython -- train.py {shlex.join(words)}")
        elif is_local:
            train_locally(estimator, inputs, options.checkpoint_path)
        else:
            train_in_cloud(estimator, inputs, request["TrainingJobName"], options)


def parse_options() -> Namespace:
    parser = Parser(prog="run_sagemaker.py", usage="python run_sagemaker.py [options]", allow_abbrev=False)
    parser.description = "Trains with app/train.py in SageMaker's containers, on this machine or in the cloud."
    defaults = " ".join(f"{key}={value}" for key, value in DEFAULT_HYPERPARAMS.items())
    for name, (kind, default, explanation) in OPTIONS.items():
        how = {"type": kind}
        if kind is bool:
            how = {"action": ActionYesNo, "nargs": "?"}
        elif kind is list:
            how = {"nargs": "*", "metavar": "ID" if "ids" in name or name == "subnets" else "KEY=VALUE"}
        explanation = f"{explanation} {defaults}." if name == "hyperparams" else explanation
        parser.add_argument(f"--{name}", default=default, help=explanation, **how)
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


def read_items(name: str, items: list[str]) -> dict[str, str]:
    """The `key=value` items of an option."""
    pairs = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not (key and separator):
            example = "trainer.max_epochs=1" if name == "hyperparams" else "NAME=value"
            raise ValueError(f"--{name} {item}: must be key=value, such as {example}")
        pairs[key] = value
    return pairs


def check_options(options: Namespace, is_local: bool) -> None:
    """Raises ValueError for what is wrong whatever the machine and the account."""
    for name in ("instance_count", "volume_size", "max_run"):
        if options[name] < 1:
            raise ValueError(f"--{name}={options[name]}: must be 1 or more")
    if options.max_run > 28 * DAY:
        raise ValueError(f"--max_run={options.max_run}: must be {28 * DAY} seconds, 28 days, or less")
    if options.instance_type == "local_gpu" and options.instance_count > 1:
        cpu = USE_CPU.format("local")
        raise ValueError(f"--instance_count={options.instance_count}: one container takes all GPUs; or {cpu}")
    if bool(options.subnets) != bool(options.security_group_ids):
        raise ValueError("--subnets and --security_group_ids: SageMaker needs both or none")
    if options.max_wait is not None and not options.spot_instances:
        raise ValueError(f"--max_wait={options.max_wait}: is for --spot_instances only")
    if options.spot_instances:
        options.max_wait = options.max_run if options.max_wait is None else options.max_wait
        if options.max_wait < options.max_run:
            raise ValueError(f"--max_wait={options.max_wait}: must be --max_run={options.max_run} or more")
        if options.keep_alive_period_in_seconds:
            raise ValueError("--keep_alive_period_in_seconds: SageMaker does not keep --spot_instances")
    if is_local:
        for name in ("spot_instances", "max_retry"):
            if options[name]:
                raise ValueError(f"--{name}: is for jobs in the cloud, with --instance_type=ml.…")
        if "://" in (options.checkpoint_path or "").removeprefix("file://"):
            raise ValueError(f"--checkpoint_path={options.checkpoint_path}: must be a folder of this machine")
    else:
        check_cloud_options(options)
    has_gpu = options.instance_type == "local_gpu" or re.match(r"ml\.[gp]\d", options.instance_type)
    if options.hyperparams.get("trainer.accelerator") == "gpu" and not has_gpu:
        cpu = USE_CPU.format(options.instance_type)
        raise ValueError(f"--instance_type={options.instance_type}: has no GPU for trainer.accelerator=gpu; {cpu}")
    if is_local and not options.wait:
        raise ValueError("--wait=false: containers on this machine end with the launcher")
    if "://" not in options.input_path:
        if not Path(options.input_path).is_dir():
            raise ValueError(f"--input_path={options.input_path}: is no folder; README.md says how to make it")
        check_input(options, os.listdir(options.input_path))


def check_cloud_options(options: Namespace) -> None:
    """Raises ValueError for what SageMaker would refuse, or the SDK or SageMaker would not even notice."""
    check_shape("ResourceConfig.InstanceType", options.instance_type)
    if "/" not in options.image_uri:
        line = "is not in a registry; push it with ./docker/push-image.sh and say --image_uri=$(docker/image-uri.sh)"
        raise ValueError(f"--image_uri={options.image_uri}: {line}")
    if not options.role:
        raise ValueError("--role: is missing; it is the ARN of SageMaker's execution role, as README.md says")
    s3_uri = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?"
    for name in S3_PATHS:
        if options[name] is not None and not re.fullmatch(s3_uri, options[name]):
            raise ValueError(f"--{name}={options[name]}: must be in S3, such as s3://my-bucket/folder")
    save_dir = options.hyperparams.get("logger.save_dir", "")
    if options.enable_network_isolation and "://" in save_dir:
        raise ValueError(f"--enable_network_isolation: leaves no way to logger.save_dir={save_dir}")
    for field, name in FIELDS.items():
        if options[name] not in (None, [], {}):
            check_shape(field, options[name])


def check_shape(field: str, value: Any, shape: Any = None) -> None:
    """Raises ValueError for what is not as botocore's model of CreateTrainingJob wants a field, or all of it, to be."""
    if shape is None:
        from botocore.session import get_session

        shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
        for member in field.split(".") if field else ():
            shape = shape.members[member]
    name = f"--{FIELDS[field]}" if field in FIELDS else field
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        for key, item in value.items():
            check_shape(f"{field}.{key}".lstrip(".") if "--" not in name else f"{name} {key}", item, shape.members[key])
    elif kind in ("map", "list"):
        for key, item in value.items() if kind == "map" else enumerate(value):
            check_shape(f"{name} {key}", item, shape.value if kind == "map" else shape.member)
            if kind == "map":
                check_shape(f"{name} {key}", key, shape.key)
    if limits.get("enum") and value not in limits["enum"]:
        similar = " or ".join(difflib.get_close_matches(value, limits["enum"]) or limits["enum"][:3])
        raise ValueError(f"{name}={value}: SageMaker does not know it; did you mean {similar}?")
    least, most = limits.get("min", 0), limits.get("max", sys.maxsize)
    if kind != "structure" and kind != "boolean":
        size = value if kind in ("integer", "long") else len(value)
        unit = {"string": " characters", "map": " entries", "list": " entries"}.get(kind, "")
        if not least <= size <= most:
            raise ValueError(f"{name}: {size}{unit}, where SageMaker allows {least} to {most}")
    pattern = limits.get("pattern", "").replace(r"\p{L}\p{Z}\p{N}", r"\w\s")  # Java's, which Python does not know
    if pattern and not re.fullmatch(pattern, value, re.DOTALL):
        raise ValueError(f"{name}={value}: must have the form {pattern}")


def check_input(options: Namespace, names: list[str]) -> None:
    """Raises ValueError if these are not the names of the input that CIFAR10DataModule reads."""
    if options.hyperparams.get("data") == "CIFAR10DataModule" and ARCHIVE not in names:
        raise ValueError(f"--input_path={options.input_path}: has no {ARCHIVE}; README.md says how to get it there")
    if not names:
        raise ValueError(f"--input_path={options.input_path}: is empty")


def check_machine(options: Namespace) -> None:
    """Raises ValueError for what is missing on this machine."""
    has_gpu = shutil.which("nvidia-smi") and "GPU 0" in run("nvidia-smi", "-L").stdout
    if options.instance_type == "local_gpu" and not has_gpu:
        raise ValueError(f"--instance_type=local_gpu: nvidia-smi finds no GPU; {USE_CPU.format('local')}")
    if not shutil.which("docker"):
        raise ValueError("there is no `docker` on this machine; see https://docs.docker.com/engine/install/")
    version = run("docker", "version")
    if version.returncode:
        raise ValueError(f"Docker is not running, or not for you: {version.stdout.strip().splitlines()[-1]}")
    compose_command()
    if "/" not in options.image_uri and run("docker", "image", "inspect", options.image_uri).returncode:
        raise ValueError(f"--image_uri={options.image_uri}: not built yet; build it with ./docker/build-image.sh")


def compose_command() -> list[str]:
    """Docker Compose's, of any version; ValueError if there is none."""
    if run("docker", "compose", "version").returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise ValueError("there is no Docker Compose on this machine; see https://docs.docker.com/compose/install/")


def check_account(options: Namespace) -> None:
    """Raises ValueError for what is missing in the AWS account: region, buckets, input, image; or the job's name."""
    import boto3
    from botocore.exceptions import ClientError

    session = boto3.Session(region_name=find_region())
    if not session.region_name:
        raise ValueError("there is no AWS region; name one, as by: export AWS_DEFAULT_REGION=us-east-1")
    account = session.client("sts").get_caller_identity()["Account"]
    s3 = session.client("s3")
    save_dir = options.hyperparams.get("logger.save_dir", "")
    uris = {f"--{name}={options[name]}": options[name] for name in S3_PATHS}
    for name, uri in (uris | {f"--hyperparams logger.save_dir={save_dir}": save_dir}).items():
        if str(uri).startswith("s3://"):
            bucket = uri.split("/")[2]
            try:
                region = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1"
            except s3.exceptions.NoSuchBucket as error:
                raise ValueError(f"{name}: there is no bucket {bucket}") from error
            if region != session.region_name:
                raise ValueError(f"{name}: bucket {bucket} is in {region}, the job would be in {session.region_name}")
    _, _, bucket, *folders = options.input_path.rstrip("/").split("/")
    prefix = "".join(f"{folder}/" for folder in folders)
    objects = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    check_input(options, [item["Key"].removeprefix(prefix) for item in objects])
    ecr_image = r"(\d{12})\.dkr\.ecr\.([^.]+)\.amazonaws\.com[^/]*/([^:@]+)(?:@(.+)|:(.+))?"
    image = re.fullmatch(ecr_image, options.image_uri)
    if image and image[1] == account:
        image_id = {"imageDigest": image[4]} if image[4] else {"imageTag": image[5] or "latest"}
        ecr = session.client("ecr", region_name=image[2])
        try:
            ecr.describe_images(repositoryName=image[3], imageIds=[image_id])
        except (ecr.exceptions.RepositoryNotFoundException, ecr.exceptions.ImageNotFoundException) as error:
            line = "is not in the registry; push it with ./docker/push-image.sh"
            raise ValueError(f"--image_uri={options.image_uri}: {line}") from error
    with contextlib.suppress(ClientError):  # there is none, or it is not for this person to know
        if options.job_name and session.client("sagemaker").describe_training_job(TrainingJobName=options.job_name):
            raise ValueError(f"--job_name={options.job_name}: there is a job of that name already")


def find_region() -> str | None:
    import boto3

    return boto3.Session().region_name or os.environ.get("AWS_REGION")  # which boto3 does not read


def as_uri(path: str) -> str:
    return path if "://" in path else f"file://{Path(path).absolute()}"


def make_estimator(options: Namespace, is_local: bool, container_root: str) -> Any:
    """The SDK's PyTorch Estimator, which keeps its temporary files in `container_root`."""
    os.environ["SAGEMAKER_SUPPRESS_V2_WARNING"] = "1"
    if "://" not in options.input_path + options.output_path:
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # no need to wait there for credentials
    for name in ("sagemaker", "sagemaker.config", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    excepthook = sys.excepthook
    import boto3  # and the SDK take seconds to import
    import yaml
    from sagemaker import Session
    from sagemaker.config import load_sagemaker_config
    from sagemaker.local import LocalSession
    from sagemaker.pytorch import PyTorch

    sys.excepthook = excepthook  # which the SDK has replaced
    config = {"SchemaVersion": "1.0"} | load_sagemaker_config()
    modules = config.setdefault("SageMaker", {}).setdefault("PythonSDK", {}).setdefault("Modules", {})
    modules["TelemetryOptOut"] = True
    boto_session = boto3.Session(region_name=find_region() or "us-east-1")
    session = (LocalSession if is_local else Session)(boto_session, sagemaker_config=config)
    if is_local:
        session.config = {"local": {"local_code": True, "container_root": container_root}}
    known = {name for base in PyTorch.__mro__ for name in signature(base.__init__).parameters}
    ours = {ESTIMATOR_NAMES.get(name, name): name for name in OPTIONS}
    for name in options.estimator:
        if name in ours or name not in known:
            hint = f"use --{ours[name]}" if name in ours else "the Estimator has no such argument"
            raise ValueError(f"--estimator {name}: {hint}")
    skipped = (*NOT_OF_ESTIMATOR, *(["checkpoint_path"] if is_local else []))
    arguments = {name: options[our] for name, our in ours.items() if options[our] and our not in skipped}
    arguments |= {
        "entry_point": "train.py",
        "source_dir": str(APP_DIR),
        "role": options.role or "arn:aws:iam::000000000000:role/not-needed-locally",
        "output_path": as_uri(options.output_path),
        "code_location": None if is_local else (options.code_location or options.output_path).rstrip("/"),
        "hyperparameters": dict(options.hyperparams),  # to which the SDK adds its own
        "metric_definitions": [{"Name": name, "Regex": rf"\b{name}=([-+.\deE]+)"} for name in METRICS],
        "container_log_level": logging.WARNING,
        "debugger_hook_config": False,
        "disable_profiler": True,
        "sagemaker_session": session,
    }
    return PyTorch(**arguments | {name: yaml.safe_load(value) for name, value in options.estimator.items()})


def make_request(estimator: Any, inputs: dict[str, str], job_name: str | None) -> dict[str, Any]:
    """The SDK's CreateTrainingJob request, without sending it, and without sending the code to S3."""
    request = {}
    session = estimator.sagemaker_session
    clients = session.sagemaker_client, session.s3_resource
    session.sagemaker_client = SimpleNamespace(create_training_job=request.update)
    session.s3_resource = SimpleNamespace(Object=lambda *_: SimpleNamespace(upload_file=lambda *_, **__: None))
    estimator.fit(inputs, job_name=job_name, wait=False)
    session.sagemaker_client, session.s3_resource = clients
    return request


def train_in_cloud(estimator: Any, inputs: dict[str, str], job_name: str, options: Namespace) -> None:
    """Starts the job, and shows its log until it ends if asked to wait.

    Raises:
        RuntimeError: The job has failed or was stopped; the message says why.
    """
    import sagemaker.logs
    from sagemaker.exceptions import UnexpectedStatusException

    def with_host(client: Any, log_group: str, streams: list[str], positions: dict) -> Iterator[tuple[int, dict]]:
        for index, event in multi_stream_iter(client, log_group, streams, positions):
            host = streams[index].partition("/")[2].rpartition("-")[0]  # job/algo-1-1234567890
            yield index, event | {"message": f"{host}  {event['message']}"}

    multi_stream_iter, sagemaker.logs.multi_stream_iter = sagemaker.logs.multi_stream_iter, with_host
    session = estimator.sagemaker_session
    goes_on = f"""
{job_name} is a job of its own now. Follow it, or stop it:
  aws logs tail /aws/sagemaker/TrainingJobs --follow --log-stream-name-prefix {job_name}/
  aws sagemaker stop-training-job --training-job-name {job_name}"""
    estimator.fit(inputs, job_name=job_name, wait=False)
    options.started = True
    try:
        print(f"started {job_name}", goes_on if not options.wait else "", flush=True)
        if not options.wait:
            return
        with contextlib.suppress(UnexpectedStatusException):  # told below
            session.logs_for_job(job_name, wait=True)
        job = session.describe_training_job(job_name)
    except Exception:  # a signal, an expired token, no network
        print(goes_on, flush=True)
        raise
    status = job["TrainingJobStatus"]
    seconds = job.get("BillableTimeInSeconds", 0)
    num_instances = job["ResourceConfig"]["InstanceCount"]
    print(f"""
job               {job_name}: {status}
billable seconds  {seconds * num_instances} ({seconds} on each of {num_instances} instances)""")
    if training_seconds := options.spot_instances and job.get("TrainingTimeInSeconds"):
        print(f"saved by spot     {1 - seconds / training_seconds:.0%} of {training_seconds} seconds of training")
    if status != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise RuntimeError(f"job {job_name} ended as {status}: {' '.join(reason.split())}")
    model = job["ModelArtifacts"]["S3ModelArtifacts"]
    checkpoints = options.checkpoint_path or model.replace("model.tar", "output.tar")
    print(f"model             {model}\ncheckpoints       {checkpoints}")


def train_locally(estimator: Any, inputs: dict[str, str], checkpoint_path: str | None) -> None:
    """Trains in containers of this machine, and removes them whatever happens.

    What SageMaker does with a checkpoint path, and the SDK refuses to do here, one folder for all containers does.

    Raises:
        RuntimeError: A container failed; the message names it and repeats its last lines.
    """
    from sagemaker.local import image, local_session

    compose = compose_command()
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
            if checkpoint_path:
                service["volumes"].append(
                    f"{Path(checkpoint_path.removeprefix('file://')).absolute()}:{CHECKPOINT_DIR}"
                )
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
    estimator.fit(inputs, wait=False)
    model = estimator.model_data.removeprefix("file://")
    output = checkpoint_path or model.replace("model.tar", "output.tar")
    print(f"\nmodel   {model}\noutput  {output} (checkpoints, TensorBoard logs)")


if __name__ == "__main__":
    main()
