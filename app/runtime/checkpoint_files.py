"""Checkpoint files: each has a name of its own, and is verified before a run resumes from it."""

import contextlib
import fcntl
import os
import socket
import time
import zipfile
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from sagemaker_env import in_sagemaker, job_name
from torch.nn.parameter import is_lazy

from runtime.errors import warn
from runtime.files import PARTIAL, to_bytes, write_atomically

# SageMaker's agent may still be copying a newer file to S3.
SECONDS_BEFORE_DELETION = 600


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints, and keeps the last two of a run.

    No checkpoint is renamed once it has its final name, because SageMaker, which copies the folder to S3 all
    the time, would copy it again. A failure to write does not end the run; it is kept in `error`.

    Args:
        folder: Folder of the checkpoints.
    """

    error: OSError | None = None

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.kept: list[Path] = []  # of this run, the newest last
        self._lock: IO | None = None
        self._superseded: dict[Path, float] = {}

    def lock(self) -> None:
        """Creates the folder, and marks it as used by this process until it ends, however it ends.

        Does nothing if the disk is full or the file system has no locks.

        Raises:
            ValueError: If a different process uses it.
        """
        path = self.folder / f".lock{PARTIAL}"
        with contextlib.suppress(OSError):  # a full disk, or a file system without locks
            self.folder.mkdir(parents=True, exist_ok=True)
            # Closing the file would release the lock.
            self._lock = self._lock or open(path, "a", buffering=1)  # noqa: SIM115
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=self._lock)
            except BlockingIOError as error:
                reason = f"{self.folder} is in use by {path.read_text().strip()}"
                raise ValueError(f"{reason}; wait until it ends, or pass a different --checkpoint.dirpath") from error

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        self._superseded.pop(Path(path), None)
        try:
            write_atomically(to_bytes(checkpoint), Path(path))
            self.error = None
        except OSError as error:
            self.error = error
            warn(f"could not write {path} ({error}); for now, this run can resume only from an earlier checkpoint")

    def remove_checkpoint(self, path: str | Path) -> None:
        # A resumed run still needs the best network until the next checkpoint refers to its successor.
        self._superseded.setdefault(Path(path), time.monotonic())

    def paths(self) -> list[Path]:
        """Returns all files last-step=….ckpt, including those of earlier runs, the highest step first."""
        steps = {path: path.stem.removeprefix("last-step=") for path in self.folder.glob("last-step=*.ckpt")}
        numbered = [path for path, step in steps.items() if step.isdigit()]
        return sorted(numbered, key=lambda path: int(steps[path]), reverse=True)

    def keep(self, path: Path) -> None:
        """Keeps a new last-step=….ckpt and the one before.

        Deletes all others, in SageMaker after a while.
        """
        self.kept = [*self.kept, path][-2:]
        for other in set(self.paths()) - set(self.kept):
            self.remove_checkpoint(other)
        for partial in self.folder.glob(f"*.ckpt.*{PARTIAL}"):  # of a run that was killed
            partial.unlink(missing_ok=True)
        for other, since in list(self._superseded.items()):
            markers = [path.suffix for path in self.folder.glob(f"{other.name}.sagemaker-*")]
            is_uploading = markers == [".sagemaker-uploading"]
            is_old = time.monotonic() - since >= SECONDS_BEFORE_DELETION
            if not in_sagemaker() or (is_old and not is_uploading):
                other.unlink(missing_ok=True)
                finished_marker(other).unlink(missing_ok=True)
                del self._superseded[other]

    def mark_finished(self) -> None:
        """Records that the run of the newest checkpoint is complete: training, test and export."""
        for path in self.kept[-1:]:
            finished_marker(path).touch()

    def find_resumable(self, ckpt_path: str | None, model: LightningModule, options: dict) -> dict | None:
        """Returns the checkpoint to resume from, or None to start from scratch.

        Args:
            ckpt_path: A path, `last`, `none`, or None for the newest checkpoint of an unfinished run with
                `options`.
            model: Module that must have the same parameter shapes.
            options: Options of this run.

        Raises:
            ValueError: If the checkpoint of `ckpt_path` cannot be used.
        """
        paths = self.paths()
        own = [path for path in paths if belongs_to_this_job(path)] if ckpt_path and job_name() else []
        if own:  # SageMaker has restarted the job: the path or `none` was for its first start
            ckpt_path, paths = None, own
        if ckpt_path is None:
            paths = list(takewhile(lambda path: not finished_marker(path).exists(), paths))
        elif ckpt_path != "last":
            paths = [] if ckpt_path == "none" else [Path(ckpt_path)]
        for path in paths:
            try:
                saved = load_compatible(path, model, options if ckpt_path is None else {})
                print(f"resuming from {path} (step {saved['global_step']}, epoch {saved['epoch']})", flush=True)
                self.kept = [path]
                return saved
            except ValueError as error:
                if ckpt_path not in (None, "last"):
                    raise ValueError(f"--ckpt_path={path}: {error}") from error
                print(f"skipping {path}: {error}; this run will delete it when it saves a checkpoint", flush=True)
        if ckpt_path == "last":
            raise ValueError("--ckpt_path=last: no checkpoint to resume from in --checkpoint.dirpath")
        return None


def finished_marker(path: Path) -> Path:
    """Returns the file that marks the run of a checkpoint as finished."""
    return path.with_suffix(".ended")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns a checkpoint.

    Raises ValueError if the file is missing or damaged. `torch.load` itself verifies no checksum.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if member := file.testzip():
                raise ValueError(f"checksum mismatch in {member}")
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path.name} is not a readable checkpoint of train.py ({str(error)[:200]})") from error


def belongs_to_this_job(path: Path) -> bool:
    with contextlib.suppress(ValueError):
        return read_checkpoint(path)["resume"]["job"] == job_name()
    return False


def load_compatible(path: Path, model: LightningModule, options: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint.

    Raises ValueError if it is missing or damaged, or if parameter shapes or `options` differ.
    """
    checkpoint = read_checkpoint(path)
    if "resume" not in checkpoint:
        raise ValueError("not a checkpoint of train.py")
    if not has_same_shapes(checkpoint["state_dict"], model):
        raise ValueError("has different parameter names or shapes than this network")
    saved = checkpoint["resume"]["options"] if options else {}
    different = sorted(name for name in saved | options if saved.get(name) != options.get(name))
    if different:
        raise ValueError(f"has a different {', '.join(different)} (--ckpt_path={path} resumes from it)")
    # SageMaker copies files in any order: if the best network is missing, an older checkpoint may be
    # complete.
    best = checkpoint["resume"]["best"]
    if best and options and in_sagemaker():
        read_checkpoint(path.parent / best)
    return checkpoint


def has_same_shapes(saved: dict[str, Any], model: LightningModule) -> bool:
    """Returns whether a module can load saved weights, as far as this is known before training."""
    may_change = any(is_overridden(hook, model) for hook in ("configure_model", "setup", "on_load_checkpoint"))
    if may_change or any(is_lazy(weight) for weight in model.parameters()):
        return True
    weights = model.state_dict()
    if model.strict_loading and saved.keys() != weights.keys():
        return False
    names = saved.keys() & weights.keys()
    return all(getattr(saved[name], "shape", None) == getattr(weights[name], "shape", None) for name in names)
