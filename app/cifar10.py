"""CIFAR-10 as one uint8 tensor per split, augmented a whole batch at a time on the device of the batch."""

from pathlib import Path

import torch
import torch.nn.functional as F
from cifar10_files import URL, check_images, read_cifar10
from jsonargparse.typing import NonNegativeInt, PositiveInt
from pytorch_lightning import LightningDataModule
from runtime.index_loader import IndexLoader, generator
from torch import Tensor

AUGMENTATION, SPLIT = 1, 2  # streams of random numbers, independent of IndexLoader's ORDER


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 by 32 pixels in 10 classes.

    Batches are float32 images [batch_size, 3, 32, 32], of mean 0 and standard deviation 1 per channel, and int64 labels
    [batch_size], on the network's device.
    A subclass for other images, all of one size, has its own `read`, `num_classes`, `mean`, `std` and `description`.

    Args:
        data_dir: Folder, read-only or not, with cifar-10-python.tar.gz, which is downloaded if it is missing.
        batch_size: Images per process and step, from 1. The global batch is this times the number of processes.
        val_split: Number of training images held out for validation, from 0 to 49,999.
        augment: Crop training images at random from a black frame, and mirror half of them.
        alternate_flips: Mirror each image in every other epoch, not at random (Jordan 2024, arXiv 2404.00498).
        padding: Width of that frame in pixels; 4 in He et al. 2015, section 4.2, and less for short trainings.
        seed: Seed of the validation split and of each epoch's order, crops and mirrorings, from 0.
        verify: Accept only files with CIFAR-10's official MD5 checksums. Others could run code: they are pickles.
        url: Where a missing archive is downloaded from.
    """

    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, per channel, in [0, 1]
    std = (0.2470, 0.2435, 0.2616)
    description = "CIFAR-10"
    # The command line lets an interrupted run go on with other values of these options: the images are the same from
    # any folder or server, and with another world size only another batch_size makes the same global batch.
    may_change = ("data_dir", "url", "verify", "batch_size")

    def __init__(
        self,
        data_dir: str = ".cache",
        batch_size: PositiveInt = 32,
        val_split: NonNegativeInt = 10000,
        augment: bool = True,
        padding: NonNegativeInt = 4,
        alternate_flips: bool = False,
        seed: NonNegativeInt = 0,
        verify: bool = True,
        url: str = URL,
    ):
        super().__init__()
        self.data_dir, self.batch_size, self.val_split = Path(data_dir), batch_size, val_split
        self.augment, self.padding, self.alternate_flips, self.seed = augment, padding, alternate_flips, seed
        self.verify, self.url, self._drawn_epoch = verify, url, None
        self.num_samples: dict[str, int] = {}
        self._tensors: dict[str, Tensor] = {}

    def read(self) -> tuple[Tensor, Tensor, int]:
        """All images [N, C, H, W] uint8, all labels [N] int64, and how many at the end are the test set."""
        return read_cifar10(self.data_dir, self.url, self.verify)

    def setup(self, stage: str | None = None) -> None:
        if self.num_samples:
            return
        images, labels, num_test = self.read()
        check_images(images, labels, self.num_classes, self.mean, self.std)
        num_train = len(images) - num_test
        if self.val_split >= num_train:
            raise ValueError(f"val_split={self.val_split} must be less than the {num_train} images for training")
        order = torch.randperm(num_train, generator=generator(self.seed, SPLIT))
        order = torch.cat([order, torch.arange(num_train, len(images))])
        sizes = [num_train - self.val_split, self.val_split, num_test]
        for split, indices in zip(("train", "val", "test"), order.split(sizes), strict=True):
            self._tensors[f"{split}_images"], self._tensors[f"{split}_labels"] = images[indices], labels[indices]
            self.num_samples[split] = len(indices)
        self._tensors["mean"] = torch.tensor(self.mean).view(-1, 1, 1) * 255
        self._tensors["std"] = torch.tensor(self.std).view(-1, 1, 1) * 255
        if self.augment:
            # Both mirror images are kept, half a GB of CIFAR-10: 1.6 times as fast as mirroring every batch.
            both = torch.stack([self._tensors["train_images"], self._tensors["train_images"].flip(-1)])
            self._tensors["train_images"] = F.pad(both, (self.padding,) * 4)

    prepare_data = check = setup  # train.py checks the data before it starts other processes

    def train_dataloader(self) -> IndexLoader:
        return self._loader("train", seed=self.seed)

    def val_dataloader(self) -> IndexLoader | list:
        return self._loader("val") if self.val_split else []

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
                numbers, num_places = generator(self.seed, AUGMENTATION, epoch), 2 * self.padding + 1
                drawn = [torch.randint(num, labels.shape, generator=numbers) for num in (2, num_places, num_places)]
                if self.alternate_flips:
                    first = torch.randint(2, labels.shape, generator=generator(self.seed, AUGMENTATION))
                    drawn[0] = (first + epoch) % 2
                self._tensors["drawn"], self._drawn_epoch = torch.stack(drawn).to(indices.device), epoch
            mirror, top, left = self._tensors["drawn"][:, indices]
            height, width = (length - 2 * self.padding for length in images.shape[-2:])
            images = images.unfold(3, height, 1).unfold(4, width, 1)[mirror, indices, :, top, left]
        else:
            images = images[indices]
        return images.float().sub_(self._tensors["mean"]).div_(self._tensors["std"]), labels[indices]
