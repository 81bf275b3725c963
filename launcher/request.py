"""Checks a CreateTrainingJob request against botocore's model of it."""

import difflib
import re
from typing import Any

UNITS = {"string": " characters", "map": " entries", "list": " entries", "integer": "", "long": ""}


def check_request(request: dict[str, Any]) -> None:
    """Raises ValueError for the first field that SageMaker would refuse."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    if report := ParamValidator().validate(request, shape).generate_report():
        raise ValueError(report)
    check_field("", request, shape)


def check_field(name: str, value: Any, shape: Any) -> None:
    """Checks a value and all that it contains."""
    kind, limits = shape.type_name, shape.metadata
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if kind == "list" else ():
        if kind == "structure":
            check_field(f"{name}.{key}".lstrip("."), item, shape.members[key])
        elif kind == "map":
            check_field(f"{name} {key}", key, shape.key)
            check_field(f"{name} {key}", item, shape.value)
        else:
            check_field(f"{name}[{key}]", item, shape.member)
    if "enum" in limits and value not in limits["enum"]:
        similar = " or ".join(difflib.get_close_matches(value, limits["enum"]) or limits["enum"][:3])
        raise ValueError(f"{name}={value}: SageMaker does not know it; did you mean {similar}?")
    most = limits.get("max", float("inf"))
    if kind in UNITS and (size := len(value) if UNITS[kind] else value) > most:
        raise ValueError(f"{name}: {size}{UNITS[kind]}, where SageMaker allows {most} at most")
    pattern = limits.get("pattern", "")
    if pattern and r"\p{" not in pattern and not re.fullmatch(pattern, value, re.DOTALL):  # \p is Java's alone
        raise ValueError(f"{name}={value}: must have the form {pattern}")
