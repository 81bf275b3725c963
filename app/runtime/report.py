"""What a run says of itself: what trains, the metrics of each epoch, and in the end where everything is."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from runtime.private_lightning import loaders


class Report(Checkpoint):  # which Lightning calls after the module's own hooks, where most modules log
    """Prints what trains and, where asked to, what the module logs per epoch."""

    def __init__(self, print_epochs: bool):
        self.print_epochs = print_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sizes = [num_samples_per_batch(loader, trainer.world_size) for loader in loaders(trainer)]
        samples = f"{sum(sizes) * trainer.accumulate_grad_batches} samples per step, " if all(sizes) else ""
        if trainer.is_global_zero:
            processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
            hosts = f"{trainer.num_nodes} host{'s' if trainer.num_nodes > 1 else ''}"
            where = f"{processes} on {hosts}, device {trainer.strategy.root_device.type}"
            print(f"training in {where}, {samples}from step {trainer.global_step}", flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, {"epoch": trainer.current_epoch, "step": trainer.global_step})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, {})

    def _print(self, trainer: Trainer, progress: dict[str, int]) -> None:
        values = progress | logged_metrics(trainer)
        if self.print_epochs and trainer.is_global_zero:
            print(*(f"{key}={value:.6g}" for key, value in values.items()), flush=True)


def logged_metrics(trainer: Trainer) -> dict[str, float]:
    """What the module has logged, those of training first, without the copies that Lightning makes per step."""
    logged = trainer.callback_metrics
    copies = {f"{name}_{kind}" for name in logged for kind in ("step", "epoch")}
    names = sorted(logged, key=lambda name: [not name.startswith(kind) for kind in ("train", "val")])
    return {name: float(logged[name]) for name in names if name not in copies}


# 0 is for a loader that cannot tell. For several processes Lightning moves the batch size into the sampler.
def num_samples_per_batch(loader: Any, world_size: int) -> int:
    sizes = [getattr(part, "batch_size", 0) or 0 for part in (loader, getattr(loader, "batch_sampler", None))]
    return getattr(loader, "global_batch_size", max(sizes) * world_size)


def print_summary(rows: dict[str, Any]) -> None:
    """Prints names and values in two columns."""
    width = max(map(len, rows)) + 2
    values = {name: str(value).replace("\n", "\n" + " " * width) for name, value in rows.items()}
    print("", *(f"{name:{width}}{value}" for name, value in values.items()), sep="\n", flush=True)
