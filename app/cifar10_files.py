"""CIFAR-10's files, and a check of images in memory."""

import hashlib
import io
import pickle
import sys
import tarfile
import urllib.request
from pathlib import Path

import torch
from runtime.files import check_writable, write_atomically
from torch import Tensor
from torchvision.datasets import CIFAR10

URL = CIFAR10.url
BATCHES = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


def checked(content: bytes, path: Path, verify: bool) -> bytes:
    if verify and (found := hashlib.md5(content).hexdigest()) != CIFAR10.tgz_md5:
        raise ValueError(f"{path} has MD5 {found}, not CIFAR-10's: get it again, or accept it by --data.verify=false")
    return content


def download(url: str, target: Path, verify: bool) -> bytes:
    check_writable(str(target.parent))
    try:
        response = urllib.request.urlopen(url, timeout=30)
        print(f"downloading {url} to {target}", file=sys.stderr)
        content = checked(response.read(), target, verify)
        write_atomically(content, target)
        return content
    except (OSError, ValueError) as error:
        line = f"{target} is missing, and downloading it from {url} failed ({error})"
        raise OSError(f"{line}: put the file there, or name another place by --data.data_dir or --data.url") from error


def read_cifar10(data_dir: Path, url: str = URL, verify: bool = True) -> tuple[Tensor, Tensor, int]:
    """All images [N, 3, 32, 32] uint8, all labels [N] int64 from 0 to 9, and how many at the end are the test set."""
    archive = data_dir / CIFAR10.filename
    content = checked(archive.read_bytes(), archive, verify) if archive.exists() else download(url, archive, verify)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = [tar.extractfile(f"{CIFAR10.base_folder}/{name}").read() for name in BATCHES]
        batches = [pickle.loads(file, encoding="latin1") for file in files]
        images = torch.cat([torch.from_numpy(batch["data"]).view(-1, 3, 32, 32) for batch in batches])
        return images, torch.cat([torch.tensor(batch["labels"]) for batch in batches]), len(batches[-1]["labels"])
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{archive} is not a complete archive ({error}): delete it to get it again") from error


def check_images(images: Tensor, labels: Tensor, num_classes: int, mean: tuple, std: tuple) -> None:
    """Raises ValueError unless images are uint8 [N, C, H, W] with C means and standard deviations, labels int64 [N]."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: make them torch.uint8 [N, C, H, W]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: make them torch.int64 [{len(images)}]")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= num_classes:
        raise ValueError(f"labels are {least} to {most}: num_classes={num_classes} allows 0 to {num_classes - 1}")
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(f"mean={mean} and std={std} must each have a value for each of {images.shape[1]} channels")
