"""Checkpoint files: each is written once, under a name of its own, and its checksums are verified when it is read."""

import contextlib
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from sagemaker_env import in_sagemaker

from runtime.errors import one_line, warn
from runtime.files import to_bytes, write_durably

# SageMaker's agent may still be copying a younger file to S3.
SECONDS_BEFORE_DELETION = 600


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints. A failure is told in one line, kept in `error`, and tolerated.

    No file is renamed: SageMaker, which copies the folder to S3 all the time, would copy it again. A file that was cut
    off has lost its checksums, so that it is not used.
    """

    error: OSError | None = None

    def __init__(self):
        self._superseded: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        try:
            write_durably(to_bytes(checkpoint), Path(path))
            self.error = None
        except OSError as error:
            self.error = error
            warn(f"training goes on without {path}, which could not be written and will be tried again: {error}")

    def remove_checkpoint(self, path: str) -> None:
        """Keeps a file that Lightning does not want any more until the next checkpoint knows its successor."""
        self._superseded.append(path)

    def remove_superseded(self) -> None:
        while self._superseded:
            super().remove_checkpoint(self._superseded.pop())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """ValueError if the file is damaged: torch.load itself compares no checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            if member := file.testzip():
                raise ValueError(f"{member} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a damaged file can raise anything
        reason = one_line(error)[:200]
        raise ValueError(f"{path} cannot be read, or is no checkpoint of train.py ({reason})") from error


class CheckpointFolder:
    """The files `last-step=N.ckpt` of a folder, of which the last two of a run are kept. It depends on no clock time.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.newest: Path | None = None  # of this run
        self._kept: list[Path] = []
        self._ages_from: dict[Path, float] = {}
        self._start = time.monotonic()

    def file(self, step: int) -> Path:
        return self.path / f"last-step={step}.ckpt"

    def files(self) -> list[Path]:
        """All of them, also of earlier runs, the highest step first."""
        numbered = [(re.search(r"=(\d+)$", path.stem), path) for path in self.path.glob("last-step=*.ckpt")]
        return [path for _, path in sorted(((int(step[1]), path) for step, path in numbered if step), reverse=True)]

    def is_of_job(self, job: str | None) -> bool:
        """Whether any file was written by that SageMaker job."""
        for path in self.files() if job else []:
            with contextlib.suppress(ValueError):
                if read_checkpoint(path)["resume"]["job"] == job:
                    return True
        return False

    def has_ended(self, path: Path) -> bool:
        """Whether a file is of a run of which nothing is left to do, neither training nor test nor export."""
        return end_mark(path).exists()

    def go_on_from(self, path: Path) -> None:
        """Makes a file one of this run."""
        self.newest, self._kept = path, [path]

    def keep(self, path: Path) -> None:
        """Keeps a new file of this run, and the one before; deletes all others, in SageMaker after a while."""
        self.newest, self._kept = path, [*self._kept, path][-2:]
        self._ages_from[path] = time.monotonic()
        for other in set(self.files()) - set(self._kept):
            age = time.monotonic() - self._ages_from.get(other, self._start)
            if not in_sagemaker() or age >= SECONDS_BEFORE_DELETION:
                delete(other)

    def mark_the_end(self) -> None:
        """Keeps the newest file only, and says that its run has ended. SageMaker may repeat a job, though."""
        if self.newest and not in_sagemaker():
            for other in set(self.files()) - {self.newest}:
                delete(other)
            end_mark(self.newest).touch()


def end_mark(path: Path) -> Path:
    return path.with_suffix(".ended")


def delete(path: Path) -> None:
    for each in path, end_mark(path):
        each.unlink(missing_ok=True)
