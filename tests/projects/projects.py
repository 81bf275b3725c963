"""Modules and data modules in the styles of Lightning's documentation, all of which must be trainable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision, MulticlassRecall

Batch = tuple[Tensor, Tensor]


def points(num_points: int, seed: int) -> TensorDataset:
    """Returns random points [8] in [0, 1] with labels 0 to 2, which depend on the first coordinate."""
    features = torch.rand(num_points, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(features, (features[:, 0] * 3).long())


class PlainData(LightningDataModule):
    def __init__(self, batch_size: int = 10):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(points(100, 0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(points(30, 1), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(points(30, 2), batch_size=self.batch_size)


class CountedData(PlainData):
    """Data with `num_classes` as a property of the instance."""

    @property
    def num_classes(self) -> int:
        return 3


class StatefulData(PlainData):
    """Data with a stateful loader."""

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(points(100, 0), batch_size=self.batch_size, shuffle=True)


class OwnSamplerData(PlainData):
    """Data with its own DistributedSampler."""

    def train_dataloader(self) -> StatefulDataLoader:
        dataset = points(100, 0)
        return StatefulDataLoader(dataset, batch_size=self.batch_size, sampler=DistributedSampler(dataset))


class UnevenValidation(OwnSamplerData):
    """Data of which rank 0 validates more batches than the other ranks."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(points(10 if self.trainer.global_rank else 40, 1), batch_size=self.batch_size)


class RandomSamplerData(PlainData):
    """Data with a stateful loader and a RandomSampler, which does not save its order."""

    def train_dataloader(self) -> StatefulDataLoader:
        dataset = points(100, 0)
        return StatefulDataLoader(dataset, batch_size=self.batch_size, sampler=RandomSampler(dataset))


class BareData(LightningDataModule):
    """Data without arguments and validation."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(points(100, 0), batch_size=10, shuffle=True)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Batch]:
        yield from points(100, 0)


class StreamData(PlainData):
    """Data of unknown length."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(), batch_size=self.batch_size)


class ReturnsTensor(LightningModule):
    """A module with steps that return a tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("val_loss", loss, sync_dist=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("test_loss", loss, sync_dist=True)
        return loss


class WithOwnLoaders(ReturnsTensor):
    """A module that has its data."""

    train_dataloader = StatefulData.train_dataloader
    val_dataloader = PlainData.val_dataloader
    test_dataloader = PlainData.test_dataloader
    batch_size = 10


class NetworkAndHead(ReturnsTensor):
    """A module with a `network` that is only a part of it."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.network = nn.Linear(8, 8)
        self.head = nn.Linear(8, num_classes)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.head(self.network(batch[0])), batch[1])


class ReturnsDict(ReturnsTensor):
    """A module with torchmetrics and steps that return a dict."""

    def __init__(self):
        super().__init__()
        self.val_acc = MulticlassAccuracy(3)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "number": batch_idx}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        self.val_acc(self.layer(batch[0]), batch[1])
        self.log_dict({"val_acc": self.val_acc, "val_loss": self.loss(batch)})
        return {"number": batch_idx}


class LogsEverything(ReturnsTensor):
    """Logs means, sums and extrema of training, and torchmetrics that share states or keep lists of values."""

    def __init__(self):
        super().__init__()
        self.train_acc = MulticlassAccuracy(3)
        self.scores = MetricCollection([MulticlassPrecision(3), MulticlassRecall(3)], prefix="train_")
        self.median = CatMetric()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        logits = self.layer(batch[0])
        self.train_acc(logits, batch[1])
        self.scores(logits, batch[1])
        self.median(loss)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        for name in ("mean", "sum", "min", "max"):
            self.log(f"train_{name}", loss, on_step=False, on_epoch=True, reduce_fx=name, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.log("train_forked", outputs["loss"], on_step=True, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("train_values", self.median.compute().sum())
        self.median.reset()


class OnPlateau(ReturnsTensor):
    """A module with its own optimizer and ReduceLROnPlateau."""

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class OneCycle(ReturnsTensor):
    """A module with its own optimizer and a schedule per step."""

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        total_steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Regression(LightningModule):
    """A module without accuracy, val_loss and test."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = mse_loss(self.layer(batch[0]).squeeze(1), batch[1].float())
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_mae", l1_loss(self.layer(batch[0]).squeeze(1), batch[1].float()), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Manual(LightningModule):
    """A GAN with manual optimization, two optimizers, and steps that return nothing."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, 8), nn.Linear(8, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch[0]
        of_generator, of_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        loss = -self.discriminator(fake).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        difference = (self.discriminator(fake.detach()) - self.discriminator(real)).mean()
        of_discriminator.zero_grad()
        self.manual_backward(difference)
        of_discriminator.step()
        self.log_dict({"generator_loss": loss, "discriminator_loss": difference})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.generator, self.discriminator)]


class Counting(Callback):
    """Counts batches and records the samples of each rank as lines `epoch sample` in files `train-<rank>`."""

    def __init__(self):
        self.num_batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.num_batches += 1
        numbers = (batch[0].flatten(1).double().sum(dim=1) * 1e6).long().tolist()  # unique for each sample
        with open(Path(f"train-{trainer.global_rank}"), "a") as file:
            file.writelines(f"{trainer.current_epoch} {number}\n" for number in numbers)

    def state_dict(self) -> dict[str, int]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.num_batches = state_dict["num_batches"]


class CountsItself(ReturnsTensor):
    """Counts its steps, and saves the counts in its checkpoints."""

    def __init__(self):
        super().__init__()
        self.counts = {"training_step": 0, "on_train_batch_end": 0}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.counts["training_step"] += 1
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.counts["on_train_batch_end"] += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["counts"] = self.counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counts = checkpoint["counts"]
