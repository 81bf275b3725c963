"""What can be wrong with the options, whatever the machine and the account, and what train.py says of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

from launcher.command_line import warn
from launcher.local_mode import USE_CPU

# What a container has in its environment.
CONTAINER = {
    "SM_HOSTS": '["algo-1"]',
    "SM_CURRENT_HOST": "algo-1",
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
}


def refuse_if(is_wrong: Any, message: str) -> None:
    if is_wrong:
        raise ValueError(message)


def folders(options: Any) -> dict[str, str]:
    """The folders that a job uses, by the words to name them."""
    values = [("--input_path", path) for path in options.channels.values()]
    values += [("--output_path", options.output_path), ("--checkpoint_path", options.checkpoint_path)]
    return {f"{name}={path}": path for name, path in values if path is not None}


def check_options(options: Any) -> None:
    """Raises ValueError for what nobody else would notice, or not in clear words, or not before it costs."""
    kind, count = options.instance_type, options.instance_count
    refuse_if(count < 1, f"--instance_count={count}: must be 1 or more")
    if not options.is_local:
        check_cloud_options(options)
    has_gpu = kind == "local_gpu" or re.match(r"ml\.[gp][a-z]*\d", kind)
    needs_gpu = options.hyperparams.get("trainer.accelerator") == "gpu"
    refuse_if(needs_gpu and not has_gpu, f"--instance_type={kind}: has no GPU for trainer.accelerator=gpu; {USE_CPU}")
    for path in options.channels.values():
        has_data = "://" in path or (Path(path).is_dir() and os.listdir(path))
        refuse_if(
            not has_data, f"--input_path={path}: is no folder with data; give yours, or get CIFAR-10 as README.md says"
        )


def check_cloud_options(options: Any) -> None:
    kind = options.instance_type
    refuse_if(not kind.startswith("ml."), f"--instance_type={kind}: must be local, local_gpu or SageMaker's, ml.…")
    line = "is not in a registry; push it with ./docker/push-image.sh and say --image_uri=$(docker/image-uri.sh)"
    refuse_if("/" not in options.image_uri, f"--image_uri={options.image_uri}: {line}")
    is_arn = (options.role or "").startswith("arn:")  # the SDK would ask AWS for the ARN of a name
    refuse_if(not is_arn, f"--role={options.role}: must be the ARN of SageMaker's execution role, as README.md says")
    for name, uri in folders(options).items():
        refuse_if(not uri.startswith("s3://"), f"{name}: must be in S3, such as s3://my-bucket/folder")
    if options.spot_instances and not options.checkpoint_path:
        warn("--spot_instances: without --checkpoint_path the job starts anew after each interruption")


def check_estimator_arguments(given: dict[str, Any], ours: dict[str, Any], estimator: type) -> None:
    """Raises ValueError if `--estimator` is given what the launcher sets, or what no Estimator would look at."""
    known = {name for base in estimator.__mro__ for name in signature(base.__init__).parameters}
    for name in given:
        refuse_if(name in ours, f"--estimator {name}: the launcher sets it itself; --help explains its options")
        refuse_if(name not in known, f"--estimator {name}: the Estimator has no such argument")


def check_request(request: dict[str, Any]) -> None:
    """Raises ValueError for what does not fit botocore's model of CreateTrainingJob."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape).generate_report()
    refuse_if(report, report)
    known = shape.members["ResourceConfig"].members["InstanceType"].enum
    kind = request["ResourceConfig"]["InstanceType"]
    similar = " or ".join(get_close_matches(kind, known)) or "ml.g4dn.xlarge"
    refuse_if(kind not in known, f"--instance_type={kind}: SageMaker does not know it; did you mean {similar}?")


def start_check(hyperparams: dict[str, str], channels: Iterable[str], app_dir: Path) -> subprocess.Popen:
    """Starts train.py as in a container, only to check its options, while the SDK is being imported."""
    options = [f"--{key}={value}" for key, value in sorted(hyperparams.items())]  # in the toolkit's order
    command = [sys.executable, "train.py", *options, "--print_config"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | CONTAINER
    environment |= {f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in channels}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=app_dir, env=environment, **output)


def end_check(check: subprocess.Popen) -> None:
    """Repeats the warnings of train.py; raises ValueError with its own message if it takes the options not."""
    lines = check.communicate()[1].strip().splitlines()
    refuse_if(check.returncode, f"--hyperparams: {''.join(lines[-1:]).removeprefix('train.py: error: ')}")
    for line in dict.fromkeys(lines):
        if line.startswith("train.py: warning: "):
            warn(line.removeprefix("train.py: warning: "))
