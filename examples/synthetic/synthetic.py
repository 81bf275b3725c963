"""Synthetic images with the shapes of CIFAR-10, to try the program without a download."""

import math

import torch
import torch.nn.functional as F
from cifar10 import CIFAR10DataModule
from jsonargparse.typing import PositiveInt
from runtime.index_loader import seeded_generator
from torch import Tensor

SYNTHESIS = 3  # a stream of random numbers, independent of those in cifar10.py


class SyntheticCIFAR10DataModule(CIFAR10DataModule):
    """Synthetic images with the shapes of CIFAR-10, generated in memory from the seed. Not a benchmark.

    Each class is a noisy pattern of stripes with random variations, see `striped_images`.

    Args:
        num_train_images: Number of images for training and validation together.
        num_test_images: Number of test images.
        **kwargs: As for CIFAR10DataModule; those about files have no effect.
    """

    description = "synthetic images, not CIFAR-10"

    def __init__(self, num_train_images: PositiveInt = 50000, num_test_images: PositiveInt = 10000, **kwargs):
        super().__init__(**kwargs)
        self.num_train_images = num_train_images
        self.num_test_images = num_test_images

    def read(self) -> tuple[Tensor, Tensor, int]:
        rng = seeded_generator(self.seed, SYNTHESIS)
        images, labels = striped_images(self.num_train_images + self.num_test_images, self.num_classes, rng)
        return images, labels, self.num_test_images


def striped_images(num_images: int, num_classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns images [num_images, 3, 32, 32] uint8 and labels [num_images] int64 of 1 to 10 classes.

    Each class is a pattern of stripes with one of five slopes, fine or coarse. Slope, width, position and color vary
    within a class, and noise is added, so that no single pixel or color identifies a class.
    """
    labels = torch.randint(num_classes, (num_images,), generator=rng)
    jitter = torch.rand((4, num_images), generator=rng) * 2 - 1
    slope = (labels % 5 * math.pi / 8 + jitter[0] / 10) * jitter[1].sign()  # mirroring does not change the class
    frequency = torch.where(labels < 5, 3, 6) * (1 + 0.15 * jitter[2]) * 2 * math.pi / 32
    pixels = torch.arange(32.0)
    x_phase = pixels * (frequency * slope.cos())[:, None] + math.pi * jitter[3][:, None]
    y_phase = pixels * (frequency * slope.sin())[:, None]
    colors = F.normalize(torch.randn((num_images, 3, 1, 1), generator=rng), dim=1) * 56
    images = torch.empty((num_images, 3, 32, 32), dtype=torch.uint8)
    noise = torch.empty(images[:500].numel() // 8, dtype=torch.int64)
    for part in torch.arange(num_images).split(500):
        stripes = torch.cos(y_phase[part, :, None] + x_phase[part, None, :])
        background = noise.random_(-(2**63), None, generator=rng).view(torch.uint8).view(-1, 3, 32, 32) / 2 + 64
        images[part] = background[: len(part)].addcmul_(stripes[:, None], colors[part]).clamp_(0, 255).byte()
    return images, labels
