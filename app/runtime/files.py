"""Writing files: can it be done at all, and never by halves."""

import io
import os
import tempfile
from pathlib import Path

import torch


def check_writable(directory: str) -> None:
    """Raises OSError if nothing can be written to `directory`, existing or not, and leaves no trace."""
    path = Path(directory).absolute()
    while not os.path.lexists(path):
        path = path.parent
    tempfile.TemporaryFile(dir=path).close()


def save_atomically(obj: object, path: Path) -> None:
    """`torch.save` by `write_atomically`."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    write_atomically(buffer.getbuffer(), path)


def write_atomically(content: bytes | memoryview, path: Path) -> None:
    """Writes a file that is complete on disk under its final name or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    finally:
        partial.unlink(missing_ok=True)
