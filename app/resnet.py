"""Networks for small images, and a LightningModule that trains them to classify."""

import torch
import torchvision
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy


class Classifier(LightningModule):
    """Trains a network with cross entropy. The network maps images [B, C, H, W] to logits [B, num_classes].

    Args:
        network: Any module with that input and output.
        label_smoothing: Fraction of the target's probability, from 0 to 1, that is spread uniformly over all
            classes in training (Szegedy et al. 2016).
    """

    def __init__(self, network: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.step("train", batch, self.label_smoothing)
        self.log("train_loss_step", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step("test", batch)

    def step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss of a batch, and logs loss and accuracy.

        The logged values are averaged over the epoch and all processes.
        """
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {f"{stage}_loss": loss, f"{stage}_acc": accuracy}
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return loss


class ResNet18(Classifier):
    """ResNet-18 (He et al. 2015, table 1) as in torchvision, with random weights."""

    def __init__(self, num_classes: int = 10):
        network = torchvision.models.resnet18(num_classes=num_classes)
        for layer in network.layer4.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.__class__ = Convolution  # keeps its weights and their names
        super().__init__(network.to(memory_format=torch.channels_last))  # a tenth faster on a CPU


class Convolution(nn.Conv2d):
    """A padded 3x3 convolution without bias.

    On 1x1 maps, it uses only the center of its kernel, as the rest would see only padding. On a CPU with AVX2
    but without AVX-512, a training step of ResNet-18 on 32x32 images is then 1.9 to 2.2 times as fast, with
    the same results.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (1, 1):
            return conv2d(images, self.weight[:, :, 1:2, 1:2])
        return super().forward(images)
