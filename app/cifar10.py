"""CIFAR-10 as one uint8 tensor per split, augmented a whole batch at a time on the device of the batch."""

import gzip
import hashlib
import io
import math
import pickle
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule
from runtime.files import check_writable, write_atomically
from runtime.index_loader import IndexLoader
from torch import Tensor
from torchvision.datasets import CIFAR10
from tqdm import tqdm

MEAN = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, per channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)
PADDING = 4  # pixels around a training image before a random crop, as in He et al. 2015, section 4.2
ORDER, AUGMENTATION, SPLIT, SYNTHESIS = range(4)  # independent streams of random numbers

META = CIFAR10.meta["filename"]
BATCHES = dict(CIFAR10.train_list + CIFAR10.test_list)
MD5 = {**BATCHES, META: CIFAR10.meta["md5"], CIFAR10.filename: CIFAR10.tgz_md5}


def generator(*key: int) -> torch.Generator:
    """A CPU random generator that depends on the non-negative numbers of `key` alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def check_least(least: int, **values: int) -> None:
    """Raises ValueError for a value that is smaller than `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name}={value} is out of range: it must be at least {least}")


class ArrayUnpickler(pickle.Unpickler):
    """Loads arrays and plain values only, because any other class named in a pickle could run code."""

    ALLOWED = (
        *("numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct"),
        *("numpy._core.numeric._frombuffer", "_codecs.encode"),  # in pickles that Python 3 wrote
    )

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 2 calls it
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which image data never does")
        return super().find_class(module, name)


def unpickle(name: str, content: bytes) -> dict[str, object]:
    """What a file of CIFAR-10 holds; ValueError if it is none."""
    try:
        values = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in values.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is not a file of CIFAR-10: {error}") from error


def parse_batch(name: str, content: bytes, num_images: int) -> tuple[Tensor, Tensor]:
    """Images [num_images, 3, 32, 32] uint8 and labels [num_images] int64; ValueError if the file holds no such."""
    batch = unpickle(name, content)
    data, labels = np.asarray(batch.get("data")), np.asarray(batch.get("labels"))
    if data.dtype != np.uint8 or data.shape != (num_images, 3072):
        raise ValueError(f"{name} holds {data.dtype} {data.shape}, where uint8 ({num_images}, 3072) belongs")
    if labels.shape != (num_images,) or not np.isin(labels, range(10)).all():
        raise ValueError(f"{name} must have {num_images} labels from 0 to 9, not {labels.shape} {np.unique(labels)}")
    return torch.from_numpy(data.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64))


def checked(content: bytes, path: Path, verify: bool) -> bytes:
    """The content of a file; ValueError if asked to verify it and it is not the one CIFAR-10's authors publish."""
    if verify and (found := hashlib.md5(content).hexdigest()) != MD5[path.name]:
        raise ValueError(f"{path} has MD5 {found}, not CIFAR-10's: get it again, or accept it by --data.verify=false")
    return content


def download(url: str, target: Path, verify: bool) -> bytes:
    """CIFAR-10's archive, also written to `target`, which appears only when it is complete and, if asked, verified."""
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


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 by 32 pixels in 10 classes.

    Batches are float32 images [batch_size, 3, 32, 32] and int64 labels [batch_size] on the network's device.

    Args:
        data_dir: Folder, read-only or not, with cifar-10-python.tar.gz, downloaded if missing, or cifar-10-batches-py/.
        batch_size: Images per process and step, from 1. The global batch is this times the number of processes.
        val_split: Number of training images held out for validation, from 1 to 49,999.
        normalize: Shift and scale each channel to mean 0 and standard deviation 1; otherwise pixels are in [0, 1].
        augment: Crop training images at random from a frame of 4 black pixels, and mirror half of them.
        seed: Seed of the validation split and of each epoch's order, crops and mirrorings, from 0.
        verify: Accept only files with CIFAR-10's official MD5 checksums. Otherwise check their structure only.
        url: Where a missing archive is downloaded from.

    Raises:
        ValueError: An argument is out of range, or the files are not CIFAR-10's.
        OSError: The archive cannot be read, or is missing and cannot be downloaded.
    """

    num_classes = 10
    may_change = ("data_dir", "url", "verify", "batch_size")
    description = "CIFAR-10"

    def __init__(
        self,
        data_dir: str = ".cache",
        batch_size: int = 32,
        val_split: int = 10000,
        normalize: bool = True,
        augment: bool = True,
        seed: int = 0,
        verify: bool = True,
        url: str = CIFAR10.url,
    ):
        super().__init__()
        check_least(1, batch_size=batch_size, val_split=val_split)
        check_least(0, seed=seed)
        self.data_dir, self.batch_size, self.val_split = Path(data_dir), batch_size, val_split
        self.normalize, self.augment, self.seed = normalize, augment, seed
        self.verify, self.url, self._drawn_epoch = verify, url, None
        self.num_samples: dict[str, int] = {}
        self._tensors: dict[str, Tensor] = {}

    def files(self) -> dict[str, bytes]:
        """CIFAR-10's files by name, verified if asked, from the archive or the extracted folder."""
        archive, folder = self.data_dir / CIFAR10.filename, self.data_dir / CIFAR10.base_folder
        if folder.exists() and not archive.exists():
            paths = [folder / name for name in (META, *BATCHES)]
            return {path.name: checked(path.read_bytes(), path, self.verify) for path in paths}
        if archive.exists():
            content = checked(archive.read_bytes(), archive, self.verify)
        else:
            content = download(self.url, archive, self.verify)
        try:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
                return {name: tar.extractfile(f"{folder.name}/{name}").read() for name in (META, *BATCHES)}
        except Exception as error:  # a damaged archive can raise anything
            raise ValueError(f"{archive} is not a complete archive ({error}): delete it to get it again") from error

    def read(self) -> tuple[Tensor, Tensor, int]:
        """All images [N, 3, 32, 32] uint8, all labels [N] int64, and how many at the end are the test set."""
        files = self.files()
        num_images = unpickle(META, files[META]).get("num_cases_per_batch", 10000)
        images, labels = zip(*(parse_batch(name, files[name], num_images) for name in BATCHES), strict=True)
        return torch.cat(images), torch.cat(labels), num_images

    def setup(self, stage: str | None = None) -> None:
        if self.num_samples:
            return
        images, labels, num_test = self.read()
        order = torch.randperm(len(images) - num_test, generator=generator(self.seed, SPLIT))
        if self.val_split >= len(order):
            raise ValueError(f"val_split={self.val_split} must be less than the {len(order)} images for training")
        splits = {"train": order[: -self.val_split], "val": order[-self.val_split :]}
        for split, indices in (splits | {"test": torch.arange(len(order), len(images))}).items():
            self._tensors[f"{split}_images"], self._tensors[f"{split}_labels"] = images[indices], labels[indices]
            self.num_samples[split] = len(indices)
        self._tensors["mean"] = torch.tensor(MEAN if self.normalize else (0.0,) * 3).view(3, 1, 1) * 255
        self._tensors["std"] = torch.tensor(STD if self.normalize else (1.0,) * 3).view(3, 1, 1) * 255
        if self.augment:
            # Both mirror images are kept, half a GB at most: 1.6 times as fast as mirroring every batch.
            framed = F.pad(self._tensors["train_images"], (PADDING,) * 4)
            self._tensors["train_images"] = torch.stack([framed, framed.flip(-1)])

    prepare_data = check = setup

    def train_dataloader(self) -> IndexLoader:
        return self._loader("train", seed=self.seed)

    def val_dataloader(self) -> IndexLoader:
        return self._loader("val")

    def test_dataloader(self) -> IndexLoader:
        return self._loader("test")

    def _loader(self, split: str, seed: int | None = None) -> IndexLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return IndexLoader(self.num_samples[split], self.batch_size, seed, rank, world_size)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        return self.batch(split, batch, self.trainer.current_epoch)

    def batch(self, split: str, indices: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images and labels of a split's samples, on the device of `indices`; training images as `epoch` shows them."""
        if self._tensors["mean"].device != indices.device:
            self._tensors = {name: tensor.to(indices.device) for name, tensor in self._tensors.items()}
        images, labels = self._tensors[f"{split}_images"], self._tensors[f"{split}_labels"]
        if split == "train" and self.augment:
            if epoch != self._drawn_epoch:  # for every sample, whichever rank and batch it will be in
                numbers, size = generator(self.seed, AUGMENTATION, epoch), (len(labels),)
                drawn = [torch.randint(num, size, generator=numbers) for num in (2, 2 * PADDING + 1, 2 * PADDING + 1)]
                self._tensors["drawn"], self._drawn_epoch = torch.stack(drawn).to(indices.device), epoch
            mirror, top, left = self._tensors["drawn"][:, indices]
            images = images.unfold(3, 32, 1).unfold(4, 32, 1)[mirror, indices, :, top, left]
        else:
            images = images[indices]
        return images.float().sub_(self._tensors["mean"]).div_(self._tensors["std"]), labels[indices]


class SyntheticCIFAR10DataModule(CIFAR10DataModule):
    """Synthetic images in CIFAR-10's shapes, made in memory from the seed: to try things out, not a benchmark.

    Each class is a pattern of stripes: one of five slopes, fine or coarse. Slope, width, position and colour vary
    within a class, and there is noise, so that no pixel or colour alone tells the classes apart.

    Args:
        num_train_images: Number of images for training and validation together.
        num_test_images: Number of test images.
        **kwargs: As for CIFAR10DataModule, which reads files.
    """

    description = "synthetic images, not CIFAR-10"

    def __init__(self, num_train_images: int = 50000, num_test_images: int = 10000, **kwargs):
        super().__init__(**kwargs)
        check_least(1, num_train_images=num_train_images, num_test_images=num_test_images)
        self.num_train_images, self.num_test_images = num_train_images, num_test_images

    def read(self) -> tuple[Tensor, Tensor, int]:
        num_images = self.num_train_images + self.num_test_images
        numbers = generator(self.seed, SYNTHESIS)
        labels = torch.randint(self.num_classes, (num_images,), generator=numbers)
        jitter = torch.rand((4, num_images), generator=numbers) * 2 - 1
        slope = (labels % 5 * math.pi / 8 + jitter[0] / 10) * jitter[1].sign()  # mirroring does not change the class
        frequency = torch.where(labels < 5, 3, 6) * (1 + 0.15 * jitter[2]) * 2 * math.pi / 32
        pixels = torch.arange(32.0)
        across = pixels * (frequency * slope.cos())[:, None] + math.pi * jitter[3][:, None]
        down = pixels * (frequency * slope.sin())[:, None]
        colours = F.normalize(torch.randn((num_images, 3, 1, 1), generator=numbers), dim=1) * 56
        images = torch.empty((num_images, 3, 32, 32), dtype=torch.uint8)
        noise = torch.empty(images[:500].numel() // 8, dtype=torch.int64)
        for part in torch.arange(num_images).split(500):
            stripes = torch.cos(down[part, :, None] + across[part, None, :])
            background = noise.random_(-(2**63), None, generator=numbers).view(torch.uint8).view(-1, 3, 32, 32) / 2 + 64
            images[part] = background[: len(part)].addcmul_(stripes[:, None], colours[part]).clamp_(0, 255).byte()
        return images, labels, self.num_test_images
