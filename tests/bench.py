"""Speed of the input and of a training step, each beside what else one could use, on the CPU.

The alternatives take turns in short rounds, because other work on the machine slows some of them down; of images the
fastest round counts, of steps the median. Where all cores are always busy, torch's threads mostly wait for each other
and no ratio is right. The exit code is 1 if one of the targets at the end is missed.

    .venv/bin/python tests/bench.py
"""

import logging
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice, pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import numpy as np
import pytorch_lightning
import torch
import torchvision
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))

from cifar10 import CIFAR10DataModule, SyntheticCIFAR10DataModule
from resnet import Classifier, ResNet18
from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.report import Report
from runtime.resume import Resume
from runtime.s3_logger import S3TensorBoardLogger

torch.utils.deterministic.fill_uninitialized_memory = False  # as in runtime/cli.py
# S3 in another process, where each request takes 50 ms longer.
S3 = "from aws import *; AWS().reset(); print(Endpoint(delay=0.05).url, BUCKET, flush=True); input()"
INTERVAL = 5  # minutes, the default of --checkpoint.every_n_minutes
SKIPPED = 5  # batches or steps at the start of a round, not timed: workers start, memory is allocated


def compare(
    alternatives: dict[str, Callable[[], list[float]]], num_rounds: int, statistic: Callable
) -> dict[str, float]:
    """A statistic of what each alternative returns in all rounds; a round runs every alternative once."""
    seconds = {name: [] for name in alternatives}
    for _ in range(num_rounds):
        for name, measure in alternatives.items():
            seconds[name] += measure()
    return {name: statistic(values) for name, values in seconds.items()}


def our_batches(module: CIFAR10DataModule, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    for indices in loader:
        yield module.batch("train", indices, epoch)


def torchvision_dataset(module: CIFAR10DataModule) -> CIFAR10:
    """torchvision's data set, of the module's images instead of those in files, augmented by PIL as usual."""
    images, labels, _ = module.read()
    dataset = CIFAR10.__new__(CIFAR10)  # without __init__, which reads the files
    dataset.data, dataset.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
    crop, mirror = transforms.RandomCrop(32, padding=module.padding), transforms.RandomHorizontalFlip()
    dataset.transform = transforms.Compose(
        [crop, mirror, transforms.ToTensor(), transforms.Normalize(module.mean, module.std)]
    )
    dataset.target_transform = None
    return dataset


def copies(data: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As many bytes without arithmetic: a batch of uint8 images, in random order, and a copy of a float32 batch."""
    images, floats = torch.from_numpy(data), torch.zeros(batch_size, 3, 32, 32)
    for indices in torch.randperm(len(images)).split(batch_size):
        yield images[indices], floats[: len(indices)].clone()


def time_images(get_batches: Callable[[], Iterator], skipped: int = 0, stop: int | None = None) -> list[float]:
    """Seconds per image of an epoch, from drawing its order on, or of its batches from `skipped` to `stop`."""
    batches = islice(get_batches(), stop)
    for _ in range(skipped):
        next(batches)
    start = perf_counter()
    num_images = sum(len(images) for images, _ in batches)
    return [(perf_counter() - start) / num_images]


def compare_inputs(module: CIFAR10DataModule, dataset: CIFAR10, all_num_workers: list[int]) -> float:
    """How many times as fast as the fastest of torchvision's DataLoaders our data module is."""
    size, epochs = module.batch_size, count()
    alternatives = {"ours": partial(time_images, lambda: our_batches(module, next(epochs)))}
    for num in all_num_workers:
        loader = DataLoader(dataset, size, shuffle=True, num_workers=num)
        run = partial(iter, loader), SKIPPED, SKIPPED + 2560 // size
        alternatives[f"torchvision, workers: {num}"] = partial(time_images, *run)
    alternatives["copying as many bytes"] = partial(time_images, lambda: copies(dataset.data, size))
    seconds = compare(alternatives, 7, min)
    print(f"\n{f'training images, batch {size}':28}{'images/s':>12}{'ours is':>14}")
    for name, value in seconds.items():
        print(f"{name:28}{1 / value:12,.0f}{value / seconds['ours']:8.2f} times", flush=True)
    return min(value for name, value in seconds.items() if "torchvision" in name) / seconds["ours"]


def parts_of_train(folder: str, every_n_train_steps: int = 0) -> dict[str, list]:
    """Trainer's callbacks and plugins in train.py."""
    best = BestNetwork(folder, every_n_train_steps, INTERVAL, monitor="val_loss")
    files = CheckpointFiles(best.folder)
    return {"callbacks": [best, Report(print_epochs=False), Resume(best, files, 300.0, {})], "plugins": [files]}


class TimedClassifier(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.times = []
        return torch.optim.Adam(self.parameters(), lr=0.001)  # as in train.yaml

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.times.append(perf_counter())


def time_trainer(
    network: nn.Module, module: CIFAR10DataModule, num_steps: int, save_dir: str = "", flush_secs: int = 120
) -> list[float]:
    """Seconds of each step of Trainer, set up as in train.py except for what acts before or after all steps."""
    model = TimedClassifier(network)
    with tempfile.TemporaryDirectory() as folder:
        logger = S3TensorBoardLogger(save_dir or folder, flush_secs=flush_secs)
        logger.check()
        parts = {"logger": logger, **parts_of_train(folder)}
        limits = {"max_epochs": 1, "limit_train_batches": SKIPPED + num_steps, "limit_val_batches": 0}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        Trainer(accelerator="cpu", devices=1, deterministic="warn", **parts, **limits, **quiet).fit(model, module)
        logger.finish()
    torch.use_deterministic_algorithms(False)  # which Trainer turned on for the whole process
    return [end - start for start, end in pairwise(model.times[SKIPPED - 1 :])]


def time_loop(network: nn.Module, module: CIFAR10DataModule, num_steps: int) -> list[float]:
    """Seconds of each step of the loop that one would write without Trainer, with the same batches and sums."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    loss_sum, num_correct, times = torch.zeros(()), torch.zeros(()), []
    network.train()
    for images, labels in islice(our_batches(module, 0), SKIPPED + num_steps):
        logits = network(images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        num_correct += (logits.argmax(dim=1) == labels).sum()
        times.append(perf_counter())
    return [end - start for start, end in pairwise(times[SKIPPED - 1 :])]


def compare_logs(network: nn.Module, module: CIFAR10DataModule, num_steps: int) -> float:
    """How fast steps are with the log in S3, which gets it every second, compared with a log in a folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", S3], cwd=Path(__file__).with_name("support"), **pipes) as server:
        url, bucket = server.stdout.readline().split()
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY="mine")
        folders = "", f"s3://{bucket}/tensorboard"
        rounds = [[mean(time_trainer(network, module, num_steps, folder, 1)) for folder in folders] for _ in range(15)]
        server.stdin.close()
    local, s3 = (1 / median(seconds) for seconds in zip(*rounds, strict=True))
    ratio = median(local / s3 for local, s3 in rounds)  # of neighbours, whatever else the machine does meanwhile
    print(f"\n{'linear, batch 32, log in':28}{'a folder':>12}{'S3':>12}{'S3/folder':>14}")
    print(f"{'training steps per second':28}{local:12,.0f}{s3:12,.0f}{ratio:14.3f}", flush=True)
    return ratio


def time_checkpoint(network: nn.Module, module: CIFAR10DataModule) -> float:
    """Seconds that a step takes longer if it ends with a checkpoint of all that a run needs to go on."""
    model, every = TimedClassifier(network), 5
    with tempfile.TemporaryDirectory(dir=".") as folder:
        limits = {"max_epochs": 1, "limit_train_batches": 8 * every - 1, "limit_val_batches": 0}
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        parts = parts_of_train(folder, every)
        Trainer(accelerator="cpu", devices=1, deterministic="warn", **parts, **limits, **quiet).fit(model, module)
    torch.use_deterministic_algorithms(False)
    steps = [end - start for start, end in pairwise(model.times)]
    with_checkpoint = steps[every::every]  # the first is written after the first step
    return median(with_checkpoint) - median(steps)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    versions = f"torchvision {torchvision.__version__}, pytorch-lightning {pytorch_lightning.__version__}"
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {versions}")
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"
    print(f"{cpu}, {cores}, load average {os.getloadavg()[0]:.1f} before", flush=True)
    module = SyntheticCIFAR10DataModule()
    module.setup()
    dataset = torchvision_dataset(module)
    in_2022 = compare_inputs(module, dataset, [1])
    module.batch_size = 128
    at_best = compare_inputs(module, dataset, [0, 1, 2])
    module.batch_size = 32
    print(f"\n{'training step, batch 32':28}{'loop':>12}{'Trainer':>12}{'loop/Trainer':>14}{'difference':>14}")
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))  # costs next to nothing
    results = []
    for name, *run in ("ResNet-18", ResNet18(10).network, module, 20), ("linear", linear, module, 200):
        alternatives = {"loop": partial(time_loop, *run), "Trainer": partial(time_trainer, *run)}
        seconds = compare(alternatives, 10, median)
        loop, trainer = seconds["loop"] * 1000, seconds["Trainer"] * 1000
        print(f"{name:28}{loop:9.2f} ms{trainer:9.2f} ms{loop / trainer:14.3f}{trainer - loop:11.2f} ms", flush=True)
        results.append((loop / trainer, trainer - loop))
    (ratio, _), (_, added) = results
    logging_to_s3 = compare_logs(linear, module, 1200)
    seconds = time_checkpoint(ResNet18(10).network, module)
    share = seconds / (60 * INTERVAL)
    print(f"\ncheckpoint of ResNet-18 with Adam {seconds:9.2f} s, every {INTERVAL} minutes: {share:.2%} of the time")
    targets = (
        (in_2022 >= 40, f"input {in_2022:.1f} times as fast as torchvision with 1 worker and batch 32; target: 40"),
        (at_best >= 15, f"input {at_best:.1f} times as fast as torchvision at its best with batch 128; target: 15"),
        (ratio >= 0.97, f"ResNet-18 with Trainer at {ratio:.3f} of the speed of a loop; target: 0.97"),
        (added <= 1, f"{added:.2f} ms per step added by Trainer to a linear network; target: 1 ms at most"),
        (logging_to_s3 >= 0.97, f"linear network with its log in S3 at {logging_to_s3:.3f} of the speed; target: 0.97"),
        (share <= 0.02, f"{share:.2%} of the time for checkpoints of ResNet-18; target: 2 % at most"),
    )
    print()
    for met, target in targets:
        print(f"{'ok' if met else 'MISSED':8}{target}")
    sys.exit(not all(met for met, _ in targets))


if __name__ == "__main__":
    main()
