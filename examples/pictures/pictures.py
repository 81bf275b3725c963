"""What a classifier gets right and wrong, as pictures in TensorBoard, for any module that returns logits."""

from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 128  # pixels of an image in the grid, in which the names of two classes can be read


class TestPictures(Callback):
    """After the test, shows images with predicted and true class, the wrong ones in red, and the confusion matrix.

    Args:
        classes: Names of the classes, in the order of their labels.
        num_images: Number of test images to show, the first ones.
    """

    def __init__(self, classes: tuple[str, ...] = CIFAR10, num_images: PositiveInt = 32):
        self.classes, self.num_images = classes, num_images

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64, device=pl_module.device)
        self.shown: list[Tensor] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: tuple[Tensor, Tensor], *_: Any
    ) -> None:
        images, labels = batch
        predictions = pl_module(images).argmax(dim=1)
        self.confusion.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)
        missing = slice(self.num_images - len(self.shown))
        self.shown += map(self.labelled, images[missing], labels[missing].tolist(), predictions[missing].tolist())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        confusion = trainer.strategy.reduce(self.confusion, reduce_op="sum")
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.experiment.add_image("test_images", make_grid(self.shown), trainer.global_step)
            logger.experiment.add_text("confusion_matrix", self.table(confusion.tolist()), trainer.global_step)

    def labelled(self, image: Tensor, label: int, prediction: int) -> Tensor:
        """An image [3, SIDE, SIDE] uint8 that says what it is taken for and, if that is wrong, what it is."""
        is_right = label == prediction
        text = self.classes[prediction] if is_right else f"{self.classes[prediction]}, not {self.classes[label]}"
        pixels = F.interpolate(image.cpu().float()[None], (SIDE, SIDE))[0]
        darkest, brightest = pixels.aminmax()
        pixels = ((pixels - darkest) / (brightest - darkest) * 255).byte()
        frame = torch.tensor([[0, 0, SIDE - 1, SIDE - 1]])
        look = {"colors": "green" if is_right else "red", "label_colors": "white", "fill_labels": True, "width": 3}
        return draw_bounding_boxes(pixels, frame, [text], **look)

    def table(self, confusion: list[list[int]]) -> str:
        """The confusion matrix in Markdown: a row for each true class, a column for each predicted one."""
        rows = [["", *self.classes], ["---"] * (len(self.classes) + 1)]
        rows += [[name, *map(str, row)] for name, row in zip(self.classes, confusion, strict=True)]
        return "\n".join(f"|{'|'.join(row)}|" for row in rows)
