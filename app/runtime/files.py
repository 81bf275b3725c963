"""Writing files durably, and checking beforehand whether they can be written."""

import io
import os
import tempfile
from pathlib import Path

import torch

PARTIAL = ".sagemaker-ignore"  # SageMaker's agents do not copy files whose names end like this


def check_writable(directory: str) -> None:
    """Checks that files can be written to a folder, whether it exists or not, and leaves no trace.

    Raises:
        OSError: If nothing can be written there.
        ValueError: If it is an address such as s3://….
    """
    if "://" in directory:
        raise ValueError(f"{directory}: expected a local folder")
    path = Path(directory).expanduser().absolute()
    while not os.path.lexists(path):
        path = path.parent
    tempfile.TemporaryFile(dir=path).close()


def to_bytes(obj: object) -> memoryview:
    """Returns what `torch.save` writes: a zip file, whose members have checksums."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getbuffer()


def write_atomically(content: bytes | memoryview, path: Path) -> None:
    """Writes a file that appears under its name only when it is complete and on disk.

    Raises OSError if that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
