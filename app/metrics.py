"""What a run reports of itself: losses, accuracies, learning rate and images per second, over all ranks."""

import math
import time
from typing import Any

import torch
from checkpoints import gather
from pytorch_lightning import Callback, LightningModule, Trainer

KEYS = ("loss", "num_correct", "num_images")


class Metrics(Callback):
    """Adds up what the steps of a Classifier return, and logs it.

    Per epoch `{train,val,test}_loss`, `{train,val,test}_acc` and `images_per_second` (of training, all ranks together),
    and every `log_every_n_steps` batches `train_loss_step` and `lr`. What the steps return is only kept until then,
    because `self.log` in each of them would take 0.5 ms, as long as the rest of Lightning. With `print_epochs`, the
    metrics of each epoch are printed as one line of key=value pairs. Raises FloatingPointError for a loss that is none.
    """

    def __init__(self, print_epochs: bool):
        self.print_epochs = print_epochs
        self.images_per_second = 0.0
        self._outputs: list[dict[str, Any]] = []
        self._validating, self._state = False, {}
        self.on_train_epoch_start()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._val_metrics: dict[str, float] = {}
        self._train_sums = [0.0, 0.0, 0.0]
        self._start = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # at the end of the batch the scheduler has changed it

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        self._outputs.append(outputs)
        if trainer.log_every_n_steps and (batch_idx + 1) % trainer.log_every_n_steps == 0:
            loss, _, num_images = self._add_train_sums(trainer)
            self._write(trainer, train_loss_step=loss / num_images, lr=self._lr)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_train_sums(trainer)
        self._validating, self._pause = True, time.perf_counter()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._outputs.append(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sums = self._take_sums(trainer)
        if not trainer.sanity_checking:
            self._val_metrics = self._report(trainer, "val", sums)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = False
        self._start += time.perf_counter() - self._pause

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_train_sums(trainer)
        self.images_per_second = self._train_sums[2] / (time.perf_counter() - self._start)
        speed = {"images_per_second": self.images_per_second}
        self._write(trainer, **speed)
        progress = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self._print(trainer, progress | self._report(trainer, "train", self._train_sums) | self._val_metrics | speed)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self._report(trainer, "test", self._take_sums(trainer))
        self._write(trainer, hp_metric=metrics["test_acc"])  # beside the hyperparameters in TensorBoard
        self._print(trainer, metrics)

    def state_dict(self) -> dict[str, Any]:
        outputs = [] if self._validating else self._outputs
        return {
            "train_sums": self._train_sums,
            "val_metrics": self._val_metrics,
            "images_per_second": self.images_per_second,
            "seconds": (self._pause if self._validating else time.perf_counter()) - self._start,
            "outputs": gather([{key: torch.as_tensor(output[key]).cpu() for key in KEYS} for output in outputs]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self.images_per_second = state_dict, state_dict["images_per_second"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state:
            self._train_sums, self._val_metrics = self._state["train_sums"], self._state["val_metrics"]
            self._start = time.perf_counter() - self._state["seconds"]
            ranks = self._state["outputs"][trainer.global_rank :: trainer.world_size]  # there may be fewer than before
            device = trainer.strategy.root_device
            self._outputs = [{key: out[key].to(device) for key in out} for outputs in ranks for out in outputs]

    def _take_sums(self, trainer: Trainer) -> list[float]:
        """Sum of losses, number of correct answers and number of images since the last call, over all ranks."""
        outputs = [output for output in self._outputs if output["num_images"]]  # a rank's last batch may be empty
        self._outputs = []
        sums = torch.zeros(3, device=trainer.strategy.root_device)
        if outputs:
            num_images = torch.tensor([float(output["num_images"]) for output in outputs], device=sums.device)
            losses, num_correct = (torch.stack([output[key] for output in outputs]) for key in ("loss", "num_correct"))
            sums = torch.stack([losses.float() @ num_images, num_correct.sum(), num_images.sum()])
        return trainer.strategy.reduce(sums, reduce_op="sum").tolist()

    def _add_train_sums(self, trainer: Trainer) -> list[float]:
        """Adds `_take_sums` to those of the epoch, and returns them."""
        loss, *counts = self._take_sums(trainer)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in the last steps before step {trainer.global_step}")
        sums = [loss * trainer.accumulate_grad_batches, *counts]  # by which Lightning has divided the loss
        self._train_sums = [total + value for total, value in zip(self._train_sums, sums, strict=True)]
        return sums

    def _report(self, trainer: Trainer, stage: str, sums: list[float]) -> dict[str, float]:
        loss, num_correct, num_images = sums
        metrics = {f"{stage}_loss": loss / num_images, f"{stage}_acc": num_correct / num_images}
        self._write(trainer, **metrics)
        self.log_dict(metrics, logger=False, prog_bar=True)
        return metrics

    def _write(self, trainer: Trainer, **metrics: float) -> None:
        # That of the test is one further, so that a test repeated after an accident takes the place of the first.
        step = trainer.global_step + trainer.testing
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _print(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self.print_epochs and trainer.is_global_zero:
            print(*(f"{key}={value:.6g}" for key, value in metrics.items()), flush=True)
