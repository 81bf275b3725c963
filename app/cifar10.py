"""CIFAR-10 as one uint8 tensor per split. Whole batches are augmented at once, on the training device."""

from pathlib import Path

import torch
import torch.nn.functional as F
from cifar10_files import URL, check_images, read_cifar10
from jsonargparse.typing import NonNegativeInt, PositiveInt
from pytorch_lightning import LightningDataModule
from runtime.index_loader import IndexLoader, seeded_generator
from torch import Tensor

AUGMENTATION, SPLIT = 1, 2  # IDs of random streams; IndexLoader shuffles with stream 0


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 by 32 pixels in 10 classes.

    Batches are float32 images [batch_size, 3, 32, 32], normalized to mean 0 and standard deviation 1 per
    channel, and int64 labels [batch_size], on the training device. For other images, all of the same size,
    subclass this and define `read`, `num_classes`, `mean`, `std` and `description`.

    Args:
        data_dir: Folder with cifar-10-python.tar.gz, which is downloaded if it is missing. If the file
            exists, the folder may be read-only.
        batch_size: Batch size of each process, at least 1. The global batch size is this times the number of
            processes.
        val_split: Number of training images held out for validation, from 0 to 49,999.
        augment: Pad training images with black, crop them at random positions, and flip half of them
            horizontally.
        padding: Pixels of padding on each side: 4 as in He et al. 2015, section 4.2; use fewer for short
            runs.
        seed: Seed of the validation split, the shuffling, the crops and the flips, at least 0.
        verify: Accept only an archive with CIFAR-10's official MD5 checksum.
        url: Address from which a missing archive is downloaded.
    """

    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, per channel, in [0, 1]
    std = (0.2470, 0.2435, 0.2616)
    description = "CIFAR-10"
    samples_name = "images"
    # Options that may change when a run resumes: the images are assumed to be the same in any folder and from
    # any server, and on a different number of processes only a different batch_size gives the same global
    # batch size.
    resume_safe_options = ("data_dir", "url", "verify", "batch_size")

    def __init__(
        self,
        data_dir: str = ".cache",
        batch_size: PositiveInt = 32,
        val_split: NonNegativeInt = 10000,
        augment: bool = True,
        padding: NonNegativeInt = 4,
        seed: NonNegativeInt = 0,
        verify: bool = True,
        url: str = URL,
    ):
        super().__init__()
        self.data_dir = Path(data_dir).expanduser()
        self.url = url
        self.verify = verify
        self.augment = augment
        self.padding = padding
        self.batch_size = batch_size
        self.val_split = val_split
        self.seed = seed
        self.num_samples: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        self.augmented_epoch: int | None = None

    def read(self) -> tuple[Tensor, Tensor, int]:
        """Returns all images [N, C, H, W] uint8, all labels [N] int64, and the size of the test set.

        Labels are from 0 to num_classes - 1. The test set is at the end of the images.
        """
        return read_cifar10(self.data_dir, self.url, self.verify)

    def check_before_training(self) -> None:
        self.setup()  # reads and checks the images before train.py starts other processes

    def prepare_data(self) -> None:
        self.setup()  # on one process per host, so that only one downloads the archive

    def setup(self, stage: str | None = None) -> None:
        if self.num_samples:  # already set up
            return
        images, labels, num_test = self.read()
        check_images(images, labels, len(self.mean))
        num_train = len(images) - num_test
        if self.val_split >= num_train:
            raise ValueError(f"--data.val_split={self.val_split}: expected less than {num_train} (training images)")

        shuffled = torch.randperm(num_train, generator=seeded_generator(self.seed, SPLIT))
        splits = {
            "train": shuffled[: num_train - self.val_split],
            "val": shuffled[num_train - self.val_split :],
            "test": torch.arange(num_train, len(images)),
        }
        for split, indices in splits.items():
            self.num_samples[split] = len(indices)
            self.tensors[f"{split}_images"] = images[indices]
            self.tensors[f"{split}_labels"] = labels[indices]
        self.tensors["mean"] = torch.tensor(self.mean).view(-1, 1, 1) * 255
        self.tensors["std"] = torch.tensor(self.std).view(-1, 1, 1) * 255
        if self.augment:
            # Storing mirrored images as well, 0.4 GB in total for CIFAR-10, is 1.6 times as fast as flipping
            # batches.
            flips = torch.stack([self.tensors["train_images"], self.tensors["train_images"].flip(-1)])
            self.tensors["train_images"] = F.pad(flips, (self.padding,) * 4)

    def train_dataloader(self) -> IndexLoader:
        is_shuffled = not (self.trainer and self.trainer.overfit_batches)
        return self.index_loader("train", seed=self.seed if is_shuffled else None)

    def val_dataloader(self) -> IndexLoader | list:
        return self.index_loader("val") if self.val_split else []

    def test_dataloader(self) -> IndexLoader:
        return self.index_loader("test")

    def index_loader(self, split: str, seed: int | None = None) -> IndexLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        return IndexLoader(self.num_samples[split], self.batch_size, seed, rank, world_size)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        images, labels = self.gather(split, batch, self.trainer.current_epoch)
        # Lightning has applied --trainer.precision only to the batch of indices, which it does not change.
        return self.trainer.precision_plugin.convert_input(images), labels

    def gather(self, split: str, indices: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns normalized images [B, C, H, W] float32 and labels [B] int64 of a split.

        They are on the device of `indices` [B] int64, to which all splits are moved. Training images are
        augmented as drawn for `epoch`.
        """
        if self.tensors["mean"].device != indices.device:
            self.tensors = {name: tensor.to(indices.device) for name, tensor in self.tensors.items()}
        images = self.tensors[f"{split}_images"]
        if split == "train" and self.augment:
            if epoch != self.augmented_epoch:
                self.tensors["augmentation"] = self.draw_augmentation(epoch).to(indices.device)
                self.augmented_epoch = epoch
            flip, top, left = self.tensors["augmentation"][:, indices]
            height, width = (size - 2 * self.padding for size in images.shape[-2:])
            crops = images.unfold(3, height, 1).unfold(4, width, 1)  # [2, N, C, top, left, height, width]
            images = crops[flip, indices, :, top, left]
        else:
            images = images[indices]
        images = images.float().sub_(self.tensors["mean"]).div_(self.tensors["std"])
        return images, self.tensors[f"{split}_labels"][indices]

    def draw_augmentation(self, epoch: int) -> Tensor:
        """Returns flip, top and left of an epoch, as int64 [3, num_train].

        `flip` is 0 or 1, `top` and `left` are pixels from 0 to 2 * padding. They do not depend on the number
        of processes.
        """
        rng = seeded_generator(self.seed, AUGMENTATION, epoch)
        shape = (self.num_samples["train"],)
        num_offsets = 2 * self.padding + 1
        flip = torch.randint(2, shape, generator=rng)
        top = torch.randint(num_offsets, shape, generator=rng)
        left = torch.randint(num_offsets, shape, generator=rng)
        return torch.stack([flip, top, left])
