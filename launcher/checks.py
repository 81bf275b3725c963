"""What can be wrong with the options, whatever the machine and the account, and what train.py says of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.command_line import refuse_if
from launcher.local_mode import USE_CPU

# What a container has in its environment.
CONTAINER_ENVIRONMENT = {
    "SM_HOSTS": '["algo-1"]',
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
}


def check_options(options: Any) -> None:
    """Raises ValueError for what nobody else would notice, or not in clear words, or not before it costs."""
    instance_type = options.instance_type
    message = f"--hyperparams logger.save_dir={options.log_uri}: only jobs in the cloud log to S3; leave it out here"
    refuse_if(options.is_local and options.log_uri, message)
    if not options.is_local:
        check_cloud_options(options)
    has_gpu = instance_type == "local_gpu" or re.match(r"ml\.[gp][a-z]*\d", instance_type)
    needs_gpu = options.hyperparams.get("trainer.accelerator") == "gpu"
    refuse_if(
        needs_gpu and not has_gpu, f"--instance_type={instance_type}: has no GPU for trainer.accelerator=gpu; {USE_CPU}"
    )


def check_cloud_options(options: Any) -> None:
    instance_type = options.instance_type
    refuse_if(
        not instance_type.startswith("ml."),
        f"--instance_type={instance_type}: must be local, local_gpu or SageMaker's, ml.…",
    )
    message = f"--image_uri={options.image_uri}: must be in ECR for a job in the cloud, as $(docker/image-uri.sh) is"
    refuse_if("/" not in options.image_uri, message)
    is_arn = (options.role or "").startswith("arn:")  # the SDK would ask AWS for the ARN of a name
    refuse_if(not is_arn, f"--role={options.role}: must be the ARN of SageMaker's execution role, as README.md says")
    for path in [*options.channels.values(), options.output_path, options.checkpoint_path or "s3://"]:
        refuse_if(not path.startswith("s3://"), f"{path} must be in S3 for a job in the cloud: s3://my-bucket/folder")


def check_request(request: dict[str, Any]) -> None:
    """Raises ValueError for what does not fit botocore's model of CreateTrainingJob."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape).generate_report()
    refuse_if(report, report)


def start_check(hyperparams: dict[str, str], channels: Iterable[str], app_dir: Path) -> subprocess.Popen:
    """Starts train.py as in a container, only to check its options, while the SDK is being imported."""
    options = [f"--{key}={value}" for key, value in sorted(hyperparams.items())]  # in the toolkit's order
    command = [sys.executable, "train.py", *options, "--print_config"]
    channel_dirs = {f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in channels}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=app_dir, env=os.environ | CONTAINER_ENVIRONMENT | channel_dirs, **output)


def wait_for_check(check: subprocess.Popen) -> None:
    """Repeats what train.py says; raises ValueError with its message if it does not take the options."""
    lines = check.communicate()[1].strip().splitlines()
    refuse_if(check.returncode, f"--hyperparams: {''.join(lines[-1:]).removeprefix('train.py: error: ')}")
    for line in dict.fromkeys(line for line in lines if line.startswith("train.py: warning: ")):
        print(line, file=sys.stderr)
