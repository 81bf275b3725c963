"""The private names of Lightning that are used, each with its reason; tests/test_private_names.py holds them."""

# Lightning 2.6 has no public way to save between two steps, or to go on from there with the loader's own position.

from collections.abc import Callable
from typing import Any

from lightning_fabric.utilities.data import _set_sampler_epoch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

set_random_states = _set_rng_states
WITHOUT_ORDER = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSamplerWrapper)


# The moment before a training batch is fetched is the only one between two steps: all hooks of the last one, its
# metrics, its schedulers and a validation after it are done, and the loader has not moved on. The hook
# on_train_batch_end comes before half of that.
def call_between_steps(trainer: Trainer, function: Callable[[], None]) -> None:
    loop = trainer.fit_loop.epoch_loop
    start_profiler = loop._on_before_fetch

    def before_fetch() -> None:
        function()
        start_profiler()

    loop._on_before_fetch = before_fetch


# `batch_idx` is that of the last batch, also between two epochs.
def num_batches_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


# `global_step` counts the steps of each optimizer; loggers count them once.
def num_steps_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def loaders(trainer: Trainer) -> list[Any]:
    return trainer.fit_loop._combined_loader.flattened


# Lightning itself saves the loaders' positions of rank 0 only.
def state_of_rank(trainer: Trainer) -> dict[str, Any]:
    states = [loader.state_dict() for loader in loaders(trainer)] if can_tell_positions(trainer) else None
    return {"random_states": _collect_rng_states(), "loaders": states}


# From loaders without a length Lightning fetches a batch too many. Samplers of these kinds, and what Lightning makes of
# torchdata's in several processes, have another order each time they are asked, also when a loader goes on.
def can_tell_positions(trainer: Trainer) -> bool:
    for loader in loaders(trainer):
        parts = [loader, getattr(loader, "batch_sampler", None)]
        has_order = not any(isinstance(getattr(part, "sampler", None), WITHOUT_ORDER) for part in parts)
        if not (has_order and isinstance(loader, _Stateful)):
            return False
    return trainer.num_training_batches != float("inf")


# Nothing saves gradients that accumulate, and Lightning would count a validation that has just been twice.
def can_go_on_from_here(trainer: Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    is_free = not loop._should_accumulate() and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return is_free and can_tell_positions(trainer)


# From a path, Lightning would read one file per rank, which on other hosts may be older or missing.
def restore_later(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    trainer._checkpoint_connector._loaded_checkpoint = checkpoint


def go_on(trainer: Trainer, is_between_steps: bool, states: list[dict] | None, metrics: dict[str, Any]) -> None:
    """Does what Lightning leaves out when it resumes, in on_train_start."""
    loop = trainer.fit_loop
    loop._restarting = False  # or no plateau scheduler steps at the end of the epoch
    if not is_between_steps or not num_batches_done(trainer):
        loop.epoch_loop._restarting = False  # or the first batch of the epoch is not trained
    trainer._logger_connector._callback_metrics.update(metrics)  # which callbacks monitor, also without a validation
    if is_between_steps:
        for loader, state in zip(loaders(trainer), states or [None] * len(loaders(trainer)), strict=True):
            _set_sampler_epoch(loader, trainer.current_epoch)  # Lightning does it after the iterator is made
            if state is not None:
                loader.load_state_dict(state)
        iter(loop._data_fetcher)


# TensorBoard ignores what was logged from `purge_step` on.
def continue_version(logger: TensorBoardLogger, version: int | str | None, purge_step: int) -> None:
    logger._version, logger._kwargs["purge_step"] = version, purge_step
