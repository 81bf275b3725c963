"""The best network of a run, and its exported weights."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from runtime.checkpoint_files import read_checkpoint
from runtime.errors import warn
from runtime.files import to_bytes, write_atomically


class BestNetwork(ModelCheckpoint):
    """Saves the best network by the metric `monitor`, and skips epochs without this metric.

    It finds the file of the best network even after `dirpath` has moved.

    Args:
        dirpath: Folder of the checkpoints.
        **kwargs: As for ModelCheckpoint, for the best network.
    """

    def __init__(self, dirpath: str, **kwargs):
        super().__init__(dirpath, enable_version_counter=False, **kwargs)
        self.folder = Path(dirpath).expanduser()

    @property
    def file_name(self) -> str:
        """Path of the best network's checkpoint, relative to the folder, or "" if there is none."""
        return os.path.relpath(self.best_model_path, self.dirpath) if self.best_model_path else ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def in_this_folder(path: str) -> str:
            return os.path.join(self.dirpath, os.path.relpath(path, state_dict["dirpath"])) if path else path

        paths = {key: in_this_folder(value) for key, value in state_dict.items() if key.endswith("_path")}
        scores = {in_this_folder(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": scores, "dirpath": self.dirpath})

    def load_weights(self, trainer: Trainer, model: LightningModule) -> None:
        """Gives `model` the best network's weights, or leaves it unchanged and warns why."""
        # Only the host of rank 0 has the file; Lightning sends the weights to the other ranks when it tests.
        if trainer.is_global_zero and not trainer.fast_dev_run:
            try:
                if not self.best_model_path:
                    raise ValueError(f"no best checkpoint exists; log {self.monitor}, or set --checkpoint.monitor")
                checkpoint = read_checkpoint(Path(self.best_model_path))
                model.on_load_checkpoint(checkpoint)
                model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
            except ValueError as error:
                warn(f"using the final weights instead of the best: {error}")


def export_weights(trainer: Trainer, model: LightningModule, path: Path) -> None:
    """Writes the weights of a module, on the CPU, for `torch.load(path, weights_only=True)`.

    If the module has no parameters other than those of its attribute `network`, they are named as in that
    network.
    """
    if trainer.is_global_zero and not trainer.fast_dev_run:
        weights = move_data_to_device(model.state_dict(), torch.device("cpu"))
        prefix = "network." if all(name.startswith("network.") for name in weights) else ""
        # torch.compile adds the other prefix.
        weights = {key.removeprefix(prefix).replace("_orig_mod.", ""): value for key, value in weights.items()}
        write_atomically(to_bytes(weights), path)
