"""How fast images come in and how much Trainer adds to a training step, each beside what else one could use, on the CPU.

The alternatives take turns in short rounds, and the fastest round of each counts: other work on the machine can only slow
a round down. Absolute numbers are this machine's; the targets at the end are ratios, and exit code 1 says one is missed.

    .venv/bin/python tests/bench.py
"""

import itertools
import logging
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytorch_lightning
import torch
import torchvision
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))

from cifar10 import MEAN, PADDING, STD, SyntheticCIFAR10DataModule
from metrics import Metrics
from resnet import Classifier, ResNet18

SKIPPED = 6  # batches or steps at the start of each round, not timed: workers start, caches and memory pools fill


class KeptImages(SyntheticCIFAR10DataModule):
    """Keeps the images that it makes, for torchvision's data set to have the same."""

    def read(self) -> tuple[Tensor, Tensor, int]:
        self.images, self.labels, num_test = super().read()
        return self.images, self.labels, num_test


class BenchClassifier(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.001)  # as in train.yaml


class Clock(Callback):
    """Notes when each training step ends."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.times.append(perf_counter())


def fastest(rounds: int, alternatives: dict[str, Callable[[], float]]) -> dict[str, float]:
    """What each alternative returns, the least over all rounds; each round runs every alternative once."""
    seconds = [{name: measure() for name, measure in alternatives.items()} for _ in range(rounds)]
    return {name: min(round_[name] for round_ in seconds) for name in alternatives}


def pil_dataset(images: Tensor, labels: Tensor) -> CIFAR10:
    """torchvision's data set of these images instead of files, with the usual augmentation by PIL."""
    dataset = CIFAR10.__new__(CIFAR10)  # without __init__, which reads the files
    dataset.data, dataset.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
    crop, mirror = transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()
    dataset.transform = transforms.Compose([crop, mirror, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    dataset.target_transform = None
    return dataset


def time_dataset(dataset: CIFAR10, batch_size: int, num_workers: int, num_images: int = 2560) -> float:
    """Seconds per image of a DataLoader, once its workers are running."""
    batches = iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers))
    for _ in range(SKIPPED):
        next(batches)
    start = perf_counter()
    for _ in range(num_images // batch_size):
        next(batches)
    return (perf_counter() - start) / num_images


def time_module(module: KeptImages, batch_size: int, epochs: itertools.count) -> float:
    """Seconds per image of a whole epoch, with drawing its order, crops and mirrorings."""
    module.batch_size, epoch = batch_size, next(epochs)
    start = perf_counter()
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    for indices in loader:
        module.batch("train", indices, epoch)
    return (perf_counter() - start) / module.num_samples["train"]


def time_copy(images: Tensor, batch_size: int) -> float:
    """Seconds per image of just moving the bytes: uint8 images gathered by index, and a float32 batch cloned."""
    batches = torch.randperm(len(images)).split(batch_size)
    floats = torch.zeros(batch_size, 3, 32, 32)
    start = perf_counter()
    for indices in batches:
        images[indices]
        floats[: len(indices)].clone()
    return (perf_counter() - start) / len(images)


def time_trainer(network: nn.Module, module: KeptImages, num_steps: int) -> float:
    """Seconds per step of Trainer, set up as in train.py."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            deterministic="warn",
            max_epochs=1,
            limit_train_batches=SKIPPED + num_steps,
            limit_val_batches=0,
            callbacks=[Metrics(print_epochs=False), clock],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,  # it acts before the first step
        )
        trainer.fit(BenchClassifier(network), module)
    torch.use_deterministic_algorithms(False)  # which Trainer has turned on, for the whole process
    return (clock.times[-1] - clock.times[SKIPPED - 1]) / num_steps


def time_loop(network: nn.Module, module: KeptImages, num_steps: int) -> float:
    """Seconds per step of the loop that one would write without Trainer."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    loss_sum, num_correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    network.train()
    for step, indices in enumerate(itertools.islice(module.train_dataloader(), SKIPPED + num_steps)):
        if step == SKIPPED:
            start = perf_counter()
        images, labels = module.batch("train", indices)
        logits = network(images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        num_correct += (logits.argmax(dim=1) == labels).sum()
    return (perf_counter() - start) / num_steps


def compare_inputs(module: KeptImages) -> dict[str, bool]:
    dataset, epochs = pil_dataset(module.images, module.labels), itertools.count()
    alternatives = {
        ("ours", 32): lambda: time_module(module, 32, epochs),
        ("torchvision and PIL, 1 worker", 32): lambda: time_dataset(dataset, 32, 1),
        ("copying the bytes", 32): lambda: time_copy(module.images, 32),
        ("ours", 128): lambda: time_module(module, 128, epochs),
        ("torchvision and PIL, 0 workers", 128): lambda: time_dataset(dataset, 128, 0),
        ("torchvision and PIL, 1 worker", 128): lambda: time_dataset(dataset, 128, 1),
        ("torchvision and PIL, 2 workers", 128): lambda: time_dataset(dataset, 128, 2),
        ("copying the bytes", 128): lambda: time_copy(module.images, 128),
    }
    seconds = fastest(5, alternatives)
    print(f"\n{'training images per second':34}{'batch':>6}{'images/s':>12}{'ours is':>10}")
    for (name, size), value in seconds.items():
        print(f"{name:34}{size:6}{1 / value:12,.0f}{value / seconds['ours', size]:9.2f}x")
    the_2022_way = seconds["torchvision and PIL, 1 worker", 32] / seconds["ours", 32]
    best = min(value for (name, size), value in seconds.items() if "PIL" in name and size == 128) / seconds["ours", 128]
    return {
        f"input at batch 32 is {the_2022_way:.1f}x the 2022 way, torchvision with 1 worker (>= 40)": the_2022_way >= 40,
        f"input at batch 128 is {best:.1f}x torchvision at its best of 0, 1 and 2 workers (>= 15)": best >= 15,
    }


def compare_steps(module: KeptImages) -> dict[str, bool]:
    module.batch_size = 32  # as in train.yaml
    networks = {
        "ResNet-18": (ResNet18(10).network, 50, 6),
        "linear": (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 1000, 6),
    }
    print(f"\n{'training step at batch 32':26}{'loop':>10}{'Trainer':>10}{'loop/Trainer':>14}{'difference':>14}")
    results = {}
    for name, (network, num_steps, rounds) in networks.items():
        measures = {
            "loop": lambda: time_loop(network, module, num_steps),
            "Trainer": lambda: time_trainer(network, module, num_steps),
        }
        results[name] = loop, trainer = [value * 1000 for value in fastest(rounds, measures).values()]
        print(f"{name:26}{loop:7.2f} ms{trainer:7.2f} ms{loop / trainer:14.3f}{trainer - loop:11.2f} ms")
