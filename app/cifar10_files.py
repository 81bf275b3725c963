"""CIFAR-10's files, read without trust in what they hold, and checks of what data modules are given."""

import gzip
import hashlib
import io
import pickle
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from runtime.files import check_writable, write_atomically
from torch import Tensor
from torchvision.datasets import CIFAR10
from tqdm import tqdm

URL = CIFAR10.url
META = CIFAR10.meta["filename"]
BATCHES = dict(CIFAR10.train_list + CIFAR10.test_list)
MD5 = {**BATCHES, META: CIFAR10.meta["md5"], CIFAR10.filename: CIFAR10.tgz_md5}


class ArrayUnpickler(pickle.Unpickler):
    """Loads arrays and plain values only, because any other class named in a pickle could run code."""

    ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct")
    ALLOWED += ("numpy._core.numeric._frombuffer", "_codecs.encode")  # in pickles that Python 3 wrote

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 2 calls it
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which image data never does")
        return super().find_class(module, name)


def unpickle(name: str, content: bytes) -> dict[str, object]:
    try:
        values = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in values.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is not a file of CIFAR-10: {error}") from error


def parse_batch(name: str, content: bytes, num_images: int) -> tuple[Tensor, Tensor]:
    batch = unpickle(name, content)
    data, labels = np.asarray(batch.get("data")), np.asarray(batch.get("labels"))
    if data.dtype != np.uint8 or data.shape != (num_images, 3072):
        raise ValueError(f"{name} holds {data.dtype} {data.shape}, where uint8 ({num_images}, 3072) belongs")
    if labels.shape != (num_images,) or not np.isin(labels, range(10)).all():
        raise ValueError(f"{name} must have {num_images} labels from 0 to 9, not {labels.shape} {np.unique(labels)}")
    return torch.from_numpy(data.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64))


def checked(content: bytes, path: Path, verify: bool) -> bytes:
    if verify and (found := hashlib.md5(content).hexdigest()) != MD5[path.name]:
        raise ValueError(f"{path} has MD5 {found}, not CIFAR-10's: get it again, or accept it by --data.verify=false")
    return content


# The target appears only when it is complete and, if asked, verified.
def download(url: str, target: Path, verify: bool) -> bytes:
    check_writable(str(target.parent))
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            num_bytes = int(response.headers["Content-Length"] or 0)
            print(f"downloading {url} ({num_bytes / 1e6:.0f} MB) to {target}", file=sys.stderr)
            with tqdm.wrapattr(response, "read", total=num_bytes, disable=None, leave=False) as reader:
                content = b"".join(iter(lambda: reader.read(1 << 20), b""))
        if len(content) < num_bytes:
            raise OSError(f"the connection broke off after {len(content)} of {num_bytes} bytes")
        write_atomically(checked(content, target, verify), target)
        return content
    except (OSError, ValueError) as error:
        raise OSError(
            f"{target} is missing, and downloading it from {url} failed ({error}). "
            "Put the file there, or train on synthetic images with --data=SyntheticCIFAR10DataModule"
        ) from error


def read_files(data_dir: Path, url: str, verify: bool) -> dict[str, bytes]:
    archive, folder = data_dir / CIFAR10.filename, data_dir / CIFAR10.base_folder
    if folder.exists() and not archive.exists():
        paths = [folder / name for name in (META, *BATCHES)]
        return {path.name: checked(path.read_bytes(), path, verify) for path in paths}
    content = checked(archive.read_bytes(), archive, verify) if archive.exists() else download(url, archive, verify)
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
            return {name: tar.extractfile(f"{folder.name}/{name}").read() for name in (META, *BATCHES)}
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{archive} is not a complete archive ({error}): delete it to get it again") from error


def read_cifar10(data_dir: Path, url: str = URL, verify: bool = True) -> tuple[Tensor, Tensor, int]:
    """All images [N, 3, 32, 32] uint8, all labels [N] int64 from 0 to 9, and how many at the end are the test set.

    Raises ValueError if the files are not CIFAR-10's, OSError if they cannot be read or downloaded.
    """
    files = read_files(data_dir, url, verify)
    num_images = unpickle(META, files[META]).get("num_cases_per_batch", 10000)
    images, labels = zip(*(parse_batch(name, files[name], num_images) for name in BATCHES), strict=True)
    return torch.cat(images), torch.cat(labels), num_images


def check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name}={value} is out of range: it must be at least {least}")


def check_images(images: Tensor, labels: Tensor, num_classes: int, mean: tuple, std: tuple) -> None:
    """Raises ValueError unless images are uint8 [N, C, H, W] with C means and standard deviations, labels int64 [N]."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: make them torch.uint8 [N, C, H, W]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: make them torch.int64 [{len(images)}]")
    if len(wrong := labels[(labels < 0) | (labels >= num_classes)]):
        raise ValueError(f"label {wrong[0]} is out of range: num_classes={num_classes} allows 0 to {num_classes - 1}")
    if not len(mean) == len(std) == images.shape[1]:
        values = f"mean has {len(mean)} and std {len(std)} values"
        raise ValueError(f"images have {images.shape[1]} channels, but {values}: set both, with one value per channel")
