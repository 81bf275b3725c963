"""Checks of the options of a launch: on their own, against botocore's model, and by train.py itself."""

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from launcher.local_mode import USE_CPU

# The environment of a container, as far as train.py needs it to check its options.
CONTAINER = {"SM_MODEL_DIR": "/opt/ml/model", "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data"}


def check_options(options: Any) -> None:
    """Raises ValueError for mistakes in the options.

    AWS or Docker would miss them, report them unclearly, or report them only in a billed job.
    """
    if options.is_local and options.log_uri:
        raise ValueError(f"--hyperparams logger.save_dir={options.log_uri}: only jobs in the cloud can log to S3")
    if not (options.is_local or options.instance_type.startswith("ml.")):
        raise ValueError(f"--instance_type={options.instance_type}: expected local, local_gpu, or an ml.* type")
    accelerator = options.hyperparams.get("trainer.accelerator")
    has_gpu = options.instance_type == "local_gpu" or re.match(r"ml\.[gp][a-z]*\d", options.instance_type)
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise ValueError(f"--instance_type={options.instance_type} has no GPU; {USE_CPU}")
    for path in [*options.channels.values(), options.output_path, options.checkpoint_path or "s3://"]:
        if re.search(r"[#?$]", path):
            raise ValueError(f"{path}: paths must not contain #, ? or $, which Docker and the SDK misread")
        if not (options.is_local or path.startswith("s3://")):
            raise ValueError(f"{path}: --input_path, --output_path and --checkpoint_path must be S3 URIs in the cloud")
    if options.is_local:
        return
    if "/" not in options.image_uri:
        raise ValueError(f"--image_uri={options.image_uri}: not in ECR; push it, and pass $(docker/image-uri.sh)")
    if not (options.role or "").startswith("arn:"):  # the SDK would ask AWS for the ARN of a name
        raise ValueError(f"--role={options.role or ''}: expected the ARN of a SageMaker execution role; see README.md")


def check_request(estimator: Any, inputs: dict[str, str], options: Any) -> None:
    """Checks the request of a job before anything is uploaded; prints it to stdout in a dry run.

    Raises ValueError if SageMaker would reject it.
    """
    from launcher.sagemaker_sdk import preview_request

    request = preview_request(estimator, inputs, options.job_name)
    if not options.is_local:
        check_rules(request)
        print(cost(request), file=sys.stderr if options.dry_run else sys.stdout)
    if options.dry_run:
        print(json.dumps(request, indent=2))


def check_rules(request: dict[str, Any]) -> None:
    """Raises ValueError if SageMaker would reject a request, as far as its rules are known to botocore."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ValueError(report.generate_report())
    for violation in violations(request, shape):
        raise ValueError(violation)
    max_run = request["StoppingCondition"]["MaxRuntimeInSeconds"]
    max_wait = request["StoppingCondition"].get("MaxWaitTimeInSeconds")
    if max_wait and not (request.get("EnableManagedSpotTraining") and max_wait >= max_run):
        raise ValueError(f"--max_wait={max_wait}: needs --spot_instances, and a value of at least --max_run={max_run}")


def violations(value: Any, shape: Any, field: str = "") -> Iterator[str]:
    """Yields violations of the patterns, maximum lengths and enums in botocore's model.

    botocore's own validator ignores them.
    """
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from violations(member, shape.members[name], f"{field}.{name}".lstrip("."))
    elif shape.type_name == "list":
        for member in value:
            yield from violations(member, shape.member, field)
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from violations(key, shape.key, f"name in {field}")
            yield from violations(member, shape.value, f"{field}.{key}")
    rules = shape.metadata
    size = value if isinstance(value, int) else len(value)
    shown = f"{field}={str(value)[:80]}"
    if not rules.get("min", size) <= size <= rules.get("max", size):
        limits = f"{rules.get('min', 0)} to {rules.get('max', 'any number')}"
        yield f"{shown}: value or length is {size}, expected {limits}"
    if value not in rules.get("enum", [value]):
        similar = [each for each in rules["enum"] if each.startswith(value[:5])]
        yield f"{shown}: expected one of {', '.join(similar or rules['enum'])}"
    pattern = rules.get("pattern", r"\p{L}")
    if r"\p{" not in pattern and not re.fullmatch(pattern, value):  # Python's re lacks \p{…}
        yield f"{shown}: must match {pattern}"


def cost(request: dict[str, Any]) -> str:
    """Returns the instance-hours that a job can use at most, and the quota that it needs."""
    resources = request["ResourceConfig"]
    count = resources["InstanceCount"]
    keep_alive = resources.get("KeepAlivePeriodInSeconds", 0)
    hours = count * (request["StoppingCondition"]["MaxRuntimeInSeconds"] + keep_alive) / 3600
    spot = "spot " if request.get("EnableManagedSpotTraining") else ""
    quota = f'a quota "{resources["InstanceType"]} for {spot}training job usage" of at least {count}'
    return f"the job uses up to {hours:g} instance-hours, and needs {quota}"


def warn_of_missing_packages(app_dir: Path) -> None:
    """Warns on stderr of packages that app/ imports but docker/requirements/ does not list.

    Only packages that are installed on this machine are found.
    """
    code = "\n".join(path.read_text(errors="replace") for path in app_dir.rglob("*.py"))
    modules = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    locked = "\n".join(path.read_text() for path in app_dir.parent.glob("docker/requirements/*.txt"))
    for module, packages in packages_distributions().items():
        names = [name.lower().replace("_", "-") for name in packages]
        if module in modules and not any(f"\n{name}==" in locked for name in names):
            print(f"train.py will not find {module} in the container: docker/requirements/ lacks it", file=sys.stderr)


def start_check(options: Any, app_dir: Path) -> Popen:
    """Starts train.py as in a container, only to check its options, while the SDK is being imported.

    It inherits the environment of this process without PYTHONPATH, and gets the variables of the job.
    """
    # Sorted, as the toolkit passes them.
    arguments = [f"--{key}={value}" for key, value in sorted(options.hyperparams.items())]
    command = [sys.executable, "train.py", *arguments, "--print_config"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    hosts = [f"algo-{number}" for number in range(1, options.instance_count + 1)]
    environment |= CONTAINER | dict(options.environment) | {"SM_HOSTS": json.dumps(hosts)}
    environment |= {f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in options.channels}
    return Popen(command, cwd=app_dir, env=environment, stdout=DEVNULL, stderr=PIPE, text=True)


def wait_for_check(check: Popen) -> None:
    """Raises RuntimeError with train.py's stderr if it rejects the options; otherwise, prints its stderr."""
    stderr = check.communicate()[1]
    if check.returncode:
        raise RuntimeError(f"--hyperparams: {stderr.strip() or f'train.py exited with code {check.returncode}'}")
    print(stderr, end="", file=sys.stderr)
