"""Small archives in CIFAR-10's format."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from synthetic import striped_images

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def cifar10_files(num_images: int = 20) -> dict[str, object]:
    """Returns the contents of CIFAR-10's files by name, with `num_images` random images in each."""
    rng = np.random.default_rng(0)
    files: dict[str, object] = {"batches.meta": {"num_cases_per_batch": num_images, "num_vis": 3072}}
    for name in BATCHES:
        data = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        files[name] = {"data": data, "labels": rng.integers(0, 10, num_images).tolist()}
    return files


def striped_files(num_images: int) -> dict[str, object]:
    """Returns the same with striped images, which a network can learn to classify."""
    images, labels = striped_images(len(BATCHES) * num_images, 10, torch.Generator().manual_seed(0))
    parts = zip(BATCHES, images.flatten(1).split(num_images), labels.split(num_images), strict=True)
    return cifar10_files() | {name: {"data": some.numpy(), "labels": of.tolist()} for name, some, of in parts}


def write_archive(directory: Path, files: dict[str, object]) -> Path:
    """Writes files as pickles to cifar-10-python.tar.gz and returns its path."""
    archive = directory / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive
