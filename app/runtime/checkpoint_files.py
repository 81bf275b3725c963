"""Checkpoint files: each is written once under a name of its own, and is verified when a run goes on from it."""

import contextlib
import re
import time
import zipfile
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from sagemaker_env import in_sagemaker, job_name

from runtime.errors import BadInput, warn
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


def find_checkpoint(
    paths: list[Path], ckpt_path: str | None, model: LightningModule, options: dict[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, with its path; none for a run that starts anew.

    Args:
        paths: Those in the run's folder, the newest first.
        ckpt_path: As --help explains it.
        options: What the two runs must have in common, if `ckpt_path` does not name a checkpoint.

    Raises:
        BadInput: The checkpoint that was named cannot be used.
    """
    if ckpt_path and job_name() and any(is_of_this_job(path) for path in paths):
        ckpt_path = None  # SageMaker has restarted the job, whose own checkpoints are newer
    if ckpt_path is None:
        paths = list(takewhile(lambda path: not end_mark(path).exists(), paths))
    elif ckpt_path != "last":
        paths = [] if ckpt_path == "none" else [Path(ckpt_path)]
    for path in paths:
        try:
            return path, read_fitting(path, model, options if ckpt_path is None else {})
        except ValueError as error:
            if ckpt_path not in (None, "last"):
                raise BadInput(f"--ckpt_path: {error}") from error
            print(f"not used: {error}", flush=True)
    if ckpt_path == "last":
        raise BadInput("--ckpt_path=last: there is no checkpoint to go on from in --checkpoint.dirpath")
    if paths:
        print("starting anew, as there is no checkpoint to go on from", flush=True)
    return None


def is_of_this_job(path: Path) -> bool:
    with contextlib.suppress(ValueError):
        return read_checkpoint(path)["resume"]["job"] == job_name()
    return False


def read_fitting(path: Path, model: LightningModule, options: dict[str, Any]) -> dict[str, Any]:
    """ValueError if a file is damaged, of another network, or of a run with other options, if there are any."""
    checkpoint = read_checkpoint(path)
    if "resume" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of train.py")
    # Lightning may build more of the network later.
    is_built = not (is_overridden("configure_model", model) or is_overridden("setup", model))
    if is_built and shapes(checkpoint["state_dict"]) != shapes(model.state_dict()):
        raise ValueError(f"{path} is of another network")
    before = checkpoint["resume"]["options"] if options else {}
    if others := sorted(name for name in before | options if before.get(name) != options.get(name)):
        raise ValueError(
            f"{path} is of a run with another {', '.join(others)}; it will be replaced unless you stop now and say "
            f"--ckpt_path={path}"
        )
    # SageMaker's agent copies the files in any order, and an older checkpoint may have all that it knows of.
    for name, state in checkpoint["callbacks"].items() if options and in_sagemaker() else []:
        if name.startswith("BestNetwork") and state["best_model_path"]:
            read_checkpoint(path.with_name(Path(state["best_model_path"]).name))
    return checkpoint


def shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}
