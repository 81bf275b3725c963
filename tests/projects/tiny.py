"""Small networks, a data module and callbacks for the command lines of tests."""

import hashlib
import os
import threading
import time
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from resnet import Classifier
from runtime import checkpoint_files
from synthetic import SyntheticCIFAR10DataModule
from torch import nn


class Tiny(Classifier):
    """A network that trains in milliseconds; without BatchNorm, so that the loss does not depend on the batch split."""

    def __init__(self, num_classes: int = 10):
        super().__init__(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes)))


class Dropout(Classifier):
    """A network that draws random numbers in each step."""

    def __init__(self, num_classes: int = 10):
        super().__init__(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, num_classes)))


class Recording(SyntheticCIFAR10DataModule):
    """Records the samples of each rank as lines `epoch sample` in files `<split>-<rank>` of the current folder."""

    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int):
        if not self.trainer.sanity_checking:
            with open(Path(f"{self.trainer.state.stage.value}-{self.trainer.global_rank}"), "a") as file:
                file.writelines(f"{self.trainer.current_epoch} {index}\n" for index in batch.tolist())
        return super().on_after_batch_transfer(batch, dataloader_idx)


class PrintWeights(Callback):
    """Prints a checksum of the final weights of each rank."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = torch.cat([weight.detach().double().flatten() for weight in pl_module.state_dict().values()])
        checksum = hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()
        print(f"rank={trainer.global_rank} world_size={trainer.world_size} weights={checksum}", flush=True)


class Fail(Callback):
    """Raises RuntimeError in the last rank after the first epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == trainer.world_size - 1:
            raise RuntimeError("as the test wants it")


class Drill(Callback):
    """Slows down each batch, writes the step to a file, and sends a signal to its own process.

    Args:
        file: File for the current step. `file`.first is created after the first step, `file`.killed with the signal.
        seconds: Seconds added to each training and validation batch.
        hook: Hook of Lightning in which to send the signal, or "save" for the middle of saving a checkpoint.
        step: The earliest step at which to send the signal.
        rank: The rank that sends itself the signal.
        signum: The signal.
        seconds_before_deletion: Replaces the ten minutes that SageMaker's agent gets to copy a checkpoint.
    """

    def __init__(
        self,
        file: str,
        seconds: float = 0.0,
        hook: str = "",
        step: int = 0,
        rank: int = 0,
        signum: int = 9,
        seconds_before_deletion: float | None = None,
    ):
        if seconds_before_deletion is not None:
            assert checkpoint_files.SECONDS_BEFORE_DELETION
            checkpoint_files.SECONDS_BEFORE_DELETION = seconds_before_deletion
        self.file, self.seconds, self.hook, self.step, self.rank, self.signum = file, seconds, hook, step, rank, signum

    def send_signal(self, hook: str, trainer: Trainer) -> None:
        is_now = hook == self.hook and trainer.global_step >= self.step and not trainer.sanity_checking
        if is_now and trainer.global_rank == self.rank:
            self.kill()

    def kill(self) -> None:
        Path(f"{self.file}.killed").touch()
        os.kill(os.getpid(), self.signum)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hook == "save" and trainer.is_global_zero:
            directory = Path(trainer.checkpoint_callback.dirpath)
            threading.Thread(target=self.watch, args=(trainer, directory), daemon=True).start()

    def watch(self, trainer: Trainer, directory: Path) -> None:
        known = set(directory.glob("*.ckpt"))
        while trainer.global_step < self.step or not set(directory.glob("*.ckpt")) - known:
            time.sleep(0.0005)
            if trainer.global_step < self.step:
                known = set(directory.glob("*.ckpt"))
        self.kill()

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:
        self.send_signal("on_train_batch_start", trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        time.sleep(self.seconds)
        if trainer.is_global_zero:
            Path(f"{self.file}.new").write_text(str(trainer.global_step))
            os.replace(f"{self.file}.new", self.file)
            if not Path(f"{self.file}.first").exists():
                Path(f"{self.file}.first").touch()
        self.send_signal("on_train_batch_end", trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        time.sleep(self.seconds)
        self.send_signal("on_validation_batch_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.send_signal("on_train_epoch_end", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.send_signal("on_test_start", trainer)
