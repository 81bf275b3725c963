"""Tests of reading CIFAR-10's archive and of rejecting invalid ones."""

import os
import re

import numpy as np
import pytest
import torch
from cifar10 import CIFAR10DataModule
from runs.archives import cifar10_files, write_archive


def read(directory, **kwargs) -> CIFAR10DataModule:
    module = CIFAR10DataModule(str(directory), **{"verify": False, "val_split": 10} | kwargs)
    module.setup()
    return module


def test_an_archive_is_read_without_writing_anything(archive):
    os.chmod(archive.parent, 0o555)
    module = read(archive.parent)
    assert module.num_samples == {"train": 90, "val": 10, "test": 20}
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    images, labels = module.gather("test", torch.arange(20))
    expected = cifar10_files()["test_batch"]
    pixels = (images * torch.tensor(module.std).view(3, 1, 1) + torch.tensor(module.mean).view(3, 1, 1)) * 255
    assert np.array_equal(pixels.round().numpy().reshape(20, 3072), expected["data"])
    assert labels.tolist() == expected["labels"]


def test_training_and_validation_images_do_not_overlap(archive):
    module = read(archive.parent, augment=False)
    both = torch.cat([module.gather(split, torch.arange(module.num_samples[split]))[0] for split in ("train", "val")])
    assert len(both.flatten(1).unique(dim=0)) == 100


class Hostile:
    """Creates a file when it is loaded from a pickle."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_an_archive_with_code_in_it_is_rejected_before_the_code_runs(tmp_path):
    content = {"data": Hostile(str(tmp_path / "was_here")), "labels": [0]}
    write_archive(tmp_path, cifar10_files() | {"data_batch_2": content})
    with pytest.raises(ValueError, match=r"contains (_?io|builtins)\.open, expected arrays and labels only"):
        read(tmp_path)
    assert not (tmp_path / "was_here").exists()


BLACK = np.zeros((20, 3072), np.uint8)


def batch(data: np.ndarray, labels: list = [0] * 20) -> dict:
    return {"data": data, "labels": labels}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", batch(np.zeros((20, 3071), np.uint8)), "not a CIFAR-10 archive (shape '[-1, 3, 32, 32]'"),
        ("data_batch_2", batch(np.zeros((20, 3072), np.float32)), "float32"),
        ("data_batch_3", batch(np.zeros((19, 3072), np.uint8)), "[120]"),
        ("test_batch", batch(BLACK, [0] * 19), "[119]"),
        ("test_batch", batch(BLACK, ["cat"] * 20), "not a CIFAR-10 archive"),
        ("test_batch", [1, 2, 3], "not a CIFAR-10 archive"),
        ("data_batch_5", None, "data_batch_5"),
    ],
)
def test_an_archive_with_an_unexpected_structure_is_rejected(tmp_path, name, content, message):
    files = cifar10_files() | {name: content}
    write_archive(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path)


def test_an_archive_with_a_wrong_checksum_is_rejected_before_unpickling(archive):
    for content in (archive.read_bytes(), b"not even an archive"):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"MD5 .* --data\.verify=false"):
            read(archive.parent, verify=True)
