"""Checks of the options of a launch: on their own, against botocore's model, and by train.py itself."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.local_mode import USE_CPU

# The environment of a container, as far as train.py needs it to check its options.
CONTAINER = {"SM_HOSTS": '["algo-1"]', "SM_MODEL_DIR": "/opt/ml/model", "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data"}


def check_options(options: Any) -> None:
    """Raises ValueError for mistakes that AWS or Docker would miss, report unclearly, or report when it costs."""
    instance_type = options.instance_type
    if options.is_local and options.log_uri:
        raise ValueError(f"--hyperparams logger.save_dir={options.log_uri}: only jobs in the cloud can log to S3")
    if not options.is_local:
        check_cloud_options(options)
    has_gpu = instance_type == "local_gpu" or re.match(r"ml\.[gp][a-z]*\d", instance_type)
    if options.hyperparams.get("trainer.accelerator") == "gpu" and not has_gpu:
        raise ValueError(f"--instance_type={instance_type} has no GPU for trainer.accelerator=gpu; {USE_CPU}")


def check_cloud_options(options: Any) -> None:
    if not options.instance_type.startswith("ml."):
        raise ValueError(f"--instance_type={options.instance_type}: expected local, local_gpu, or an ml.* type")
    if "/" not in options.image_uri:
        raise ValueError(f"--image_uri={options.image_uri}: expected an image in ECR, such as $(docker/image-uri.sh)")
    if not (options.role or "").startswith("arn:"):  # the SDK would ask AWS for the ARN of a name
        raise ValueError(f"--role={options.role}: expected the ARN of SageMaker's execution role; see README.md")
    for path in [*options.channels.values(), options.output_path, options.checkpoint_path or "s3://"]:
        if not path.startswith("s3://"):
            raise ValueError(f"{path}: expected a folder in S3 for a job in the cloud, such as s3://my-bucket/folder")


def check_request(request: dict[str, Any]) -> None:
    """Raises ValueError if a request does not match botocore's model of CreateTrainingJob."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ValueError(report.generate_report())


def start_check(hyperparams: dict, channels: Iterable[str], app_dir: Path, messages_file: Path) -> subprocess.Popen:
    """Starts train.py as in a container, only to check its options, while the SDK is being imported.

    Args:
        hyperparams: Options of train.py.
        channels: Names of the input channels.
        app_dir: Folder of train.py.
        messages_file: Where train.py writes its messages, a JSON object with `level` and `message` per line.
    """
    options = [f"--{key}={value}" for key, value in sorted(hyperparams.items())]  # in the toolkit's order
    command = [sys.executable, "train.py", *options, "--print_config"]
    environment = os.environ | CONTAINER | {"TRAIN_MESSAGES_FILE": str(messages_file)}
    environment |= {f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in channels}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=app_dir, env=environment, **output)


def wait_for_check(check: subprocess.Popen, messages_file: Path) -> None:
    """Prints the warnings of train.py; raises ValueError with its error if it rejects the options."""
    stderr = check.communicate()[1]
    text = messages_file.read_text() if messages_file.exists() else ""
    messages = [json.loads(line) for line in text.splitlines()]
    if check.returncode:
        errors = [each["message"] for each in messages if each["level"] == "error"]
        raise ValueError(f"--hyperparams: {''.join((errors or stderr.strip().splitlines())[-1:])}")
    for message in dict.fromkeys(each["message"] for each in messages):
        print(f"run_sagemaker.py: warning: {message}", file=sys.stderr)
