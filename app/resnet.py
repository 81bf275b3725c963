"""Networks for small images, and how to train one to classify."""

import torchvision
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Classifier(LightningModule):
    """Trains a network from images [B, 3, H, W] to logits [B, num_classes] with cross entropy.

    Each step returns the mean `loss` of the batch, and `num_correct` and `num_images`, which metrics.py adds up.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype))  # which --trainer.precision may have changed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor | int]:
        images, labels = batch
        logits = self(images)
        return {
            "loss": cross_entropy(logits, labels),
            "num_correct": (logits.argmax(dim=1) == labels).sum(),
            "num_images": len(labels),
        }

    validation_step = test_step = training_step


class ResNet18(Classifier):
    """ResNet-18 (He et al. 2015, table 1) as in torchvision, with random weights."""

    def __init__(self, num_classes: int):
        super().__init__(torchvision.models.resnet18(num_classes=num_classes))
