"""A loader for data that lies in memory: it yields indices, and whoever has the tensors gathers the batch."""

from collections.abc import Iterator

import numpy as np
import torch

ORDER = 0  # the stream of random numbers that shuffles; with the same seed, others are free for other purposes


def generator(*key: int) -> torch.Generator:
    """A CPU random generator that depends on the non-negative numbers of `key` alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class IndexLoader:
    """Yields this rank's samples as one int64 tensor of indices per batch.

    The global batches of an epoch do not depend on the world size, and each rank takes its part of every one.
    With a seed, the samples come in a new order every epoch, and up to 2 * world_size - 1 of them are left out of it,
    so that all ranks have equal batches of at least two, as BatchNorm needs. Without, the ranks share all samples.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.global_batch_size = rank, world_size, batch_size * world_size
        self.batch_sampler = self.sampler = self  # where Lightning looks for set_epoch
        self.epoch, self._start, self._position = 0, 0, 0  # of the next pass and of this one, in global samples

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:  # only the epoch of a loaded state starts where that was
            self.epoch, self._start, self._position = epoch, 0, 0

    def __len__(self) -> int:
        num_full, num_left = divmod(self.num_samples, self.global_batch_size)
        least = 1 if self.seed is None else self.world_size * min(2, self.batch_size)
        return num_full + (num_left >= least)

    def __iter__(self) -> Iterator[torch.Tensor]:
        # Nothing is read before the first `next`, because Lightning calls `set_epoch` after `iter` when it resumes.
        order = torch.arange(self.num_samples)
        if self.seed is not None:
            order = torch.randperm(self.num_samples, generator=generator(self.seed, ORDER, self.epoch))
            order = order[: self.num_samples // self.world_size * self.world_size][: len(self) * self.global_batch_size]
        for start in range(self._start, len(order), self.global_batch_size):
            stop = start + self.global_batch_size
            self._position = stop if stop < len(order) else self.num_samples  # also if the last ones are left out
            yield order[start:stop].tensor_split(self.world_size)[self.rank]
        self._start = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its samples the batches so far had on all ranks together."""
        return {"epoch": self.epoch, "num_samples": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a loader's state; ValueError if no batch of this one begins there."""
        epoch, position, size = state["epoch"], state["num_samples"], self.global_batch_size
        if position != self.num_samples and (position % size or position > self.num_samples):
            line = f"cannot go on after {position} of {self.num_samples} samples with a global batch of {size}"
            raise ValueError(f"{line}: choose the batch size that makes the global batch what it was")
        self.epoch, self._start, self._position = epoch, position, position
