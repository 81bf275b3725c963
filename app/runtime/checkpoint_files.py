"""Checkpoint files: each is written once, under a name of its own, and its checksums are verified when it is read."""

import re
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from sagemaker_env import in_sagemaker

from runtime.errors import warn
from runtime.files import to_bytes, write_durably

# SageMaker's agent may still be copying a younger file to S3.
SECONDS_BEFORE_DELETION = 600


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints. A failure is told in one line, kept in `error`, and tolerated."""

    # No file is renamed: SageMaker, which copies the folder to S3 all the time, would copy it again.

    error: OSError | None = None

    def __init__(self) -> None:
        super().__init__()
        self.superseded: dict[str, float] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        try:
            write_durably(to_bytes(checkpoint), Path(path))
            self.error = None
        except OSError as error:
            self.error = error
            warn(f"training goes on without {path}, which could not be written and will be tried again: {error}")

    def remove_checkpoint(self, path: str) -> None:
        # Until the next checkpoint knows its successor, a run may have to go on with this one.
        self.superseded[path] = time.monotonic()

    def remove_superseded(self) -> None:
        for path, since in list(self.superseded.items()):
            if not in_sagemaker() or time.monotonic() - since >= SECONDS_BEFORE_DELETION:
                super().remove_checkpoint(path)
                del self.superseded[path]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """ValueError if the file is damaged: torch.load itself compares no checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            if member := file.testzip():
                raise ValueError(f"{member} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read, or is no checkpoint of train.py ({str(error)[:200]})") from error


class CheckpointFolder:
    """The files `last-step=N.ckpt` of a folder, of which the last two of a run are kept. No clock time matters."""

    def __init__(self, path: Path):
        self.path = path
        self.kept: list[Path] = []  # of this run, the newest last
        self._times: dict[Path, float] = {}
        self._start = time.monotonic()

    def file(self, step: int) -> Path:
        return self.path / f"last-step={step}.ckpt"

    def files(self) -> list[Path]:
        """All of them, also of earlier runs, the highest step first."""
        numbered = [(re.search(r"=(\d+)$", path.stem), path) for path in self.path.glob("last-step=*.ckpt")]
        return [path for _, path in sorted(((int(step[1]), path) for step, path in numbered if step), reverse=True)]

    def keep(self, path: Path) -> None:
        """Keeps a new file of this run, and the one before; deletes all others, in SageMaker after a while."""
        self.kept = [*self.kept, path][-2:]
        self._times[path] = now = time.monotonic()
        for other in set(self.files()) - set(self.kept):
            if not in_sagemaker() or now - self._times.get(other, self._start) >= SECONDS_BEFORE_DELETION:
                other.unlink(missing_ok=True)
                end_mark(other).unlink(missing_ok=True)


def end_mark(path: Path) -> Path:
    """The file that says of a checkpoint that nothing of its run is left to do: training, test and export."""
    return path.with_suffix(".ended")
