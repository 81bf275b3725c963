"""CIFAR-10's files, read without trust in what they hold, and a check of images in memory."""

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
from tqdm import tqdm

URL = CIFAR10.url
BATCHES = dict(CIFAR10.train_list + CIFAR10.test_list)
MD5 = {**BATCHES, CIFAR10.filename: CIFAR10.tgz_md5}


class ArrayUnpickler(pickle.Unpickler):
    """Loads arrays and plain values only, because any other class named in a pickle could run code."""

    ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct")
    ALLOWED += ("numpy._core.numeric._frombuffer", "_codecs.encode")  # in pickles that Python 3 wrote

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 2 calls it
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which image data never does")
        return super().find_class(module, name)


def parse_batch(name: str, content: bytes) -> tuple[Tensor, Tensor]:
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        return torch.from_numpy(batch["data"]).view(-1, 3, 32, 32), torch.tensor(batch["labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is not a file of CIFAR-10: {error}") from error


def checked(content: bytes, path: Path, verify: bool) -> bytes:
    if verify and (found := hashlib.md5(content).hexdigest()) != MD5[path.name]:
        raise ValueError(f"{path} has MD5 {found}, not CIFAR-10's: get it again, or accept it by --data.verify=false")
    return content


def download(url: str, target: Path, verify: bool) -> bytes:
    check_writable(str(target.parent))
    try:
        response = urllib.request.urlopen(url, timeout=30)
        print(f"downloading {url} to {target}", file=sys.stderr)
        with tqdm.wrapattr(response, "read", total=response.length, disable=None, leave=False) as reader:
            content = b"".join(iter(lambda: reader.read(1 << 20), b""))
        write_atomically(checked(content, target, verify), target)
        return content
    except (OSError, ValueError) as error:
        advice = "put the file there, or train on synthetic images with --data=SyntheticCIFAR10DataModule"
        raise OSError(f"{target} is missing, and downloading it from {url} failed ({error}): {advice}") from error


def read_cifar10(data_dir: Path, url: str = URL, verify: bool = True) -> tuple[Tensor, Tensor, int]:
    """All images [N, 3, 32, 32] uint8, all labels [N] int64 from 0 to 9, and how many at the end are the test set."""
    archive, folder = data_dir / CIFAR10.filename, data_dir / CIFAR10.base_folder
    if folder.exists() and not archive.exists():
        files = {name: checked((folder / name).read_bytes(), folder / name, verify) for name in BATCHES}
    else:
        content = checked(archive.read_bytes(), archive, verify) if archive.exists() else download(url, archive, verify)
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                members = {Path(member.name).name: tar.extractfile(member).read() for member in tar if member.isfile()}
            files = {name: members[name] for name in BATCHES}
        except Exception as error:  # a damaged archive can raise anything
            raise ValueError(f"{archive} is not a complete archive ({error}): delete it to get it again") from error
    images, labels = zip(*(parse_batch(name, content) for name, content in files.items()), strict=True)
    return torch.cat(images), torch.cat(labels), len(labels[-1])


def check_images(images: Tensor, labels: Tensor, num_classes: int, mean: tuple, std: tuple) -> None:
    """Raises ValueError unless images are uint8 [N, C, H, W] with C means and standard deviations, labels int64 [N]."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: make them torch.uint8 [N, C, H, W]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: make them torch.int64 [{len(images)}]")
    if labels.min() < 0 or labels.max() >= num_classes:
        allowed = f"num_classes={num_classes} allows 0 to {num_classes - 1}"
        raise ValueError(f"labels are {labels.min()} to {labels.max()}: {allowed}")
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(f"mean={mean} and std={std} must each have a value for each of {images.shape[1]} channels")
