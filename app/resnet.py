"""Networks for small images, and a LightningModule that trains them to classify."""

import torchvision
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Classifier(LightningModule):
    """Trains a network that maps images [B, C, H, W] to logits [B, num_classes] with cross entropy.

    Args:
        network: Any module with that input and output.
        label_smoothing: Probability that training spreads over all classes (Szegedy et al. 2016), from 0 to 1.
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
        """Returns the mean loss of a batch, and logs loss and accuracy, averaged over the epoch and all processes."""
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
        super().__init__(torchvision.models.resnet18(num_classes=num_classes))
