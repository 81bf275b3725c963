"""Modules and callbacks with habits of public Lightning projects that a training program must cope with."""

import atexit
import threading
import time
from pathlib import Path
from typing import Any

import torch
from projects import ReturnsTensor
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


class Adjustable(ReturnsTensor):
    """A module with a learning rate that LearningRateFinder can change."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class GrowingMemory(ReturnsTensor):
    """A module with a buffer that grows in each step, and is resized before its weights are loaded."""

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.memory = torch.cat([self.memory, loss.detach().view(1)])
        return loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.memory = torch.zeros_like(checkpoint["state_dict"]["memory"])


class BestInTheMiddle(ReturnsTensor):
    """A module whose second of four validations in an epoch is the best."""

    def on_fit_start(self) -> None:
        self.values = iter((0.5, 0.1, 0.7, 0.9))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("val_loss", next(self.values, 0.9))


class BestAtFirst(ReturnsTensor):
    """A module whose first epoch is the best, by a metric with a slash in its name."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", float(self.current_epoch))


class PartlySaved(ReturnsTensor):
    """A module that leaves its frozen part out of checkpoints, and loads them with `strict_loading=False`."""

    def __init__(self):
        super().__init__()
        self.strict_loading = False
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.frozen.bias.fill_(float("nan"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {name: value for name, value in self.state_dict().items() if "frozen" not in name}


class Lazy(ReturnsTensor):
    """A compiled module with a layer whose shape is unknown before the first batch, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.layer = torch.compile(nn.Sequential(Words(), nn.LazyLinear(3)), backend="eager")


class Words(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 0}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"a": 0}

    def forward(self, features: Tensor) -> Tensor:
        return features


class Pictures(ReturnsTensor):
    """A module that logs 6 MB of images per epoch."""

    def on_train_epoch_end(self) -> None:
        images = torch.randint(0, 255, (2, 3, 1024, 1024), dtype=torch.uint8)
        for number, image in enumerate(images):
            self.logger.experiment.add_image(f"random/{number}", image, self.global_step)


class BadConstructor(ReturnsTensor):
    def __init__(self, width: int = 10):
        super().__init__()
        self.mix = nn.MultiheadAttention(width, num_heads=4)


def make_network() -> ReturnsTensor:
    return ReturnsTensor()


class FailAlone(Callback):
    """Makes rank 1 fail at step 3; its device then blocks, as does the end of its process.

    A GPU behaves like this if it waits for a peer, and NCCL has a handler that runs when a process ends.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            trainer.strategy.teardown = lambda: time.sleep(600)
            atexit.register(time.sleep, 600)
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            raise RuntimeError("rank 1 fails alone")


class CountBroadcasts(Callback):
    """Writes the number of broadcasts in the training steps to the file `broadcasts`."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            original = torch.distributed.broadcast
            self.count = 0

            def counting(*args: Any, **kwargs: Any) -> Any:
                self.count += 1
                return original(*args, **kwargs)

            torch.distributed.broadcast = counting

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 8 and trainer.is_global_zero:
            Path("broadcasts").write_text(str(self.count))
