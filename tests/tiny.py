"""A network and a data module for the tests' command lines."""

from pathlib import Path

import torch
from cifar10 import SyntheticCIFAR10DataModule
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
