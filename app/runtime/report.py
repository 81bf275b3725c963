"""What a run says of itself: what trains, the metrics of each epoch, and in the end where everything is."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from runtime.private_lightning import loaders, num_steps_done


class Report(Checkpoint):  # which Lightning calls after the module's own hooks, where most modules log
    """Prints one line that says what trains, and one per epoch with all that the module logs; logs the learning rate.

    Args:
        print_epochs: Print the metrics of each epoch as key=value pairs, which CloudWatch finds.
    """

    def __init__(self, print_epochs: bool):
        self.print_epochs = print_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sizes = [global_batch_size(loader, trainer.world_size) for loader in loaders(trainer)]
        samples = f"{sum(sizes) * trainer.accumulate_grad_batches} samples per step, " if None not in sizes else ""
        processes = count(trainer.world_size, "process", "processes")
        hosts, device = count(trainer.num_nodes, "host", "hosts"), trainer.strategy.root_device.type
        if trainer.is_global_zero:
            print(
                f"training in {processes} on {hosts}, device {device}, {samples}from step {trainer.global_step}",
                flush=True,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = num_steps_done(trainer)
        if trainer.log_every_n_steps and (step + 1) % trainer.log_every_n_steps == 0:
            rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
            rates = {f"lr_{index}" if index else "lr": rate for index, rate in enumerate(rates)}
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, {"epoch": trainer.current_epoch, "step": trainer.global_step})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, {})

    def _print(self, trainer: Trainer, progress: dict[str, int]) -> None:
        values = progress | logged_metrics(trainer)
        if self.print_epochs and trainer.is_global_zero:
            print(*(f"{key}={value:.6g}" for key, value in values.items()), flush=True)


def global_batch_size(loader: Any, world_size: int) -> int | None:
    """Samples per batch of all ranks together, if a loader tells, itself or in the sampler that Lightning gave it."""
    if hasattr(loader, "global_batch_size"):
        return loader.global_batch_size
    tellers = loader, getattr(loader, "batch_sampler", None)
    sizes = [getattr(teller, "batch_size", None) for teller in tellers]
    return next((size * world_size for size in sizes if size), None)


def logged_metrics(trainer: Trainer) -> dict[str, float]:
    """What the module has logged, those of training first, without the copies that Lightning makes per step."""
    logged = trainer.callback_metrics
    copies = {f"{name}_{kind}" for name in logged for kind in ("step", "epoch")}
    values = {name: float(value) for name, value in logged.items() if name not in copies and is_number(value)}
    return dict(sorted(values.items(), key=lambda item: [not item[0].startswith(kind) for kind in ("train", "val")]))


def is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def print_summary(rows: dict[str, Any]) -> None:
    """Prints names and values in two columns."""
    width = max(map(len, rows)) + 2
    values = {name: str(value).replace("\n", "\n" + " " * width) for name, value in rows.items()}
    print("", *(f"{name:{width}}{value}" for name, value in values.items()), sep="\n", flush=True)
