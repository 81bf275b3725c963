"""The best network of a run."""

import os
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from runtime.checkpoint_files import read_checkpoint
from runtime.errors import warn


class BestNetwork(ModelCheckpoint):
    """A ModelCheckpoint that does nothing if its metric is not logged, and finds its file if the folder has moved.

    Args:
        dirpath: Folder of the checkpoints.
        every_n_train_steps: Least number of steps between two checkpoints inside an epoch; 0 is no limit.
        every_n_minutes: Least minutes between two checkpoints inside an epoch; 0 is no limit.
        **kwargs: As for ModelCheckpoint, for the best network.
    """

    def __init__(
        self, dirpath: str, every_n_train_steps: NonNegativeInt = 0, every_n_minutes: NonNegativeFloat = 5.0, **kwargs
    ):
        super().__init__(dirpath, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs)
        self.folder, self.every_n_steps, self.every_n_seconds = Path(dirpath), every_n_train_steps, every_n_minutes * 60

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(self.dirpath, os.path.basename(path)) if path else path

        moved = {key: here(value) for key, value in state_dict.items() if key.endswith("_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": models, "dirpath": self.dirpath})

    def load(self, trainer: Trainer, model: LightningModule) -> None:
        """Gives `model` the best network's weights, or leaves it as it is and says why."""
        # Only the first rank's host has the file; whatever is done next, Lightning sends the weights to the others.
        if trainer.is_global_zero and not trainer.fast_dev_run:
            try:
                if not self.best_model_path:
                    raise ValueError(f"{self.monitor} was never logged")
                model.load_state_dict(read_checkpoint(Path(self.best_model_path))["state_dict"])
            except ValueError as error:
                warn(f"the last network is tested and exported, not the best: {error}")
