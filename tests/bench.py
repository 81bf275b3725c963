"""How fast images come in, and how much Trainer adds to a training step, each beside what else one could use, on the CPU.

The alternatives take turns in short rounds, and the median of all rounds counts, because other work on the machine slows
some rounds down. Seconds are this machine's; the targets at the end are ratios, and exit code 1 says that one is missed.

    .venv/bin/python tests/bench.py
"""

import itertools
import logging
import os
import platform
import statistics
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

SKIPPED = 6  # batches or steps at the start of a round, not timed: workers start, memory is allocated


class KeptImages(SyntheticCIFAR10DataModule):
    """Keeps the images that it makes, for torchvision's data set to have the same."""

    def read(self) -> tuple[Tensor, Tensor, int]:
        self.images, self.labels, num_test = super().read()
        return self.images, self.labels, num_test


class AdamClassifier(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.001)  # as in train.yaml


class Clock(Callback):
    """Notes when each training step ends."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.times.append(perf_counter())


def medians(num_rounds: int, alternatives: dict[tuple, Callable[[], list[float]]]) -> dict[tuple, float]:
    """The median of what each alternative returns in all rounds; a round runs every alternative once."""
    rounds = [[measure() for measure in alternatives.values()] for _ in range(num_rounds)]
    return {name: statistics.median(sum(lists, [])) for name, lists in zip(alternatives, zip(*rounds), strict=True)}


def pil_dataset(images: Tensor, labels: Tensor) -> CIFAR10:
    """torchvision's data set with these images instead of those in files, augmented by PIL as usual."""
    dataset = CIFAR10.__new__(CIFAR10)  # without __init__, which reads the files
    dataset.data, dataset.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
    crop, mirror = transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()
    dataset.transform = transforms.Compose([crop, mirror, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    dataset.target_transform = None
    return dataset


def time_dataset(dataset: CIFAR10, batch_size: int, num_workers: int, num_images: int = 2560) -> list[float]:
    """Seconds per image of a DataLoader, once its workers are running."""
    batches = iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers))
    for _ in range(SKIPPED):
        next(batches)
    start = perf_counter()
    for _ in range(num_images // batch_size):
        next(batches)
    return [(perf_counter() - start) / num_images]


def time_module(module: KeptImages, batch_size: int, epochs: itertools.count) -> list[float]:
    """Seconds per image of a whole epoch, including drawing its order, crops and mirrorings."""
    module.batch_size, epoch = batch_size, next(epochs)
    start = perf_counter()
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    for indices in loader:
        module.batch("train", indices, epoch)
    return [(perf_counter() - start) / module.num_samples["train"]]


def time_copy(images: Tensor, batch_size: int) -> list[float]:
    """Seconds per image of moving the bytes and no more: gathering a batch as uint8, cloning one of float32."""
    batches = torch.randperm(len(images)).split(batch_size)
    floats = torch.zeros(batch_size, 3, 32, 32)
    start = perf_counter()
    for indices in batches:
        images[indices]
        floats[: len(indices)].clone()
    return [(perf_counter() - start) / len(images)]


def time_trainer(network: nn.Module, module: KeptImages, num_steps: int) -> list[float]:
    """Seconds of each step of Trainer, set up as in train.py but for what acts before the first step or at epoch ends."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **dict(accelerator="cpu", devices=1, max_epochs=1, deterministic="warn", logger=TensorBoardLogger(folder)),
            **dict(callbacks=[Metrics(print_epochs=False), clock], enable_progress_bar=False, enable_model_summary=False),
            **dict(limit_train_batches=SKIPPED + num_steps, limit_val_batches=0, enable_checkpointing=False),
        )
        trainer.fit(AdamClassifier(network), module)
    torch.use_deterministic_algorithms(False)  # which Trainer turned on for the whole process
    return [end - start for start, end in itertools.pairwise(clock.times[SKIPPED - 1 :])]


def time_loop(network: nn.Module, module: KeptImages, num_steps: int) -> list[float]:
    """Seconds of each step of the loop that one would write without Trainer, with the same batches and sums."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    loss_sum, num_correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    times = []
    network.train()
    for indices in itertools.islice(module.train_dataloader(), SKIPPED + num_steps):
        images, labels = module.batch("train", indices)
        logits = network(images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        num_correct += (logits.argmax(dim=1) == labels).sum()
        times.append(perf_counter())
    return [end - start for start, end in itertools.pairwise(times[SKIPPED - 1 :])]


def compare_inputs(module: KeptImages) -> list[tuple[bool, str]]:
    dataset, epochs = pil_dataset(module.images, module.labels), itertools.count()
    alternatives = {}
    for size, nums_workers in (32, [1]), (128, [0, 1, 2]):
        alternatives["ours", size] = lambda size=size: time_module(module, size, epochs)
        for num in nums_workers:
            name = f"torchvision and PIL, workers: {num}"
            alternatives[name, size] = lambda size=size, num=num: time_dataset(dataset, size, num)
        alternatives["copying the bytes", size] = lambda size=size: time_copy(module.images, size)
    seconds = medians(5, alternatives)
    print(f"\n{'training images':32}{'batch':>6}{'images/s':>12}{'ours is':>12}")
    ratios = {(name, size): value / seconds["ours", size] for (name, size), value in seconds.items()}
    for (name, size), ratio in ratios.items():
        print(f"{name:32}{size:6}{1 / seconds[name, size]:12,.0f}{ratio:9.2f} x")
    the_2022_way = ratios["torchvision and PIL, workers: 1", 32]
    best = min(ratios[f"torchvision and PIL, workers: {num}", 128] for num in range(3))
    return [
        (the_2022_way >= 40, f"input is {the_2022_way:.1f} x the 2022 way: torchvision, 1 worker, batch 32; target >= 40"),
        (best >= 15, f"input is {best:.1f} x torchvision with the best of 0, 1, 2 workers, batch 128; target >= 15"),
    ]


def compare_steps(module: KeptImages) -> list[tuple[bool, str]]:
    module.batch_size = 32  # as in train.py
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))  # its step costs next to nothing
    print(f"\n{'training step, batch 32':24}{'loop':>10}{'Trainer':>10}{'loop/Trainer':>14}{'difference':>13}")
    results = []
    for name, network, num_steps, num_rounds in ("ResNet-18", ResNet18(10).network, 20, 12), ("linear", linear, 300, 6):
        alternatives = {run: lambda run=run: run(network, module, num_steps) for run in (time_loop, time_trainer)}
        loop, trainer = (seconds * 1000 for seconds in medians(num_rounds, alternatives).values())
        print(f"{name:24}{loop:7.2f} ms{trainer:7.2f} ms{loop / trainer:14.3f}{trainer - loop:10.2f} ms")
        results.append((loop / trainer, trainer - loop))
    (ratio, _), (_, difference) = results
    return [
        (ratio >= 0.97, f"Trainer runs ResNet-18 at {ratio:.3f} of the speed of a loop; target >= 0.97"),
        (difference <= 1, f"Trainer adds {difference:.2f} ms to each step; target <= 1 ms"),
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    versions = f"torchvision {torchvision.__version__}, pytorch-lightning {pytorch_lightning.__version__}"
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {versions}")
    print(f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch", flush=True)
    module = KeptImages()
    module.setup()
    targets = compare_inputs(module) + compare_steps(module)
    print()
    for met, target in targets:
        print(f"{'ok' if met else 'MISSED':8}{target}")
    sys.exit(not all(met for met, _ in targets))


if __name__ == "__main__":
    main()
