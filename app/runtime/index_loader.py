"""A loader for data sets that fit in memory: it yields indices, and the data module gathers the batch."""

from collections.abc import Iterator

import numpy as np
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

# ID of the random stream that shuffles; other uses of the same seed have other IDs.
ORDER = 0


def seeded_generator(*key: int) -> torch.Generator:
    """Returns a CPU random generator that depends only on the non-negative integers of `key`."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class IndexLoader:
    """Yields one int64 tensor of sample indices per batch: this rank's part of the global batch.

    With the same global batch size, all global batches of an epoch but the last are the same on any number
    of ranks.
    No rank ever gets an empty batch. With a seed, the order changes every epoch, and up to 2 * world_size - 1
    samples are left out of each epoch, so that all ranks have batches of equal size, of at least two samples
    (unless batch_size is 1), as BatchNorm requires. Without a seed, each sample is yielded exactly once, by
    one rank: a last global batch with fewer samples than ranks is merged into the one before.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples per rank and batch, at least 1.
        seed: Seed of the shuffling, at least 0, or None to keep the order.
        rank: Global rank of this process.
        world_size: Number of processes.

    Raises:
        MisconfigurationException: If there is no seed and there are fewer samples than ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1):
        if seed is None and num_samples < world_size:
            raise MisconfigurationException(f"{num_samples} samples for {world_size} processes: need at least one each")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * world_size
        self.batch_sampler = self.sampler = self  # where Lightning looks for set_epoch
        self.epoch = 0
        # Where the next pass starts and where this one is, in samples of all ranks.
        self._start = self._position = 0

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:  # a loaded position is only valid in its own epoch
            self.epoch = epoch
            self._start = self._position = 0

    def __len__(self) -> int:
        num_full, num_left = divmod(self.num_samples, self.global_batch_size)
        min_samples = self.world_size if self.seed is None else self.world_size * min(2, self.batch_size)
        return num_full + (num_left >= min_samples)

    def __iter__(self) -> Iterator[torch.Tensor]:
        # Nothing is read before the first `next`, as Lightning calls `set_epoch` after `iter` to resume.
        order = torch.arange(self.num_samples)
        if self.seed is not None:
            order = torch.randperm(self.num_samples, generator=seeded_generator(self.seed, ORDER, self.epoch))
            num_shared = self.num_samples // self.world_size * self.world_size
            order = order[: min(num_shared, len(self) * self.global_batch_size)]
        last_start = (len(self) - 1) * self.global_batch_size
        for start in range(self._start, last_start + 1, self.global_batch_size):
            stop = len(order) if start == last_start else start + self.global_batch_size
            # Samples left out count as done.
            self._position = stop if stop < len(order) else self.num_samples
            yield order[start:stop].tensor_split(self.world_size)[self.rank]
        self._start = 0

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and the number of its samples that all ranks together have been given."""
        return {"epoch": self.epoch, "num_samples": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes at the position of a saved state, of a loader with the same global batch size."""
        self.epoch = state["epoch"]
        self._start = self._position = state["num_samples"]
