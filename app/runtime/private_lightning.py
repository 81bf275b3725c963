"""All private names of Lightning that this program uses, each with its reason. tests/test_private_names.py holds them.

Lightning 2.6 has no public way to save between two steps, or to go on from there with the loader's own position.
"""

from collections.abc import Callable
from typing import Any

from lightning_fabric.utilities.data import _set_sampler_epoch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

collect_random_states, set_random_states = _collect_rng_states, _set_rng_states


def restore_later(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Has Lightning restore a checkpoint that is in memory: from a path it would read one file per rank."""
    trainer._checkpoint_connector._loaded_checkpoint = checkpoint


def call_between_steps(trainer: Trainer, function: Callable[[], None]) -> None:
    """Has `function` called before each training batch is fetched.

    That is the only moment between two steps: all hooks of the last one, its metrics, its schedulers and a validation
    after it are done, and the loader has not moved on. The hook on_train_batch_end comes before half of that.
    """
    loop = trainer.fit_loop.epoch_loop
    start_profiler = loop._on_before_fetch

    def before_fetch() -> None:
        function()
        start_profiler()

    loop._on_before_fetch = before_fetch


def num_batches_done(trainer: Trainer) -> int:
    """Number of this epoch's batches that are done."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def num_steps_done(trainer: Trainer) -> int:
    """Number of steps as the loggers count them: `global_step` counts each optimizer's."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_between_steps(trainer: Trainer) -> bool:
    """Whether Lightning could go on exactly from here, inside an epoch.

    Not while gradients accumulate, which nothing saves. Not where a validation has just been, which it would count
    twice.
    """
    loop = trainer.fit_loop.epoch_loop
    return not loop._should_accumulate() and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def loaders(trainer: Trainer) -> list[Any]:
    """The loaders of training."""
    return trainer.fit_loop._combined_loader.flattened


def shuffle_by_epoch_alone(trainer: Trainer) -> None:
    """Has several ranks shuffle torchdata's StatefulDataLoader as DistributedSampler does, in an order that it repeats.

    Lightning, which does not know torchdata's RandomSampler, leaves it inside of a DistributedSampler, which keeps no
    state of it: each time it is asked, also by a loader that goes on, it has another order.
    """
    process = trainer.strategy.process_dataloader

    def process_dataloader(loader: Any) -> Any:
        loader = process(loader)
        for sampler in wrappers(loader):
            inner = sampler.dataset._sampler
            is_torchdatas = type(inner).__module__.startswith("torchdata.") and type(inner).__name__ == "RandomSampler"
            if is_torchdatas and not inner.replacement and len(inner) == len(inner.data_source):
                sampler.dataset._sampler = range(len(inner))
        return loader

    trainer.strategy.process_dataloader = process_dataloader


def samplers(loader: Any) -> list[Any]:
    return [getattr(each, "sampler", None) for each in (loader, getattr(loader, "batch_sampler", None))]


def wrappers(loader: Any) -> list[DistributedSamplerWrapper]:
    """Samplers with which Lightning divides those that it does not know among the ranks."""
    return [sampler for sampler in samplers(loader) if isinstance(sampler, DistributedSamplerWrapper)]


def can_repeat_its_order(loader: Any) -> bool:
    """Whether a loader that goes on has the samples of the epoch's rest: these have another order each time."""
    without_state = RandomSampler, SubsetRandomSampler, WeightedRandomSampler
    is_random = any(isinstance(sampler, without_state) for sampler in samplers(loader))
    return not is_random and all(isinstance(sampler.dataset._sampler, range) for sampler in wrappers(loader))


def loader_states(trainer: Trainer) -> list[dict[str, Any]] | None:
    """The positions of this rank's loaders, if all of them can tell theirs; Lightning saves those of rank 0 only."""
    if trainer.num_training_batches == float("inf"):  # Lightning fetches one batch too many then
        return None
    if all(isinstance(loader, _Stateful) and can_repeat_its_order(loader) for loader in loaders(trainer)):
        return [loader.state_dict() for loader in loaders(trainer)]
    return None


def move_loaders(trainer: Trainer, states: list[dict[str, Any]] | None) -> None:
    """Has the loaders begin again, in the right epoch: when Lightning resumes, it tells them that too late."""
    for loader, state in zip(loaders(trainer), states or [None] * len(loaders(trainer)), strict=True):
        _set_sampler_epoch(loader, trainer.current_epoch)
        if state is not None:
            loader.load_state_dict(state)
    iter(trainer.fit_loop._data_fetcher)


def forget_that_this_is_a_restart(trainer: Trainer, epoch_too: bool) -> None:
    """Lightning would not step a plateau scheduler at the end of a restarted epoch, nor train its first batch."""
    trainer.fit_loop._restarting = False
    if epoch_too:
        trainer.fit_loop.epoch_loop._restarting = False


def restore_metrics(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """What callbacks and plateau schedulers monitor, also in an epoch without a validation."""
    trainer._logger_connector._callback_metrics.update(metrics)


def continue_version(logger: TensorBoardLogger, version: int | str | None, purge_step: int) -> None:
    """Has the log go on in that version's folder, where TensorBoard ignores what was logged from `purge_step` on."""
    logger._version, logger._kwargs["purge_step"] = version, purge_step
