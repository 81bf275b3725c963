"""A network and a data module for the tests' command lines."""

import hashlib
import os
import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from cifar10 import SyntheticCIFAR10DataModule
from pytorch_lightning import Callback, LightningModule, Trainer
from resnet import Classifier
from torch import nn


class Tiny(Classifier):
    """Trains in milliseconds, without BatchNorm, so that the loss does not depend on how a batch is divided."""

    def __init__(self, num_classes: int):
        super().__init__(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes)))


class Recording(SyntheticCIFAR10DataModule):
    """Writes down which samples each rank sees, in files `<split>-<rank>` of the current folder."""

    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int):
        if not self.trainer.sanity_checking:
            with open(Path(f"{self.trainer.state.stage.value}-{self.trainer.global_rank}"), "a") as file:
                file.writelines(f"{self.trainer.current_epoch} {index}\n" for index in batch.tolist())
        return super().on_after_batch_transfer(batch, dataloader_idx)


class PrintWeights(Callback):
    """Each rank prints a checksum of the weights that it has in the end."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = torch.cat([weight.detach().double().flatten() for weight in pl_module.state_dict().values()])
        checksum = hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()
        print(f"rank={trainer.global_rank} world_size={trainer.world_size} weights={checksum}", flush=True)


class ExitOnSigterm(Callback):
    """Ends each process with exit code 7 when SIGTERM arrives."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.exit)

    def exit(self, signum: int, frame: FrameType | None) -> NoReturn:
        print("got SIGTERM", flush=True)
        os._exit(7)


class Fail(Callback):
    """Raises after the first epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("as the test wants it")
