"""Tests of the data module: augmentation, normalization, and subclasses with their own images."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cifar10 import CIFAR10DataModule
from synthetic import SyntheticCIFAR10DataModule
from torch import Tensor

SMALL = partial(SyntheticCIFAR10DataModule, num_train_images=100, num_test_images=20)


def prepared(kind: Callable[..., CIFAR10DataModule] = SMALL, normalize: bool = True, **kwargs) -> CIFAR10DataModule:
    """Returns a data module that has read its images; without `normalize` it gathers images in [0, 1]."""
    module = kind(val_split=30, **kwargs)
    if not normalize:
        module.mean, module.std = [0.0] * len(module.mean), [1.0] * len(module.std)
    module.setup()
    return module


def all_images(module: CIFAR10DataModule, split: str, **kwargs) -> torch.Tensor:
    return module.gather(split, torch.arange(module.num_samples[split]), **kwargs)[0]


def test_augmentation_depends_on_the_sample_and_the_epoch_not_on_the_batch():
    together = all_images(prepared(), "train", epoch=3)
    module = prepared()
    alone = torch.cat([module.gather("train", torch.tensor([index]), epoch=3)[0] for index in range(70)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, all_images(module, "train", epoch=4))


def test_augmentation_crops_from_zero_padding_and_mirrors():
    plain = all_images(prepared(augment=False, normalize=False), "train")
    augmented = all_images(prepared(normalize=False), "train", epoch=1)
    found = set()
    for image, result in zip(torch.nn.functional.pad(plain, (4,) * 4), augmented, strict=True):
        crops = {
            (mirrored, top, left): source[:, top : top + 32, left : left + 32]
            for mirrored, source in enumerate((image, image.flip(-1)))
            for top in range(9)
            for left in range(9)
        }
        found.update(key for key, crop in crops.items() if torch.equal(crop, result))
    mirrored, tops, lefts = (sorted(set(values)) for values in zip(*found, strict=True))
    assert mirrored == [0, 1]
    assert tops == lefts == list(range(9))
    assert len(found) >= 50  # of 70 images, each found among its own crops


def test_validation_and_test_images_are_not_augmented():
    for split in ("val", "test"):
        assert torch.equal(all_images(prepared(), split), all_images(prepared(augment=False), split, epoch=7))


def test_synthetic_images_have_cifar10_shapes_and_are_reproducible_by_seed():
    images, labels, num_test = SyntheticCIFAR10DataModule().read()
    again, *_ = SyntheticCIFAR10DataModule().read()
    other, *_ = SyntheticCIFAR10DataModule(seed=1).read()
    assert images.shape == (60000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert sorted(labels.unique().tolist()) == list(range(10))
    assert num_test == 10000
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


class Squares(CIFAR10DataModule):
    """Custom images of 64 x 64 pixels with 3 channels and 7 classes."""

    num_classes = 7
    shape = (3, 64, 64)

    def read(self) -> tuple[Tensor, Tensor, int]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (100, *self.shape), dtype=torch.uint8, generator=generator)
        return images, torch.arange(100) % 7, 20


class Grey(Squares):
    shape = (1, 28, 28)
    mean = (0.5,)
    std = (0.25,)


class Wide(Squares):
    shape = (4, 24, 40)
    mean = std = (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("subclass", [Squares, Grey, Wide])
def test_a_subclass_can_read_images_of_any_shape(subclass):
    module, plain = (prepared(subclass, normalize=False, augment=augment) for augment in (True, False))
    num_rows, num_columns = subclass.shape[1:]
    assert module.num_samples == {"train": 50, "val": 30, "test": 20}
    framed = torch.nn.functional.pad(all_images(plain, "train"), (plain.padding,) * 4)
    framed, crops = torch.stack([framed, framed.flip(-1)]), all_images(module, "train", epoch=1)
    assert crops.shape == (50, *subclass.shape)
    mirror, top, left = module.tensors["augmentation"]
    for index, crop in enumerate(crops):
        row, column = int(top[index]), int(left[index])
        source = framed[mirror[index], index]
        assert torch.equal(crop, source[:, row : row + num_rows, column : column + num_columns])
    images, labels, _ = module.read()
    shown, shown_labels = module.gather("test", torch.arange(20))
    torch.testing.assert_close(shown * 255, images[-20:].float())
    assert torch.equal(shown_labels, labels[-20:])


@pytest.mark.parametrize("kind", [SMALL, Squares, Grey, Wide], ids=["CIFAR-10", "Squares", "Grey", "Wide"])
def test_each_channel_is_normalized_with_the_mean_and_deviation_of_the_class(kind):
    plain, normalized = (all_images(prepared(kind, normalize=normalize), "test") for normalize in (False, True))
    assert plain.dtype == torch.float32
    assert 0 <= plain.min() < plain.max() <= 1
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (kind().mean, kind().std))
    torch.testing.assert_close(normalized, (plain - mean) / std)


def test_synthetic_images_have_the_number_of_classes_of_a_subclass():
    class Seven(SyntheticCIFAR10DataModule):
        num_classes = 7

    _, labels, _ = Seven(num_train_images=500).read()
    assert labels.unique().tolist() == list(range(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 28, 28)}, "[100, 1, 28, 28], expected uint8 [N, 3, H, W]"),
        ({"read": lambda self: (torch.zeros(9, 3, 8, 8), torch.arange(9), 3)}, "torch.float32 [9, 3, 8, 8]"),
        ({"read": lambda self: (torch.zeros(9, 8, 8).byte(), torch.arange(9), 3)}, "torch.uint8 [9, 8, 8]"),
        ({"read": lambda self: (torch.zeros(9, 3, 8, 8).byte(), torch.arange(8), 3)}, "expected torch.int64 [9]"),
        ({"read": lambda self: (torch.zeros(9, 3, 8, 8).byte(), torch.ones(9), 3)}, "labels are torch.float32 [9]"),
        ({"read": lambda self: (torch.zeros(9, 3, 8, 8).byte(), torch.ones(9).long(), 10)}, "expected less than -1"),
    ],
)
def test_invalid_images_or_labels_of_a_subclass_are_rejected_in_one_line(change, message):
    module = type("Own", (Squares,), change)(val_split=30)
    with pytest.raises(ValueError) as error:
        module.setup()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
