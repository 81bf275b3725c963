"""Reads CIFAR-10's archive, and checks images in memory."""

import hashlib
import io
import pickle
import sys
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from runtime.files import check_writable, write_atomically
from torch import Tensor
from torchvision.datasets import CIFAR10

URL = CIFAR10.url
BATCHES = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


def download(url: str, target: Path) -> bytes:
    """Downloads `url` and returns its content, to be written to `target`.

    Raises OSError if the download fails.
    """
    try:
        check_writable(str(target.parent))
        response = urllib.request.urlopen(url, timeout=30)
        print(f"downloading {url} to {target}", file=sys.stderr)
        return response.read()
    except (OSError, ValueError, HTTPException) as error:
        message = f"{target} is missing, and downloading it from {url} failed ({error})"
        raise OSError(f"{message}; put the file there, or set --data.data_dir or --data.url") from error


def read_cifar10(data_dir: Path, url: str = URL, verify: bool = True) -> tuple[Tensor, Tensor, int]:
    """Returns all images [N, 3, 32, 32] uint8, all labels [N] int64, and the size of the test set.

    Labels are from 0 to 9. The test set is at the end of the images.

    Args:
        data_dir: Folder of cifar-10-python.tar.gz.
        url: Address from which a missing archive is downloaded.
        verify: Whether to accept only CIFAR-10's official archive.

    Raises:
        OSError: If the archive is missing and cannot be downloaded.
        ValueError: If it is damaged, or not the official one.
    """
    archive = data_dir / CIFAR10.filename
    source = archive if archive.exists() else url
    content = archive.read_bytes() if source == archive else download(url, archive)
    if verify and (md5 := hashlib.md5(content).hexdigest()) != CIFAR10.tgz_md5:
        raise ValueError(f"{source}: wrong MD5 {md5}; download it again, or pass --data.verify=false")
    if source == url:
        write_atomically(content, archive)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = [tar.extractfile(f"{CIFAR10.base_folder}/{name}").read() for name in BATCHES]
        batches = [ArrayUnpickler(io.BytesIO(file), encoding="latin1").load() for file in files]
        images = torch.cat([torch.from_numpy(batch["data"]).view(-1, 3, 32, 32) for batch in batches])
        labels = torch.cat([torch.tensor(batch["labels"]) for batch in batches])
        return images, labels, len(batches[-1]["labels"])
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{archive}: not a CIFAR-10 archive ({error}); delete it to download a new one") from error


class ArrayUnpickler(pickle.Unpickler):
    """Loads only numpy arrays, strings, numbers, lists and dicts.

    Other classes in a pickle could run any code.
    """

    def find_class(self, module: str, name: str) -> Any:
        is_array = module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype")
        # With protocol 2, Python 3 writes bytes as a call to _codecs.encode.
        if not is_array and (module, name) != ("_codecs", "encode"):
            raise pickle.UnpicklingError(f"contains {module}.{name}, expected arrays and labels only")
        return super().find_class(module, name)


def check_images(images: Tensor, labels: Tensor, num_channels: int) -> None:
    """Raises ValueError unless images are uint8 [N, num_channels, H, W] and labels int64 [N]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != num_channels:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, {num_channels}, H, W]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected torch.int64 [{len(images)}]")
