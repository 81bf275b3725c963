"""A ResNet-18 that classifies photos."""

import torch
from pytorch_lightning import LightningModule
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import resnet18


class PhotoNet(LightningModule):
    """A ResNet-18 with random weights, or with those of a file.

    Args:
        num_classes: Number of classes.
        lr: Maximum learning rate.
        weights: File with a state dict of torchvision's ResNet-18. If its number of classes differs, the last layer
            keeps its random weights.
    """

    def __init__(self, num_classes: int = 3, lr: float = 0.001, weights: str | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.network = resnet18(num_classes=num_classes)
        if weights:
            state_dict = torch.load(weights, weights_only=True)
            if len(state_dict["fc.bias"]) != num_classes:
                state_dict |= self.network.fc.state_dict(prefix="fc.")
            self.network.load_state_dict(state_dict)
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", cross_entropy(logits, labels), sync_dist=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test_acc", self.test_acc)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        num_steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
