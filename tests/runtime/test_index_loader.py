"""Tests of IndexLoader: how it divides samples among ranks, and how it resumes from a state."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from runtime.index_loader import IndexLoader


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_ranks_together_see_each_training_sample_once_except_the_remainder(world_size):
    loaders = [IndexLoader(1003, 16, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = torch.cat([torch.cat(list(loader)) for loader in loaders]).tolist()
    assert len(seen) == len(set(seen))
    assert 1003 - len(seen) < 2 * world_size
    assert {tuple(len(batch) for batch in loader) for loader in loaders} == {tuple(map(len, loaders[0]))}
    assert all(len(list(loader)) == len(loader) for loader in loaders)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_samples", [5, 31, 33, 64, 65, 1003])
def test_each_validation_sample_is_seen_once_and_no_rank_gets_an_empty_batch(num_samples, world_size):
    ranks = [list(IndexLoader(num_samples, 16, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(torch.cat([torch.cat(batches) for batches in ranks]).tolist()) == list(range(num_samples))
    assert all(len(batch) > 0 for batches in ranks for batch in batches)
    assert {len(batches) for batches in ranks} == {len(IndexLoader(num_samples, 16, world_size=world_size))}


def test_fewer_validation_samples_than_processes_are_rejected():
    with pytest.raises(MisconfigurationException, match="1 samples for 2 processes: need at least one each"):
        IndexLoader(1, 16, world_size=2)


def test_a_global_batch_holds_the_same_samples_for_any_number_of_ranks():
    one = list(IndexLoader(1000, 32, seed=5))
    two = zip(*(IndexLoader(1000, 16, seed=5, rank=rank, world_size=2) for rank in range(2)), strict=True)
    assert all(torch.equal(whole, torch.cat(parts)) for whole, parts in zip(one, two, strict=True))


def test_each_epoch_has_its_own_order_reproducible_by_the_seed():
    def order(seed: int, epoch: int) -> list[int]:
        loader = IndexLoader(100, 10, seed=seed)
        loader.set_epoch(epoch)
        return torch.cat(list(loader)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def indices(loader: IndexLoader) -> list[int]:
    return torch.cat([torch.empty(0, dtype=torch.int64), *loader]).tolist()


def after(num_batches: int, epoch: int = 0, **kwargs) -> dict[str, int]:
    """Returns the state of a loader of 100 samples after `num_batches` batches of an epoch."""
    loader = IndexLoader(100, **kwargs)
    loader.set_epoch(epoch)
    list(islice(loader, num_batches))
    return loader.state_dict()


def resumed(state: dict[str, int], **kwargs) -> IndexLoader:
    loader = IndexLoader(100, **kwargs)
    loader.load_state_dict(state)
    return loader


def test_the_state_counts_the_samples_of_all_ranks():
    options = {"batch_size": 8, "world_size": 2, "rank": 1, "seed": 0}
    assert IndexLoader(100, **options).global_batch_size == 16
    assert after(0, 5, **options) == {"epoch": 5, "num_samples": 0}
    assert after(3, 5, **options) == {"epoch": 5, "num_samples": 48}
    assert after(7, 5, **options) == {"epoch": 5, "num_samples": 100}


@pytest.mark.parametrize("num_batches", range(6))
@pytest.mark.parametrize(("old", "new"), [((16, 1), (8, 2)), ((8, 2), (16, 1)), ((4, 4), (8, 2)), ((16, 1), (16, 1))])
def test_an_epoch_resumes_at_the_same_sample_on_a_different_number_of_ranks(num_batches, old, new):
    state = after(num_batches, 3, batch_size=old[0], world_size=old[1], seed=0)
    batch_size, world_size = new
    ranks = [resumed(state, batch_size=batch_size, world_size=world_size, rank=r, seed=0) for r in range(world_size)]
    assert all(loader.state_dict() == state for loader in ranks)
    whole = IndexLoader(100, 16, seed=0)
    whole.set_epoch(3)
    batches = [torch.cat(parts).tolist() for parts in zip(*ranks, strict=True)]
    assert batches == [batch.tolist() for batch in whole][num_batches:]
    assert {len(loader) for loader in ranks} == {7}


@pytest.mark.parametrize(("batch_size", "world_size"), [(48, 1), (16, 3), (12, 4)])
def test_an_epoch_resumes_with_a_different_global_batch_size_at_a_batch_boundary(batch_size, world_size):
    loader = resumed(after(3, batch_size=16), batch_size=batch_size, world_size=world_size)
    assert next(iter(loader))[0] == 48


@pytest.mark.parametrize("first", [0, 4])
def test_an_epoch_resumes_whether_iter_or_set_epoch_is_called_first(first):
    whole = IndexLoader(100, 16, seed=0)
    whole.set_epoch(4)
    loader = resumed(after(2, 4, batch_size=16, seed=0), batch_size=16, seed=0)
    batches = iter(loader)
    loader.set_epoch(4)
    assert torch.equal(next(batches), list(whole)[2])
    assert loader.state_dict() == {"epoch": 4, "num_samples": 48}


def test_only_the_epoch_in_the_state_starts_at_the_saved_position():
    options = {"batch_size": 16, "seed": 0}
    for num_batches in (2, 7):  # of 7
        loader = resumed(after(num_batches, 4, **options), **options)
        loader.set_epoch(5)
        assert loader.state_dict() == {"epoch": 5, "num_samples": 0}
        assert len(indices(loader)) == 100
        loader.set_epoch(4)
        assert len(indices(loader)) == 100


def test_a_resumed_epoch_yields_its_remaining_samples_once_and_then_all():
    loader = resumed(after(2, batch_size=16), batch_size=16)
    assert indices(loader) == list(range(32, 100))
    assert indices(loader) == list(range(100))
    finished = resumed(after(7, batch_size=16), batch_size=16)
    assert indices(finished) == []
    assert indices(finished) == list(range(100))


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 4), (50, 2), (50, 3), (33, 1)])
def test_a_finished_epoch_is_finished_for_any_batch_size_and_number_of_ranks(batch_size, world_size):
    state = after(100, batch_size=batch_size, world_size=world_size, seed=0)
    assert state == {"epoch": 0, "num_samples": 100}
    for other in ({"batch_size": 16}, {"batch_size": 8, "world_size": 2}, {"batch_size": 30, "world_size": 4}):
        assert indices(resumed(state, seed=0, **other)) == []


class Keep(LightningModule):
    """Records its indices, and saves a checkpoint after each step and at the end of each epoch."""

    def __init__(self, directory: Path):
        super().__init__()
        self.weight, self.seen, self.directory = torch.nn.Parameter(torch.zeros(())), [], directory

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.weight

    def save(self) -> None:
        self.trainer.save_checkpoint(self.directory / f"{self.trainer.global_step}.ckpt", weights_only=False)

    def on_train_batch_end(self, outputs, batch: torch.Tensor, batch_idx: int) -> None:
        if not self.trainer.is_last_batch:
            self.save()

    def on_train_epoch_end(self) -> None:
        self.save()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(directory: Path, batch_size: int, ckpt_path: Path | None = None) -> list[tuple[int, list[int]]]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=3, enable_checkpointing=False, **quiet)
    model = Keep(directory)
    trainer.fit(model, IndexLoader(100, batch_size, seed=0), ckpt_path=ckpt_path, weights_only=False)
    return model.seen


def test_lightning_resumes_with_the_next_batch(tmp_path):
    whole = fit(tmp_path, batch_size=30)
    for num_steps in range(1, 12):
        assert fit(tmp_path / "resumed", 30, tmp_path / f"{num_steps}.ckpt") == whole[num_steps:], num_steps
