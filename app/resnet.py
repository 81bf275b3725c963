"""Networks for small images, and how to train one to classify."""

from time import perf_counter
from typing import Any

import torchvision
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Classifier(LightningModule):
    """Trains a network from images [B, C, H, W] to logits [B, num_classes] with cross entropy.

    It logs `{train,val,test}_loss`, `{train,val,test}_acc` and `images_per_second` of training, over all ranks, per
    epoch, from sums that it keeps on the device, because `self.log` in each step takes 0.5 ms.
    Labels are smoothed in training only.
    """

    def __init__(self, network: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing
        # Of losses, of correct answers, and of images, on this rank.
        self.sums: dict[str, list[Any]] = {stage: [0.0, 0, 0] for stage in ("train", "val", "test")}
        self.start = self.pause = 0.0

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype))  # which --trainer.precision may have changed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.add("train", batch)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("train_loss_step", loss)
            for logger in self.loggers:
                logger.log_metrics({"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}, self.global_step)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.add("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.add("test", batch)

    def add(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean loss of a batch, which is added to the sums of its stage."""
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing if self.training else 0.0)
        if len(labels):  # a rank's last batch may be empty
            num_correct = (logits.argmax(dim=1) == labels).sum()
            terms = loss.detach().float() * len(labels), num_correct, len(labels)
            self.sums[stage] = [total + term for total, term in zip(self.sums[stage], terms, strict=True)]
        return loss

    def log_means(self, stage: str) -> float:
        """Logs the mean loss and the accuracy of a stage, of all ranks; their number of images."""
        loss, num_correct, num_images = (float(total.sum()) for total in self.all_gather(self.sums[stage]))
        self.sums[stage] = [0.0, 0, 0]
        self.log_dict({f"{stage}_loss": loss / num_images, f"{stage}_acc": num_correct / num_images}, prog_bar=True)
        return num_images

    def on_train_epoch_start(self) -> None:
        self.start = perf_counter()

    def on_train_epoch_end(self) -> None:
        num_images = self.log_means("train")
        self.log("images_per_second", num_images / (perf_counter() - self.start))

    def on_validation_epoch_start(self) -> None:
        self.pause = perf_counter()

    def on_validation_epoch_end(self) -> None:
        self.log_means("val")
        self.start += perf_counter() - self.pause

    def on_test_epoch_end(self) -> None:
        self.log_means("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sums"] = self.all_gather(self.sums["train"]), perf_counter() - self.start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals, seconds = checkpoint["sums"]
        ranks = slice(self.global_rank, None, self.trainer.world_size)  # there may be fewer than before
        self.sums["train"], self.start = [total.view(-1)[ranks].sum() for total in totals], perf_counter() - seconds


class ResNet18(Classifier):
    """ResNet-18 (He et al. 2015, table 1) as in torchvision, with random weights."""

    def __init__(self, num_classes: int = 10):
        super().__init__(torchvision.models.resnet18(num_classes=num_classes))
