"""Which checkpoint a run goes on from, decided before anything is trained or written."""

import contextlib
from itertools import takewhile
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from sagemaker_env import in_sagemaker, job_name

from runtime.checkpoint_files import end_mark, read_checkpoint
from runtime.errors import BadInput


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
    before = checkpoint["resume"]["options"]
    if others := sorted(name for name in before | options if options and before.get(name) != options.get(name)):
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
