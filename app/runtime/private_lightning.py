"""All private names of Lightning that this package uses, each with its reason and a test.

The tests are in test_private_names.py. Lightning 2.6 has no public hook between the end of a step and the
fetch of the next batch, and no public way to resume from there with the loader's own position and the sums of
the epoch.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from lightning_fabric.utilities.data import _set_sampler_epoch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torchmetrics import Metric, MetricCollection

# Samplers that draw a new order for each iterator, even when a loader resumes.
REORDERING_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSamplerWrapper)


def call_between_steps(trainer: Trainer, function: Callable[[], None]) -> None:
    """Calls a function before each training batch is fetched.

    Only at this point is the previous step complete, including its metrics, its schedulers and any validation
    after it, while the loader has not advanced yet. The hook on_train_batch_end runs too early for that.
    """
    loop = trainer.fit_loop.epoch_loop
    start_profiler = loop._on_before_fetch

    def before_fetch() -> None:
        function()
        start_profiler()

    loop._on_before_fetch = before_fetch


def num_batches_done(trainer: Trainer) -> int:
    """Returns the number of batches done in this epoch.

    `batch_idx` keeps its last value between two epochs.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def num_steps_done(trainer: Trainer) -> int:
    """Returns the number of steps as loggers count them; `global_step` counts those of each optimizer."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def loaders(trainer: Trainer) -> list[Any]:
    """Returns the training loaders; the list is empty before training begins."""
    combined = trainer.fit_loop._combined_loader
    return combined.flattened if combined is not None else []


def rank_state(trainer: Trainer) -> dict[str, Any]:
    """Returns the state of this rank: Lightning itself saves the loaders of rank 0 only, and no sums."""
    states = [loader.state_dict() for loader in loaders(trainer)] if loaders_are_stateful(trainer) else None
    return {
        "random_states": random_states(trainer.strategy.root_device),
        "loaders": states,
        "epoch_sums": epoch_sums(trainer),
        "metrics": {name: metric_state(metric) for name, metric in metrics(trainer.lightning_module).items()},
    }


def random_states(device: torch.device) -> dict[str, Any]:
    """Returns the states of this process's random generators, in types that torch.load accepts by default.

    Only the state of this rank's own GPU is included, because the index of its GPU may differ after a resume.
    """
    states = _collect_rng_states(include_cuda=False)
    algorithm, key, *position = states["numpy"]
    states["numpy"] = (algorithm, key.tolist(), *position)
    backend = getattr(torch, device.type, None)
    if hasattr(backend, "get_rng_state"):
        states[device.type] = backend.get_rng_state()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    _set_rng_states(states)
    if device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])


def skip_signal_broadcast(trainer: Trainer) -> None:
    """Disables Lightning's broadcast of SIGTERM in each step, which forces a synchronization of the GPU.

    runtime.resume.StopSignal replaces it.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def loaders_are_stateful(trainer: Trainer) -> bool:
    """Returns whether all training loaders can resume within an epoch."""
    for loader in loaders(trainer):
        parts = [loader, getattr(loader, "batch_sampler", None)]
        samplers = [getattr(part, "sampler", None) for part in parts]
        is_reproducible = not any(isinstance(sampler, REORDERING_SAMPLERS) for sampler in samplers)
        if not (is_reproducible and isinstance(loader, _Stateful)):
            return False
    # If a loader has no length, Lightning fetches a batch in advance.
    return trainer.num_training_batches != float("inf")


def is_resumable_point(trainer: Trainer) -> bool:
    """Returns whether a run can resume from here.

    Accumulated gradients are not saved, and a run that resumed right after a validation would count it twice.
    """
    loop = trainer.fit_loop.epoch_loop
    is_after_validation = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return not (loop._should_accumulate() or is_after_validation) and loaders_are_stateful(trainer)


def preload_checkpoint(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Makes Lightning restore a checkpoint from memory.

    Given a path, Lightning would read a file on each rank, which may be older or missing on other hosts.
    """
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    trainer._checkpoint_connector._loaded_checkpoint = checkpoint


def restore_loop_state(trainer: Trainer, is_between_steps: bool, states: list | None, metrics: dict) -> None:
    """Restores in on_train_start what Lightning leaves out when it resumes."""
    loop = trainer.fit_loop
    loop._restarting = False  # otherwise ReduceLROnPlateau does not step at the end of the epoch
    if not is_between_steps or not num_batches_done(trainer):
        loop.epoch_loop._restarting = False  # otherwise the first batch of the epoch is skipped
    # Callbacks may monitor these before the next validation.
    trainer._logger_connector._callback_metrics.update(metrics)
    if is_between_steps:
        for loader, state in zip(loaders(trainer), states or [None] * len(loaders(trainer)), strict=True):
            # Lightning sets the epoch only after it has created the iterator, which is too late.
            _set_sampler_epoch(loader, trainer.current_epoch)
            if state is not None:
                loader.load_state_dict(state)
        # If a loader has no length, iter() would drop a prefetched batch.
        if trainer.num_training_batches != float("inf"):
            iter(loop._data_fetcher)


def count_in_floats(result: _ResultMetric, metadata: Any, is_tensor: bool) -> None:
    """Makes means exact where ranks have different numbers of samples.

    Lightning truncates the mean of the counts.
    """
    init_result(result, metadata, is_tensor)
    if hasattr(result, "cumulated_batch_size"):
        result.add_state("cumulated_batch_size", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx=torch.sum)


init_result = _ResultMetric.__init__
_ResultMetric.__init__ = count_in_floats


class ResumedResults(_ResultCollection):
    """Lightning's results of `self.log` in training; they continue the sums of an interrupted epoch.

    Args:
        sums: What `epoch_sums` returned on one or several ranks.
    """

    def __init__(self, sums: list[dict[str, Any]]):
        super().__init__(training=True)
        self.sums = sums

    def __setitem__(self, key: str, result: _ResultMetric) -> None:
        for sums in self.sums:
            if key in sums:
                is_extremum = result.meta.is_max_reduction or result.meta.is_min_reduction
                combine = result.meta.reduce_fx if is_extremum else torch.add
                result.value = combine(result.value, sums[key]["value"])
                if result.meta.is_mean_reduction:
                    result.cumulated_batch_size = result.cumulated_batch_size + sums[key]["batch_size"]
        super().__setitem__(key, result)

    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        if fx is None:  # at the end of the epoch; the first self.log of a hook passes the hook's name
            self.sums = []
        super().reset(metrics, fx)


def epoch_sums(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Returns the sums, on this rank, of all tensors that the module logs per epoch."""
    return {
        key: {"value": result.value.cpu(), "batch_size": int(getattr(result, "cumulated_batch_size", 0))}
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


def restore_epoch_sums(trainer: Trainer, sums: list[dict[str, Any]]) -> None:
    trainer.fit_loop.epoch_loop._results = ResumedResults(sums)


def metrics(module: LightningModule) -> dict[str, Metric]:
    """Returns the torchmetrics of a module by name, each with a state of its own."""
    for part in module.modules():
        if isinstance(part, MetricCollection):
            # The metrics of a compute group share the state of the first of them.
            part.values(copy_state=True)
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def metric_state(metric: Metric) -> dict[str, Any]:
    values = move_data_to_device(dict(metric.metric_state), torch.device("cpu"))
    return {"values": values, "update_count": metric._update_count}


def restore_metrics(module: LightningModule, states: dict[str, dict[str, Any]]) -> None:
    found = metrics(module)
    for name in found.keys() & states.keys():
        for key, value in states[name]["values"].items():
            setattr(found[name], key, move_data_to_device(value, found[name].device))
        found[name]._update_count = states[name]["update_count"]


def continue_version(logger: TensorBoardLogger, version: int | str | None, purge_step: int) -> None:
    """Makes a logger append to a version, unless one was passed to it.

    TensorBoard ignores what was logged there from `purge_step` on.
    """
    logger._version = version if logger._version is None else logger._version
    logger._kwargs["purge_step"] = purge_step
