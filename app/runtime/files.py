"""Writing files: whether it can be done at all, and so that a power cut leaves all of a file on disk."""

import io
import os
import tempfile
from pathlib import Path

import torch


def check_writable(directory: str) -> None:
    """Raises OSError if nothing can be written to `directory`, existing or not, and leaves no trace."""
    if "://" in directory:
        raise ValueError(f"{directory} must be a folder; run_sagemaker.py can have SageMaker copy a folder to S3")
    path = Path(directory).absolute()
    while not os.path.lexists(path):
        path = path.parent
    tempfile.TemporaryFile(dir=path).close()


def to_bytes(obj: object) -> memoryview:
    """What `torch.save` makes of an object: a zip file, whose members have checksums."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getbuffer()


def write_durably(content: bytes | memoryview, path: Path) -> None:
    """Writes a file that is on disk when this returns; OSError, and no file, if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def write_atomically(content: bytes | memoryview, path: Path) -> None:
    """Writes a file that appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    write_durably(content, partial)
    os.replace(partial, path)
