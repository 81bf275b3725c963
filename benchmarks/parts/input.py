"""Measures images per second that are ready for the network: our data module, torchvision, and plain copying."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from time import perf_counter

import numpy as np
import torch
from measuring import Images, Result, interleave
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

NUM_WARMUP_BATCHES = 5  # batches of a DataLoader that are not timed, while its workers start


def our_batches(module: Images, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    for indices in loader:
        yield module.gather("train", indices, epoch)


def torchvision_dataset(module: Images) -> CIFAR10:
    """Returns torchvision's dataset of the images of `module`, augmented with PIL as usual."""
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
    """Yields batches that are only copied: uint8 images in random order, and a float32 batch of the same shape."""
    images, floats = torch.from_numpy(data), torch.zeros(batch_size, 3, 32, 32)
    for indices in torch.randperm(len(images)).split(batch_size):
        yield images[indices], floats[: len(indices)].clone()


def time_images(get_batches: Callable[[], Iterator], skipped: int = 0, stop: int | None = None) -> float:
    """Returns the images per second of an epoch, shuffling included, or of its batches from `skipped` to `stop`."""
    batches = islice(get_batches(), stop)
    for _ in range(skipped):
        next(batches)
    start = perf_counter()
    num_images = sum(len(images) for images, _ in batches)
    return num_images / (perf_counter() - start)


def compare(module: Images, dataset: CIFAR10, all_num_workers: list[int], least: float) -> Iterator[Result]:
    size, epochs = module.batch_size, count()
    alternatives = {"ours": partial(time_images, lambda: our_batches(module, next(epochs)))}
    for num in all_num_workers:
        loader = DataLoader(dataset, size, shuffle=True, num_workers=num)
        run = partial(iter, loader), NUM_WARMUP_BATCHES, NUM_WARMUP_BATCHES + 2560 // size
        alternatives[f"workers {num}"] = partial(time_images, *run)
    alternatives["copies"] = partial(time_images, lambda: copies(dataset.data, size))
    speeds = {name: max(rounds) for name, rounds in interleave(alternatives, 7).items()}
    best = max(speed for name, speed in speeds.items() if "workers" in name)
    what = f"images per second, batch {size}, compared with torchvision and PIL"
    yield Result(what, speeds["ours"] / best, least=least, details=speeds)
    yield Result(f"images per second, batch {size}, compared with plain copying", speeds["ours"] / speeds["copies"])


def measure_input() -> Iterator[Result]:
    module = Images()
    module.setup()
    dataset = torchvision_dataset(module)
    yield from compare(module, dataset, [1], least=40)  # the batch size and the worker of the 2022 tutorial
    module.batch_size = 128
    yield from compare(module, dataset, [0, 1, 2], least=15)
