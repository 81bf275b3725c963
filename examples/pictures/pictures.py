"""Shows the predictions of a classifier in TensorBoard, for any module that returns logits."""

from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 128  # pixels per side of an image in the grid, enough to read the names of two classes


class TestPictures(Callback):
    """Logs test images with their predicted classes, the misclassified ones in red, and the confusion matrix.

    Args:
        classes: Names of the classes, in the order of their labels.
        num_images: Number of test images to show, from the first.
    """

    def __init__(self, classes: tuple[str, ...] = CIFAR10_CLASSES, num_images: PositiveInt = 32):
        self.classes = classes
        self.num_images = num_images

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64, device=pl_module.device)
        self.shown: list[Tensor] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: tuple[Tensor, Tensor], *_: Any
    ) -> None:
        images, labels = batch
        predictions = pl_module(images).argmax(dim=1)
        self.confusion.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)
        rest = slice(self.num_images - len(self.shown))
        self.shown += map(self.annotate, images[rest], labels[rest].tolist(), predictions[rest].tolist())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        confusion = trainer.strategy.reduce(self.confusion, reduce_op="sum")
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.experiment.add_image("test_images", make_grid(self.shown), trainer.global_step)
            logger.experiment.add_text("confusion_matrix", self.markdown_table(confusion.tolist()), trainer.global_step)

    def annotate(self, image: Tensor, label: int, prediction: int) -> Tensor:
        """Returns an image [3, SIDE, SIDE] uint8, labeled with its predicted class and, if wrong, its true class."""
        is_correct = label == prediction
        text = self.classes[prediction] if is_correct else f"{self.classes[prediction]} (is {self.classes[label]})"
        pixels = F.interpolate(image.cpu().float()[None], (SIDE, SIDE))[0]
        low, high = pixels.aminmax()
        pixels = ((pixels - low) / (high - low) * 255).byte()
        frame = torch.tensor([[0, 0, SIDE - 1, SIDE - 1]])
        style = {"colors": "green" if is_correct else "red", "label_colors": "white", "fill_labels": True, "width": 3}
        return draw_bounding_boxes(pixels, frame, [text], **style)

    def markdown_table(self, confusion: list[list[int]]) -> str:
        """Returns the confusion matrix in Markdown: a row per true class, a column per predicted class."""
        rows = [["", *self.classes], ["---"] * (len(self.classes) + 1)]
        rows += [[name, *map(str, row)] for name, row in zip(self.classes, confusion, strict=True)]
        return "\n".join(f"|{'|'.join(row)}|" for row in rows)
