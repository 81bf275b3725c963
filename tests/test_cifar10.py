"""The data: what is read, what is refused, and which images an epoch shows."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from archives import cifar10_files, write_archive
from cifar10 import MEAN, STD, CIFAR10DataModule, IndexLoader, SyntheticCIFAR10DataModule


def small(**kwargs) -> SyntheticCIFAR10DataModule:
    module = SyntheticCIFAR10DataModule(**{"num_train_images": 100, "num_test_images": 20, "val_split": 30} | kwargs)
    module.setup()
    return module


def read(directory, **kwargs) -> CIFAR10DataModule:
    module = CIFAR10DataModule(str(directory), **{"verify": False, "val_split": 10} | kwargs)
    module.setup()
    return module


def all_images(module: CIFAR10DataModule, split: str, **kwargs) -> torch.Tensor:
    return module.batch(split, torch.arange(module.num_samples[split]), **kwargs)[0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_together_see_every_training_sample_once_but_for_the_remainder(world_size):
    loaders = [IndexLoader(1003, 16, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = torch.cat([torch.cat(list(loader)) for loader in loaders]).tolist()
    assert len(seen) == len(set(seen))
    assert 1003 - len(seen) < 2 * world_size
    assert {tuple(len(batch) for batch in loader) for loader in loaders} == {tuple(map(len, loaders[0]))}
    assert all(len(list(loader)) == len(loader) for loader in loaders)


@pytest.mark.parametrize("num_samples", [1, 31, 64, 1003])
def test_the_ranks_together_see_every_validation_sample_exactly_once(num_samples):
    loaders = [IndexLoader(num_samples, 16, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(torch.cat([torch.cat(list(loader)) for loader in loaders]).tolist()) == list(range(num_samples))
    assert len(loaders[0]) == len(loaders[1]) == len(list(loaders[0]))


def test_a_global_batch_holds_the_same_samples_whatever_the_number_of_ranks():
    one = list(IndexLoader(1000, 32, seed=5))
    two = zip(*(IndexLoader(1000, 16, seed=5, rank=rank, world_size=2) for rank in range(2)), strict=True)
    assert all(torch.equal(whole, torch.cat(parts)) for whole, parts in zip(one, two, strict=True))


def test_every_epoch_has_an_order_of_its_own_that_the_seed_repeats():
    def order(seed: int, epoch: int) -> list[int]:
        loader = IndexLoader(100, 10, seed=seed)
        loader.set_epoch(epoch)
        return torch.cat(list(loader)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_sample_looks_the_same_in_any_batch_of_an_epoch_and_different_in_the_next():
    together = all_images(small(), "train", epoch=3)
    module = small()
    alone = torch.cat([module.batch("train", torch.tensor([index]), epoch=3)[0] for index in range(70)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, all_images(module, "train", epoch=4))


def test_augmentation_crops_from_a_black_frame_and_mirrors():
    plain = all_images(small(augment=False, normalize=False), "train")
    augmented = all_images(small(normalize=False), "train", epoch=1)
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
        assert torch.equal(all_images(small(), split), all_images(small(augment=False), split, epoch=7))


def test_normalization_uses_the_mean_and_standard_deviation_of_each_channel():
    plain, normalized = (all_images(small(normalize=normalize), "test") for normalize in (False, True))
    assert plain.dtype == torch.float32
    assert 0 <= plain.min() < plain.max() <= 1
    expected = (plain - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalized, expected)


def test_synthetic_images_come_from_the_seed_in_cifar_10s_shapes():
    images, labels, num_test = SyntheticCIFAR10DataModule().read()
    again, *_ = SyntheticCIFAR10DataModule().read()
    other, *_ = SyntheticCIFAR10DataModule(seed=1).read()
    assert images.shape == (60000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert sorted(labels.unique().tolist()) == list(range(10))
    assert num_test == 10000
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_an_archive_is_read_without_writing_anything(archive):
    os.chmod(archive.parent, 0o555)
    module = read(archive.parent)
    assert module.num_samples == {"train": 90, "val": 10, "test": 20}
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    images, labels = read(archive.parent, normalize=False).batch("test", torch.arange(20))
    expected = cifar10_files()["test_batch"]
    assert np.array_equal((images * 255).round().numpy().reshape(20, 3072), expected[b"data"])
    assert labels.tolist() == expected[b"labels"]


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
        ("data_batch_2", {b"data": np.zeros((20, 3071), np.uint8), b"labels": [0] * 20}, "uint8 (20, 3071)"),
        ("data_batch_2", {b"data": np.zeros((20, 3072), np.float32), b"labels": [0] * 20}, "float32"),
        ("data_batch_3", {b"data": np.zeros((19, 3072), np.uint8), b"labels": [0] * 19}, "(19, 3072)"),
        ("test_batch", {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 19}, "(19,)"),
        ("test_batch", {b"data": np.zeros((20, 3072), np.uint8), b"labels": [10] * 20}, "10"),
        ("test_batch", {b"data": np.zeros((20, 3072), np.uint8), b"labels": ["cat"] * 20}, "labels"),
        ("test_batch", [1, 2, 3], "test_batch"),
        ("batches.meta", {b"num_cases_per_batch": 30}, "(30, 3072)"),
        ("data_batch_5", None, "data_batch_5"),
    ],
)
def test_an_archive_with_another_structure_is_refused(tmp_path, name, content, message):
    files = cifar10_files() | {name: content}
    write_archive(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(").replace(")", r"\)")):
        read(tmp_path)


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_archive(tmp_path, cifar10_files() | {"data_batch_1": {b"data": Hostile()}})
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
    (folder / "batches.meta").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"batches\.meta has MD5"):
        read(archive.parent, verify=True)
