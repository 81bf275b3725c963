"""Checks a CreateTrainingJob request against botocore's model of it."""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

# Java's classes of characters, which Python does not know.
JAVA = {r"\p{L}\p{Z}\p{N}": r"\w\s", r"\p{Alnum}": "a-zA-Z0-9"}
UNITS = {"string": " characters", "map": " entries", "list": " entries", "integer": "", "long": ""}


@cache
def request_shape() -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape


def check_request(request: dict[str, Any]) -> None:
    """Raises ValueError for the first field of a request, or of a part of it, that SageMaker would refuse."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(request, request_shape()).generate_report().splitlines()
    for line in report:
        if line.startswith(("Invalid type", "Unknown parameter")):
            raise ValueError(line)
    for name, value, shape in fields_of(request, request_shape(), ""):
        check_field(name, value, shape)


def fields_of(value: Any, shape: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and shape of a value and of all that it contains."""
    if shape.type_name == "structure":
        for key, item in value.items():
            yield from fields_of(item, shape.members[key], f"{name}.{key}".lstrip("."))
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from fields_of(key, shape.key, f"{name} {key}")
            yield from fields_of(item, shape.value, f"{name} {key}")
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            yield from fields_of(item, shape.member, f"{name}[{index}]")
    yield name, value, shape


def check_field(name: str, value: Any, shape: Any) -> None:
    kind, limits = shape.type_name, shape.metadata
    if "enum" in limits and value not in limits["enum"]:
        similar = " or ".join(difflib.get_close_matches(value, limits["enum"]) or limits["enum"][:3])
        raise ValueError(f"{name}={value}: SageMaker does not know it; did you mean {similar}?")
    if kind in UNITS:
        size = value if kind in ("integer", "long") else len(value)
        least, most = limits.get("min", 0), limits.get("max")
        if size < least or (most is not None and size > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise ValueError(f"{name}: {size}{UNITS[kind]}, where SageMaker allows {allowed}")
    if "pattern" in limits:
        pattern = limits["pattern"]
        for java, python in JAVA.items():
            pattern = pattern.replace(java, python)
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"{name}={value}: must have the form {pattern}")
