"""Which checkpoint a run goes on from, decided before anything is trained or written."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from sagemaker_env import job_name

from runtime.checkpoint_files import CheckpointFolder, read_checkpoint
from runtime.errors import BadInput

START_ANEW = "start anew with --ckpt_path=none"


def find_checkpoint(
    folder: CheckpointFolder | None, ckpt_path: str | None, model: LightningModule, options: dict[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its path; none for a run that starts anew.

    Args:
        folder: Where the run has its checkpoints, if that is known.
        ckpt_path: Null is the newest of an interrupted run with the same options; "last" is the newest whatever the
            options, also of a run that has ended; "none" is none; anything else is a path.
        model: Whose weights it must hold.
        options: What the two runs must have in common.

    Raises:
        BadInput: The checkpoint that was named cannot be used.
    """
    paths = folder.files() if folder else []
    if ckpt_path and folder and folder.is_of_job(job_name()):
        ckpt_path = None  # SageMaker has restarted the job, whose own checkpoints are newer
    if ckpt_path == "none":
        return None
    is_path = ckpt_path not in (None, "last")
    if is_path:
        paths = [Path(ckpt_path)]
    elif ckpt_path is None:
        paths = [path for path in paths if not folder.has_ended(path)]
    for path in paths:
        try:
            return path, read_fitting(path, model, {} if ckpt_path else options)
        except ValueError as error:
            if is_path:
                raise BadInput(f"--ckpt_path: {error}") from error
            print(f"not used: {error}", flush=True)
    if ckpt_path:
        where = folder.path if folder else "the folder of a log that is not there yet"
        raise BadInput(f"--ckpt_path=last: there is no checkpoint in {where} to go on from; leave the option out")
    if paths:
        print("starting anew, as there is no checkpoint to go on from", flush=True)
    return None


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
    others = [name for name in before | options if before.get(name) != options.get(name)] if options else []
    if others:
        raise ValueError(
            f"{path} is of a run with another {', '.join(sorted(others))}; it will be replaced unless you stop now and "
            f"say --ckpt_path={path}"
        )
    return checkpoint


def shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}


def check_epochs(path: Path, checkpoint: dict[str, Any], max_epochs: int | None) -> None:
    """Raises BadInput if a checkpoint has done more epochs than the run may have."""
    num_epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < num_epochs:
        raise BadInput(
            f"{path} has done {num_epochs} epochs, more than --trainer.max_epochs={max_epochs}: raise that, or "
            f"{START_ANEW}"
        )
