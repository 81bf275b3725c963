"""Two networks that classify glyphs."""

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy


class GlyphNet(LightningModule):
    """A classifier without `configure_optimizers`: the command line chooses the optimizer."""

    def __init__(self, width: int = 16, dropout: float = 0.2):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 7)
        )
        self.train_acc, self.val_acc, self.test_acc = (MulticlassAccuracy(7, average="micro") for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", cross_entropy(logits, labels), on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("val_acc", self.val_acc, on_epoch=True)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test_acc", self.test_acc)


class ScheduledGlyphNet(GlyphNet):
    """A classifier with its own optimizer and schedules: warm-up per step, and ReduceLROnPlateau per epoch."""

    def __init__(self, width: int = 16, dropout: float = 0.2, lr: float = 0.01):
        super().__init__(width, dropout)
        self.lr = lr

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return [optimizer], [
            {"scheduler": warm_up, "interval": "step"},
            {"scheduler": plateau, "interval": "epoch", "monitor": "val_loss"},
        ]
