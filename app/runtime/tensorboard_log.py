"""TensorBoard's log of a run, which continues after an interruption."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from runtime.errors import warn
from runtime.files import check_writable, write_atomically
from runtime.private_lightning import continue_version

MAX_BYTES = 10_000_000  # total size of the event files in a checkpoint


class TensorBoardLog(TensorBoardLogger):
    """A TensorBoardLogger that also saves its event files in checkpoints.

    So they survive the loss of a host. If the files exceed 10 MB in total, for example because of many
    images, none of them is saved.
    """

    _next_step = 0

    def __init__(self, save_dir: str, **kwargs: Any):
        check_writable(save_dir)
        super().__init__(save_dir, **kwargs)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._next_step = max(self._next_step, (step or 0) + 1)
        super().log_metrics(metrics, step)

    def state_dict(self) -> dict[str, Any]:
        self.experiment.flush()
        paths = [path for path in Path(self.log_dir).glob("events.*") if ".sagemaker-" not in path.name]
        if sum(path.stat().st_size for path in paths) > MAX_BYTES:
            paths = []
            warn("the TensorBoard log exceeds 10 MB and is not in checkpoints: if this host is lost, so is it")
        files = {path.name: path.read_bytes() for path in paths}
        return {"version": self.version, "files": files, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the log that was saved in `state`, in the same folder unless a version was passed."""
        self._next_step = state["next_step"]
        continue_version(self, state["version"], self._next_step)
        for name, content in state["files"].items():
            write_atomically(content, Path(self.log_dir, name))
