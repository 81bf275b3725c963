"""Made-up images in CIFAR-10's shapes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def striped_images(num_images: int, num_classes: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [num_images, 3, 32, 32] uint8 and labels [num_images] int64 of 1 to 10 classes.

    Each class is a pattern of stripes: one of five slopes, fine or coarse. Slope, width, position and colour vary
    within a class, and there is noise, so that no pixel or colour alone tells the classes apart.
    """
    if num_classes > 10:
        raise ValueError(f"num_classes={num_classes} is out of range: there are patterns of stripes for 10 classes")
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
