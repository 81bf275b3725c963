"""Made-up images in CIFAR-10's shapes, to try things out without a download."""

import math

import torch
import torch.nn.functional as F
from cifar10 import CIFAR10DataModule
from jsonargparse.typing import PositiveInt
from runtime.index_loader import seeded_generator
from torch import Tensor

SYNTHESIS = 3  # a stream of random numbers of its own


class SyntheticCIFAR10DataModule(CIFAR10DataModule):
    """Synthetic images in CIFAR-10's shapes, made in memory from the seed: to try things out, not a benchmark.

    Each class is a pattern of stripes, varied and noisy, so that no pixel or colour alone tells the classes apart.

    Args:
        num_train_images: Number of images for training and validation together.
        **kwargs: As for CIFAR10DataModule, which reads files.
    """

    description = "synthetic images, not CIFAR-10"

    def __init__(self, num_train_images: PositiveInt = 50000, num_test_images: PositiveInt = 10000, **kwargs):
        super().__init__(**kwargs)
        self.num_train_images, self.num_test_images = num_train_images, num_test_images

    def read(self) -> tuple[Tensor, Tensor, int]:
        numbers = seeded_generator(self.seed, SYNTHESIS)
        images, labels = striped_images(self.num_train_images + self.num_test_images, self.num_classes, numbers)
        return images, labels, self.num_test_images


def striped_images(num_images: int, num_classes: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [num_images, 3, 32, 32] uint8 and labels [num_images] int64 of 1 to 10 classes.

    Each class is a pattern of stripes: one of five slopes, fine or coarse. Slope, width, position and colour vary
    within a class, and there is noise, so that no pixel or colour alone tells the classes apart.
    """
    labels = torch.randint(num_classes, (num_images,), generator=numbers)
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
    return images, labels
