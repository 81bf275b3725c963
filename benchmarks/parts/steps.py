"""Measures training steps of train.py, compared with a plain loop and a stock Trainer."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fast import FastNet
from measuring import DEVICES, NUM_WARMUP_STEPS, ROOT, Clock, Images, Result, has_bf16, interleave, seconds_per_step
from our_trainer import Linear, restore_process_state, time_train_py
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from resnet import Classifier, ResNet18
from torch import Tensor
from torchmetrics import Accuracy


@dataclass
class Task:
    """A training task: the options for train.py, and the same settings for the alternatives."""

    name: str
    model_class: type[Classifier]
    options: list[str]
    data: dict[str, int | bool]
    num_steps: int
    precision: str = "32-true"
    num_rounds: int = 10


def resnet18() -> Task:
    return Task("ResNet-18, batch 32", ResNet18, ["--model=ResNet18"], {}, 20)


def linear() -> Task:
    return Task("linear, batch 32", Linear, ["--model=our_trainer.Linear"], {}, 200)


def recipe(device: str) -> Task:
    precision = "bf16-mixed" if has_bf16(device) else "32-true"
    options = [f"--config={ROOT}/examples/fast/fast.yaml", "--data=CIFAR10DataModule"]
    options += [f"--trainer.precision={precision}"]
    data = {"batch_size": 512, "val_split": 0, "padding": 2}
    # 40 steps including the warm-up steps, during which the resolution grows as in a whole run.
    return Task("recipe, batch 512", FastNet, options, data, 35, precision, num_rounds=5)


class StockMixin:
    """Logs in each step, as is usual, with the optimizer of train.yaml and a clock."""

    def __init__(self):
        super().__init__()
        self.accuracy, self.clock = Accuracy("multiclass", num_classes=10), Clock()

    def step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        self.accuracy(logits, labels)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        if isinstance(self, FastNet):
            return super().configure_optimizers()
        return torch.optim.Adam(self.parameters(), lr=0.001, fused=True)


class SumsMixin:
    """Sums losses and correct predictions on the device instead of logging them, to measure the cost of `self.log`."""

    def log(self, *_: Any, **__: Any) -> None:
        pass

    def step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        terms = loss.detach().float() * len(labels), (logits.argmax(dim=1) == labels).sum(), len(labels)
        sums = getattr(self, "sums", (0.0, 0, 0))
        self.sums = [total + term for total, term in zip(sums, terms, strict=True)]
        return loss


class ResNet18WithSums(SumsMixin, ResNet18):
    """ResNet18 without `self.log`."""


class LinearWithSums(SumsMixin, Linear):
    """Linear without `self.log`."""


class FastNetWithSums(SumsMixin, FastNet):
    """FastNet without `self.log`."""


def time_stock(task: Task, device: str) -> list[float]:
    """Trains with a stock Trainer, its logger and its checkpoints, and returns the seconds of each step."""
    model = type("Stock", (StockMixin, task.model_class), {})()
    with tempfile.TemporaryDirectory() as folder:
        limits = {"max_epochs": 1, "limit_train_batches": NUM_WARMUP_STEPS + task.num_steps, "limit_val_batches": 0}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        parts = {"logger": TensorBoardLogger(folder), "callbacks": [ModelCheckpoint(folder), model.clock]}
        every = 10 if task.model_class is FastNet else 50  # as in train.py
        run_on = {"accelerator": device, "devices": 1, "precision": task.precision, "log_every_n_steps": every}
        Trainer(deterministic="warn", **run_on, **parts, **limits, **quiet).fit(model, Images(**task.data))
    restore_process_state()
    return model.clock.seconds()


def time_loop(task: Task, device: str) -> list[float]:
    """Trains in a plain loop with the same batches and metrics, and returns the seconds of each step."""
    module, model = Images(**task.data), task.model_class()
    module.setup()
    num_steps, target = NUM_WARMUP_STEPS + task.num_steps, torch.device("cuda" if device == "gpu" else "cpu")
    optimizer, schedule = prepare(model.to(target), module, num_steps)
    network, clock, sums = model.network.train(), Clock(), torch.zeros(2, device=target)
    for step, indices in enumerate(islice(module.train_dataloader(), num_steps)):
        images, labels = module.gather("train", indices.to(target))
        if schedule:
            size = model.resolutions[(step >= 0.45 * num_steps) + (step >= 0.75 * num_steps)]
            if size != images.shape[-1]:
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(target.type, torch.bfloat16, enabled=task.precision == "bf16-mixed"):
            logits = network(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=model.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        sums[0] += loss.detach() * len(labels)
        sums[1] += (logits.argmax(dim=1) == labels).sum()
        clock.tick(device)
    return clock.seconds()


def prepare(model: Classifier, module: Images, num_steps: int) -> tuple:
    """Returns the optimizer and the learning rate schedule, or None."""
    if not isinstance(model, FastNet):
        return torch.optim.Adam(model.parameters(), lr=0.001, fused=True), None
    # The attributes of Trainer that the recipe reads.
    model.trainer = SimpleNamespace(datamodule=module, world_size=1, estimated_stepping_batches=num_steps)
    model.setup("fit")
    config = model.configure_optimizers()
    return config["optimizer"], config["lr_scheduler"]["scheduler"]


def measure_steps() -> Iterator[Result]:
    for device in DEVICES:
        for task in (resnet18(), linear()):
            yield from compare(task, device)


def measure_recipe() -> Iterator[Result]:
    for device in DEVICES:
        yield from compare(recipe(device), device)


def compare(task: Task, device: str) -> Iterator[Result]:
    with_sums = [*task.options, f"--model=parts.steps.{task.model_class.__name__}WithSums"]
    alternatives = {
        "loop": partial(time_loop, task, device),
        "stock": partial(time_stock, task, device),
        "sums": partial(time_train_py, with_sums, task.num_steps, device),
        "ours": partial(time_train_py, task.options, task.num_steps, device),
    }
    seconds = {name: seconds_per_step(rounds) for name, rounds in interleave(alternatives, task.num_rounds).items()}
    ms = {f"{name} ms": value * 1000 for name, value in seconds.items()}
    where = f"{task.name}, {device}"
    if task.model_class is Linear:
        added = ms["ours ms"] - ms["loop ms"]
        yield Result(f"{where}: step time added to a plain loop", added, "ms", most=1, details=ms)
    else:
        speed, least = seconds["loop"] / seconds["ours"], 0.98 if device == "cpu" else 0.95
        yield Result(f"{where}: speed compared with a plain loop", speed, least=least, details=ms)
    added = ms["ours ms"] - ms["sums ms"]
    yield Result(f"{where}: step time added by self.log", added, "ms", most=1)
    # The target is below 1 because runs differ by about a percent.
    yield Result(f"{where}: speed compared with a stock Trainer", seconds["stock"] / seconds["ours"], least=0.99)
