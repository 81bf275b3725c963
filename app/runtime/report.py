"""What a run reports: the number of processes, the metrics and throughput of each epoch, and a summary."""

import time
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from runtime.private_lightning import loaders

START = time.monotonic()  # after the imports of torch and Lightning


# A Checkpoint, because Lightning calls those after the module's own hooks, where many modules log.
class Report(Checkpoint):
    """Logs the throughput of each epoch, and prints how many processes and hosts train.

    Without a progress bar, it also prints the metrics of each epoch and of the test. The throughput of all
    processes together, not counting validation time, is logged as `samples_per_second` if all training
    loaders have a batch size; the data module's `samples_name` replaces the word "samples".

    Args:
        has_progress_bar: Whether a progress bar shows the metrics. If so, no line of metrics is printed after
            each epoch and after the test.
    """

    def __init__(self, has_progress_bar: bool):
        self.has_progress_bar = has_progress_bar
        self.start = 0.0  # of the epoch, shifted by the duration of its validations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start()  # which Lightning omits when it resumes within an epoch
        num_samples = num_samples_per_batch(trainer) * trainer.accumulate_grad_batches
        samples = f"{num_samples} samples per step, " if num_samples else ""
        if trainer.is_global_zero:
            processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
            hosts = f"{trainer.num_nodes} host{'s' if trainer.num_nodes > 1 else ''}"
            device = f"device {trainer.strategy.root_device.type}"
            print(f"training in {processes} on {hosts}, {device}, {samples}from step {trainer.global_step}", flush=True)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.num_batches = 0
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.num_batches += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start += time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = logged_metrics(trainer)  # waits for a GPU to be done
        num_samples = self.num_batches * num_samples_per_batch(trainer)
        if num_samples:
            samples_name = getattr(trainer.datamodule, "samples_name", "samples")
            throughput = {f"{samples_name}_per_second": num_samples / (time.perf_counter() - self.start)}
            pl_module.log_dict(throughput)
            metrics |= throughput
        self._print(trainer, {"epoch": trainer.current_epoch, "step": trainer.global_step} | metrics)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, logged_metrics(trainer))

    def _print(self, trainer: Trainer, values: dict[str, float]) -> None:
        if not self.has_progress_bar and trainer.is_global_zero:
            print(*(f"{key}={value:.6g}" for key, value in values.items()), flush=True)


def logged_metrics(trainer: Trainer) -> dict[str, float]:
    """Returns the metrics that the module has logged, those of training first.

    The learning rates of LearningRateMonitor, and Lightning's copies per step and per epoch, are left out.
    """
    logged = trainer.callback_metrics
    copies = {f"{name}_{kind}" for name in logged for kind in ("step", "epoch")}
    names = sorted(logged, key=lambda name: [not name.startswith(kind) for kind in ("train", "val")])
    return {name: float(logged[name]) for name in names if name not in copies and not name.startswith("lr-")}


def num_samples_per_batch(trainer: Trainer) -> int:
    """Returns the number of samples per batch over all ranks, or 0 if a loader has no batch size."""
    sizes = []
    for loader in loaders(trainer):
        # A loader with its own batch sampler has the batch size only there.
        parts = loader, getattr(loader, "batch_sampler", None)
        batch_size = max(getattr(part, "batch_size", 0) or 0 for part in parts)
        sizes.append(getattr(loader, "global_batch_size", batch_size * trainer.world_size))
    return sum(sizes) if all(sizes) else 0


def print_summary(trainer: Trainer, data: LightningDataModule | None, paths: dict[str, Any]) -> None:
    """Prints the last metrics, the duration of this process, and the output paths, in two columns.

    The duration does not include imports. `test_acc` is shown as a percentage.
    """
    metrics = logged_metrics(trainer)
    rows = {}
    if 0 <= metrics.get("test_acc", -1) <= 1:
        description = getattr(data, "description", "test data")
        rows["test accuracy"] = f"{metrics.pop('test_acc'):.1%} on {description}"
    rows |= {name: f"{value:.6g}" for name, value in metrics.items()}
    rows |= {"duration": f"{time.monotonic() - START:.0f} s"} | paths
    width = max(map(len, rows)) + 2
    if trainer.is_global_zero:
        print("", *(f"{name:{width}}{value}" for name, value in rows.items()), sep="\n", flush=True)
