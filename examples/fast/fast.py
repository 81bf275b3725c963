"""The fast recipe: airbench94 (Jordan 2024, arXiv 2404.00498, and https://github.com/KellerJordan/cifar10-airbench) at
half its width, with images that grow during training (Touvron et al. 2019, arXiv 1906.06423, for another purpose)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cifar10 import AUGMENTATION, CIFAR10DataModule
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from resnet import Classifier
from runtime.index_loader import seeded_generator
from torch import Tensor, nn

NUM_WHITENING_IMAGES = 5000  # from which the filters of the first layer are computed
PATCH_SIZE = 2  # pixels per side of the patches that the first layer whitens


class FastCIFAR10DataModule(CIFAR10DataModule):
    """CIFAR-10, with each training image flipped in every other epoch instead of at random (Jordan 2024)."""

    def draw_augmentation(self, epoch: int) -> Tensor:
        _, top, left = super().draw_augmentation(epoch)
        flip_at_first = torch.randint(2, top.shape, generator=seeded_generator(self.seed, AUGMENTATION))
        return torch.stack([(flip_at_first + epoch) % 2, top, left])


class FastNet(Classifier):
    """Three blocks of two convolutions each, on whitened patches.

    Args:
        widths: Number of channels of each block.
        resolutions: Size of the images, in pixels, in the first 45% of all steps, the next 30%, and the last 25%.
        lr: Learning rate of the filters in the first step, from which it decreases linearly to 0.
        label_smoothing: Probability that is spread over all classes in training (Szegedy et al. 2016).
        whiten: Initialize the first layer's filters to decorrelate the pixels of a patch, and train only its bias.
        orthogonal: Make updates of filters orthogonal, as Muon does.
        tta: Outside of training, average the logits over shifted and flipped images (test-time augmentation).
        num_classes: Number of classes.
    """

    def __init__(
        self,
        widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 128, 128),
        resolutions: tuple[PositiveInt, PositiveInt, PositiveInt] = (20, 26, 32),
        lr: PositiveFloat = 0.12,
        label_smoothing: float = 0.2,
        whiten: bool = True,
        orthogonal: bool = True,
        tta: bool = True,
        num_classes: int = 10,
    ):
        num_filters = 2 * 3 * PATCH_SIZE**2
        first_layer = nn.Conv2d(3, num_filters, PATCH_SIZE)
        blocks = [conv_block(*channels) for channels in zip((num_filters, *widths), widths, strict=False)]
        network = nn.Sequential(first_layer, nn.GELU(), *blocks, Head(widths[-1], num_classes))
        super().__init__(network.to(memory_format=torch.channels_last), label_smoothing)
        self.resolutions = resolutions
        self.lr = lr
        self.whiten = whiten
        self.orthogonal = orthogonal
        self.tta = tta

    def setup(self, stage: str) -> None:
        if stage == "fit":
            data = self.trainer.datamodule
            missing = [name for name in ("gather", "num_samples", "batch_size") if not hasattr(data, name)]
            if missing:
                message = f"{type(data).__name__} has no {missing[0]}, which FastNet needs"
                raise MisconfigurationException(f"{message}: use a subclass of CIFAR10DataModule")
            if self.whiten:
                num_images = min(NUM_WHITENING_IMAGES, data.num_samples["train"])
                images, _ = data.gather("train", torch.arange(num_images))
                self.network[0].weight.data.copy_(whitening_filters(images))
                self.network[0].weight.requires_grad = False

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.training or not self.tta:
            return super().forward(images)
        padded = F.pad(images, (1,) * 4, "reflect")
        views = images, images, padded[..., :-2, :-2], padded[..., 2:, 2:]  # the image itself counts twice
        logits = [super(FastNet, self).forward(each) for view in views for each in (view, view.flip(-1))]
        return torch.stack(logits).mean(dim=0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        progress = self.global_step / self.num_steps
        size = self.resolutions[(progress >= 0.45) + (progress >= 0.75)]
        if size != images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return super().training_step((images, labels), batch_idx)

    def configure_optimizers(self) -> dict[str, Any]:
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        filters = [weight for weight in weights if weight.ndim == 4]
        groups = [{"params": filters, "momentum": 0.6, "lr": self.lr}]
        global_batch_size = self.trainer.datamodule.batch_size * self.trainer.world_size
        lr_per_image = {1: 0.053, 2: 0.67}  # of biases and of the last layer, by their number of dimensions
        for ndim, lr in lr_per_image.items():
            params = [weight for weight in weights if weight.ndim == ndim]
            groups.append({"params": params, "momentum": 0.85, "lr": lr * global_batch_size, "weight_decay": 2e-6 / lr})
        optimizer = Muon(groups, self.orthogonal)
        self.num_steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Head(nn.Linear):
    """Returns logits [B, num_classes] from the maximum of each channel of [B, num_channels, H, W]."""

    def __init__(self, num_channels: int, num_classes: int):
        super().__init__(num_channels, num_classes, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.amax((2, 3))) / self.in_features


def conv_block(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        *(convolution(num_in, num_out), nn.MaxPool2d(2), norm(num_out), nn.GELU()),
        *(convolution(num_out, num_out), norm(num_out), nn.GELU()),
    )


def convolution(num_in: int, num_out: int) -> nn.Conv2d:
    """Returns a convolution that is initialized to the identity on the first `num_in` channels."""
    layer = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:num_in])
    return layer


def norm(num_channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(num_channels, momentum=0.4)  # there are only a few steps
    layer.weight.requires_grad = False
    return layer


def whitening_filters(images: Tensor) -> Tensor:
    """Returns filters [24, 3, 2, 2] for images [B, 3, H, W]: twelve with uncorrelated outputs, and their negatives."""
    patches = images.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1).movedim(1, 3).flatten(0, 2).flatten(1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.view(-1, images.shape[1], PATCH_SIZE, PATCH_SIZE)
    return torch.cat([filters, -filters])


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, with orthogonal updates of filters, which keep their norm."""

    def __init__(self, groups: list[dict[str, Any]], orthogonal: bool):
        super().__init__(groups, {"weight_decay": 0.0})
        self.normalize = orthogonalize if orthogonal else F.normalize

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad + group["weight_decay"] * weight
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.mul_(group["momentum"]).add_(gradient)
                update = gradient + group["momentum"] * velocity
                if weight.ndim == 4:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    update = self.normalize(update.flatten(1)).view_as(weight)
                weight.sub_(group["lr"] * update)
        return loss


def orthogonalize(matrix: Tensor) -> Tensor:
    """Returns roughly the nearest orthogonal matrix, by three Newton-Schulz iterations (Jordan et al. 2024, Muon)."""
    result = matrix.bfloat16() / matrix.norm()
    for _ in range(3):
        product = result @ result.T
        result = 3.4445 * result + (2.0315 * product @ product - 4.7750 * product) @ result
    return result.to(matrix.dtype)
