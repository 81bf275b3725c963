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

from runtime.errors import warn
from runtime.files import to_bytes, write_durably

# SageMaker's agent may still be copying a younger file to S3.
SECONDS_BEFORE_DELETION = 600


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints, and keeps the last two of a run. A failure is kept in `error`, and tolerated."""

    # No file is renamed: SageMaker, which copies the folder to S3 all the time, would copy it again.

    error: OSError | None = None

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.kept: list[Path] = []  # of this run, the newest last
        self._superseded: dict[Path, float] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        self._superseded.pop(Path(path), None)
        try:
            write_durably(to_bytes(checkpoint), Path(path))
            self.error = None
        except OSError as error:
            self.error = error
            warn(f"training goes on without {path}, which could not be written and will be tried again: {error}")

    def remove_checkpoint(self, path: str | Path) -> None:
        # Until the next checkpoint knows its successor, a run may have to go on with this one.
        self._superseded.setdefault(Path(path), time.monotonic())

    def path(self, step: int) -> Path:
        return self.folder / f"last-step={step}.ckpt"

    def paths(self) -> list[Path]:
        """All of them, also of earlier runs, the highest step first."""
        numbered = [(re.search(r"=(\d+)$", path.stem), path) for path in self.folder.glob("last-step=*.ckpt")]
        return [path for _, path in sorted(((int(step[1]), path) for step, path in numbered if step), reverse=True)]

    def keep(self, path: Path) -> None:
        """Keeps a new file of this run, and the one before; deletes all others, in SageMaker after a while."""
        self.kept = [*self.kept, path][-2:]
        for other in set(self.paths()) - set(self.kept):
            self.remove_checkpoint(other)
        for other, since in list(self._superseded.items()):
            if not in_sagemaker() or time.monotonic() - since >= SECONDS_BEFORE_DELETION:
                other.unlink(missing_ok=True)
                end_mark(other).unlink(missing_ok=True)
                del self._superseded[other]

    def find(self, ckpt_path: str | None, model: LightningModule, options: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint to go on from, with these options unless `ckpt_path` names it; ValueError if it is no good."""
        paths = self.paths()
        if ckpt_path and job_name() and any(is_of_this_job(path) for path in paths):
            ckpt_path = None  # SageMaker has restarted the job, whose own checkpoints are newer
        if ckpt_path is None:
            paths = list(takewhile(lambda path: not end_mark(path).exists(), paths))
        elif ckpt_path != "last":
            paths = [] if ckpt_path == "none" else [Path(ckpt_path)]
        for path in paths:
            try:
                checkpoint = read_fitting(path, model, options if ckpt_path is None else {})
                step, epoch = checkpoint["global_step"], checkpoint["epoch"]
                print(f"going on from {path}, step {step} in epoch {epoch}", flush=True)
                self.kept = [path]
                return checkpoint
            except ValueError as error:
                if ckpt_path not in (None, "last"):
                    raise ValueError(f"--ckpt_path: {error}") from error
                print(f"not used: {error}", flush=True)
        if ckpt_path == "last":
            raise ValueError("--ckpt_path=last: there is no checkpoint to go on from in --checkpoint.dirpath")
        if paths:
            print("starting anew, as there is no checkpoint to go on from", flush=True)
        return None


def end_mark(path: Path) -> Path:
    """The file that says of a checkpoint that nothing of its run is left to do: training, test and export."""
    return path.with_suffix(".ended")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """ValueError if the file is damaged: torch.load itself compares no checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            if member := file.testzip():
                raise ValueError(f"{member} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read, or is no checkpoint of train.py ({str(error)[:200]})") from error


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
        reason = f"{path} is of a run with another {', '.join(others)}"
        raise ValueError(f"{reason}; it will be replaced unless you stop now and say --ckpt_path={path}")
    # SageMaker's agent copies the files in any order, and an older checkpoint may have all that it knows of.
    for name, state in checkpoint["callbacks"].items() if options and in_sagemaker() else []:
        if name.startswith("BestNetwork") and state["best_model_path"]:
            read_checkpoint(path.with_name(Path(state["best_model_path"]).name))
    return checkpoint


def shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}
