"""CIFAR-10's files: what is read, and what is refused."""

import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from archives import cifar10_files, write_archive
from cifar10 import CIFAR10DataModule


def read(directory, **kwargs) -> CIFAR10DataModule:
    module = CIFAR10DataModule(str(directory), **{"verify": False, "val_split": 10} | kwargs)
    module.setup()
    return module


def all_images(module: CIFAR10DataModule, split: str, **kwargs) -> torch.Tensor:
    return module.batch(split, torch.arange(module.num_samples[split]), **kwargs)[0]


def test_an_archive_is_read_without_writing_anything(archive):
    os.chmod(archive.parent, 0o555)
    module = read(archive.parent)
    assert module.num_samples == {"train": 90, "val": 10, "test": 20}
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    images, labels = read(archive.parent, normalize=False).batch("test", torch.arange(20))
    expected = cifar10_files()["test_batch"]
    assert np.array_equal((images * 255).round().numpy().reshape(20, 3072), expected["data"])
    assert labels.tolist() == expected["labels"]


def test_the_extracted_folder_is_read_like_the_archive(archive):
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    expected = all_images(read(archive.parent), "train")
    archive.unlink()
    assert torch.equal(all_images(read(archive.parent), "train"), expected)


def test_training_and_validation_images_are_different_ones(archive):
    module = read(archive.parent, augment=False)
    both = torch.cat([all_images(module, "train"), all_images(module, "val")])
    assert len(both.flatten(1).unique(dim=0)) == 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "data_batch_2",
            {"data": np.zeros((20, 3071), np.uint8), "labels": [0] * 20},
            "data_batch_2 is not a file of CIFAR-10",
        ),
        ("data_batch_2", {"data": np.zeros((20, 3072), np.float32), "labels": [0] * 20}, "float32"),
        ("data_batch_3", {"data": np.zeros((19, 3072), np.uint8), "labels": [0] * 20}, "[120]"),
        ("test_batch", {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 19}, "[119]"),
        ("test_batch", {"data": np.zeros((20, 3072), np.uint8), "labels": [10] * 20}, "10"),
        ("test_batch", {"data": np.zeros((20, 3072), np.uint8), "labels": ["cat"] * 20}, "test_batch"),
        ("test_batch", [1, 2, 3], "test_batch"),
        ("data_batch_5", None, "data_batch_5"),
    ],
)
def test_an_archive_with_another_structure_is_refused(tmp_path, name, content, message):
    files = cifar10_files() | {name: content}
    write_archive(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path)


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_archive(tmp_path, cifar10_files() | {"data_batch_1": {"data": Hostile()}})
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        read(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_file_with_another_checksum_is_refused_before_it_is_unpickled(archive):
    archive.write_bytes(b"not even an archive")
    with pytest.raises(ValueError, match=r"MD5 .* --data\.verify=false"):
        read(archive.parent, verify=True)
    archive.unlink()
    folder = archive.parent / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="data_batch_1 has MD5"):
        read(archive.parent, verify=True)
