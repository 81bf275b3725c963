"""The fast recipe: airbench94 (Jordan 2024, arXiv 2404.00498, and https://github.com/KellerJordan/cifar10-airbench) at
half its width, with images that grow during training (Touvron et al. 2019, arXiv 1906.06423, for another purpose)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from resnet import Classifier
from torch import Tensor, nn

WHITENED = 5000  # images, from which the first layer's filters are computed
PATCH = 2  # pixels of the side of a patch, of which the first layer makes the pixels uncorrelated


class FastNet(Classifier):
    """Three pairs of convolutions on whitened patches.

    Args:
        widths: Number of channels of each pair.
        sizes: Pixels of the images of the first 45 % of all steps, of the next 30 %, and of the last 25 %.
        lr: Learning rate of the filters in the first step, from which it falls to 0 along a line.
        label_smoothing: How much of the probability of the label is spread over all classes (Szegedy et al. 2016).
        whiten: Start with filters that make the pixels of a patch uncorrelated, and do not train them.
        orthogonal: Make updates of filters orthogonal, as Muon does.
        views: Answer, outside of training, with the mean over an image, moved ones, and their mirror images.
    """

    def __init__(
        self,
        widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 128, 128),
        sizes: tuple[PositiveInt, PositiveInt, PositiveInt] = (20, 26, 32),
        lr: PositiveFloat = 0.12,
        label_smoothing: float = 0.2,
        whiten: bool = True,
        orthogonal: bool = True,
        views: bool = True,
        num_classes: int = 10,
    ):
        num_patches = 2 * 3 * PATCH**2
        stem = nn.Conv2d(3, num_patches, PATCH)
        pairs = [pair(*channels) for channels in zip((num_patches, *widths), widths, strict=False)]
        network = nn.Sequential(stem, nn.GELU(), *pairs, Head(widths[-1], num_classes))
        super().__init__(network.to(memory_format=torch.channels_last), label_smoothing)
        self.sizes, self.lr, self.whiten, self.orthogonal, self.views = sizes, lr, whiten, orthogonal, views

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.whiten:
            data = self.trainer.datamodule
            images, _ = data.batch("train", torch.arange(min(WHITENED, data.num_samples["train"])))
            self.network[0].weight.data.copy_(whitening_filters(images))
            self.network[0].weight.requires_grad = False

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.training or not self.views:
            return super().forward(images)
        frame = F.pad(images, (1,) * 4, "reflect")
        views = images, images, frame[..., :-2, :-2], frame[..., 2:, 2:]  # the image itself counts twice
        answers = [super(FastNet, self).forward(each) for view in views for each in (view, view.flip(-1))]
        return torch.stack(answers).mean(dim=0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        progress = self.global_step / self.num_steps
        size = self.sizes[(progress >= 0.45) + (progress >= 0.75)]
        if size != images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return super().training_step((images, labels), batch_idx)

    def configure_optimizers(self) -> dict[str, Any]:
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        others = {1: 0.053, 2: 0.67}  # learning rates of biases and of the last layer, for each image of a batch
        size = self.trainer.datamodule.batch_size * self.trainer.world_size
        groups = [{"params": [weight for weight in weights if weight.ndim == 4], "momentum": 0.6, "lr": self.lr}]
        for ndim, lr in others.items():
            of_kind = [weight for weight in weights if weight.ndim == ndim]
            groups.append({"params": of_kind, "momentum": 0.85, "lr": lr * size, "weight_decay": 2e-6 / lr})
        optimizer = Muon(groups, self.orthogonal)
        self.num_steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Head(nn.Linear):
    """The classes' scores [B, num_classes] of the largest value of each channel."""

    def __init__(self, num_channels: int, num_classes: int):
        super().__init__(num_channels, num_classes, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.amax((2, 3))) / self.in_features


def pair(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        *(convolution(num_in, num_out), nn.MaxPool2d(2), norm(num_out), nn.GELU()),
        *(convolution(num_out, num_out), norm(num_out), nn.GELU()),
    )


def convolution(num_in: int, num_out: int) -> nn.Conv2d:
    """A convolution that at first passes on its input, as far as it has the channels."""
    layer = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:num_in])
    return layer


def norm(num_channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(num_channels, momentum=0.4)  # few steps have to be enough
    layer.weight.requires_grad = False
    return layer


def whitening_filters(images: Tensor) -> Tensor:
    """Filters [24, 3, 2, 2] for images [B, 3, H, W]: twelve with uncorrelated outputs, and their negatives."""
    patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).movedim(1, 3).flatten(0, 2).flatten(1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.view(-1, images.shape[1], PATCH, PATCH)
    return torch.cat([filters, -filters])


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, whose updates of filters are made orthogonal and leave their norm as it is."""

    def __init__(self, groups: list[dict[str, Any]], orthogonal: bool):
        super().__init__(groups, {"weight_decay": 0.0})
        self.make = orthogonalize if orthogonal else F.normalize

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
                    update = self.make(update.flatten(1)).view_as(weight)
                weight.sub_(group["lr"] * update)
        return loss


def orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly, by three Newton-Schulz iterations (Jordan et al. 2024, Muon)."""
    result = matrix.bfloat16() / matrix.norm()
    for _ in range(3):
        product = result @ result.T
        result = 3.4445 * result + (2.0315 * product @ product - 4.7750 * product) @ result
    return result.to(matrix.dtype)
