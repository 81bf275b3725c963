"""Resumes an interrupted run bit-exactly, even within an epoch if the loaders are stateful."""

import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, callbacks
from sagemaker_env import in_sagemaker, job_name
from torch.nn.parameter import is_lazy

from runtime import private_lightning
from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.errors import CoordinatedExit, end_process

# Callbacks that run trial steps before training, and callbacks that do not fully restore what they modify.
FINDERS = (callbacks.BatchSizeFinder, callbacks.LearningRateFinder)
INEXACT_CALLBACKS = (callbacks.BaseFinetuning, callbacks.ModelPruning, callbacks.StochasticWeightAveraging)


@dataclass(eq=False)
class Resume(callbacks.Checkpoint):
    """Saves checkpoints from which a run can resume, and resumes from them. Only rank 0 has the files.

    A checkpoint is saved at the end of each epoch and of training. If a run can resume within an epoch, one
    is also saved after the first step, at intervals, and on a signal.

    Args:
        best: Callback that knows the file of the best network.
        files: Checkpoints of this and earlier runs.
        options: Options of this run; a run resumes only from a checkpoint with the same options.
        stop_signal: The signals on which this run stops.
        every_n_seconds: Seconds between two checkpoints within an epoch; 0 for none.
        every_n_steps: Steps between two checkpoints within an epoch; 0 for none.
        checkpoint: The checkpoint from which this run resumes.
    """

    best: BestNetwork
    files: CheckpointFiles
    options: dict[str, Any]
    stop_signal: "StopSignal"
    every_n_seconds: float
    every_n_steps: int
    checkpoint: dict[str, Any] | None = None
    _rank_state: dict[str, Any] | None = None
    _last_step: int | None = None
    _last_time: float = 0.0

    def find(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None) -> None:
        """Finds the checkpoint to resume from, on rank 0, before training begins.

        Raises ValueError if another run uses the folder, or if the checkpoint of `ckpt_path` cannot be used.
        """
        if self.files.folder.exists():
            self.files.lock()
        self.checkpoint = self.files.find_resumable(ckpt_path, model, self.options)
        if self.checkpoint and ckpt_path:  # to continue a run that had ended
            self.checkpoint["resume"]["should_stop"] = False
        states = self.checkpoint["resume"]["loggers"] if self.checkpoint else []
        for logger, state in zip(trainer.loggers, states, strict=False):
            if state is not None:
                logger.load_state_dict(state)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            if trainer.is_global_zero:
                self.files.lock()
            self.checkpoint = trainer.strategy.broadcast(self.checkpoint)
            if self.checkpoint:
                private_lightning.preload_checkpoint(trainer, self.checkpoint)
                # They would search again; the optimizer's state has the learning rate that they found.
                trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, FINDERS)]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.install_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.install_handlers()
        private_lightning.call_between_steps(trainer, partial(self._between_steps, trainer))
        private_lightning.skip_signal_broadcast(trainer)
        self._last_time = time.monotonic()
        if trainer.is_global_zero and not private_lightning.loaders_are_stateful(trainer):
            print("the training loader cannot resume mid-epoch: resumed runs repeat the interrupted epoch", flush=True)
        inexact = [type(each).__name__ for each in trainer.callbacks if isinstance(each, INEXACT_CALLBACKS)]
        if trainer.is_global_zero and inexact:
            print(f"{', '.join(inexact)} cannot be restored completely: a resumed run is not bit-exact", flush=True)
        if self.checkpoint:
            self._restore(trainer, self.checkpoint["resume"])
            self.checkpoint = None

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        for callback in trainer.callbacks:
            # Lightning does not call this hook when it resumes within an epoch.
            if isinstance(callback, callbacks.GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer, trainer.lightning_module)
        ranks = state["ranks"]
        rank, world_size = trainer.global_rank, trainer.world_size
        if state["batch_geometry"] != batch_geometry(trainer):
            difference = f"the checkpoint has {state['batch_geometry']}, but this run has {batch_geometry(trainer)}"
            raise CoordinatedExit(f"{difference}; change --data.batch_size, or pass --ckpt_path=none", 2)
        has_same_ranks = len(ranks) == world_size
        if not has_same_ranks and trainer.is_global_zero:
            print(f"resuming with world size {world_size} instead of {len(ranks)}: not bit-exact", flush=True)
        rank_state = ranks[rank if has_same_ranks else 0]
        epochs = trainer.fit_loop.epoch_progress.current
        is_between_steps = epochs.processed < epochs.started
        private_lightning.restore_loop_state(trainer, is_between_steps, rank_state["loaders"], state["metrics"])
        sums = [each["epoch_sums"] for each in ranks[rank::world_size]] if is_between_steps else []
        private_lightning.restore_epoch_sums(trainer, sums)
        self._last_step = private_lightning.num_steps_done(trainer)
        self._rank_state = rank_state if has_same_ranks else None
        # If training had stopped, the run was killed while testing.
        trainer.should_stop = state["should_stop"] and not is_between_steps

    def _between_steps(self, trainer: Trainer) -> None:
        if self._rank_state:
            private_lightning.restore_metrics(trainer.lightning_module, self._rank_state["metrics"])
            private_lightning.set_random_states(self._rank_state["random_states"], trainer.strategy.root_device)
            self._rank_state = None
        is_new_epoch = not private_lightning.num_batches_done(trainer)
        num_steps = private_lightning.num_steps_done(trainer) - (self._last_step or 0)
        is_late = 0 < self.every_n_seconds <= time.monotonic() - self._last_time
        signum, is_late = self.stop_signal.all_reduce(trainer, is_late)
        is_due = is_new_epoch or self._last_step is None or 0 < self.every_n_steps <= num_steps
        # The reduced flag lags by one step, so it is still set in the step after a checkpoint.
        is_due = is_due or (is_late and num_steps > 1)
        can_resume = is_new_epoch or private_lightning.is_resumable_point(trainer)
        if num_steps and (is_due or signum) and can_resume:
            self._save(trainer)
        self._exit_if_stopped(trainer, signum)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Ranks may have different numbers of validation batches: here, an all-reduce could hang.
        is_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_training and trainer.world_size == 1:
            self._exit_if_stopped(trainer, self.stop_signal.signum)

    def _exit_if_stopped(self, trainer: Trainer, signum: int) -> None:
        if signum:
            trainer.strategy.barrier()
            reason = f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}"
            # Only rank 0 has the files.
            advice = f"; the newest checkpoint is {self.files.kept[-1]}" if self.files.kept else ""
            raise CoordinatedExit(f"{reason}{advice}", 128 + signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # everything is saved

    def _save(self, trainer: Trainer) -> None:
        weights = [weight for weight in trainer.lightning_module.parameters() if weight.requires_grad]
        is_finite = all(bool(torch.isfinite(weight).all()) for weight in weights if not is_lazy(weight))
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            reason = f"the weights are not finite after step {trainer.global_step}"
            raise CoordinatedExit(f"{reason}; lower the learning rate, and start a new run", 1)
        path = self.files.folder / f"last-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._last_step = private_lightning.num_steps_done(trainer)
        self._last_time = time.monotonic()
        if trainer.is_global_zero and not self.files.error:
            self.files.keep(path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if not private_lightning.loaders(trainer):
            # LearningRateFinder and BatchSizeFinder save and load a temporary checkpoint before training.
            return
        loggers = trainer.loggers if trainer.is_global_zero else []
        checkpoint["resume"] = {
            "ranks": gather(private_lightning.rank_state(trainer)),
            "batch_geometry": batch_geometry(trainer),
            "metrics": dict(trainer.callback_metrics),
            "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else None for logger in loggers],
            "best": self.best.file_name,
            "should_stop": trainer.should_stop,
            "options": self.options,
            "job": job_name(),
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning's teardown synchronizes the device, which can block on other ranks, as can torch's exit.
        is_coordinated = isinstance(exception, CoordinatedExit) or not isinstance(exception, Exception)
        if trainer.world_size > 1 and not is_coordinated:
            for logger in trainer.loggers:
                logger.finalize("failed")
            end_process(exception)

    def finish(self, trainer: Trainer) -> None:
        """Marks the run as finished. Raises CoordinatedExit if the last checkpoint could not be written."""
        if trainer.is_global_zero:
            if self.files.error:
                raise CoordinatedExit(f"could not write the last checkpoint: {self.files.error}", 1)
            if not in_sagemaker():  # SageMaker may restart a job even after this point
                self.files.mark_finished()


class StopSignal:
    """SIGTERM and SIGINT, on which all ranks act after the same step.

    The flags of a step are read in the next one, and are reduced by gloo over the hosts' network, never
    through a GPU, so a rank waits neither for its own device nor, unless it is more than a step ahead, for
    another rank.

    Args:
        timeout: Seconds after which a rank that does not respond counts as lost.
    """

    def __init__(self, timeout: float):
        self.timeout = timedelta(seconds=timeout)
        self.signum = 0
        self._group = None
        self._pending = torch.zeros(2, dtype=torch.int64), None

    def install_handlers(self) -> None:
        # With Lightning's own handler, ranks that receive a signal at different times deadlock.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        # A second Ctrl-C does not wait for the end of the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def all_reduce(self, trainer: Trainer, is_late: bool = False) -> tuple[int, bool]:
        """Returns the signal of any rank, or 0, and whether a checkpoint is late by any rank's clock."""
        flags, work = torch.tensor([self.signum, int(is_late)]), None
        if trainer.world_size > 1:
            if self._group is None:
                self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
            maximum = torch.distributed.ReduceOp.MAX
            work = torch.distributed.all_reduce(flags, maximum, self._group, async_op=True)
            (flags, work), self._pending = self._pending, (flags, work)
        if work is not None:
            work.wait()
        return int(flags[0]), bool(flags[1])


def batch_geometry(trainer: Trainer) -> str:
    """Returns the sizes of steps and epochs.

    They must match those of the checkpoint for a run to resume from its position.
    """
    num_batches = trainer.num_training_batches
    num_per_step = trainer.accumulate_grad_batches
    sizes = [getattr(loader, "global_batch_size", 0) for loader in private_lightning.loaders(trainer)]
    if all(sizes):
        return f"{sum(sizes) * num_per_step} samples per step, {num_batches} batches per epoch"
    return f"{num_batches} batches per epoch, {num_per_step} batches per step, {trainer.world_size} processes"


def gather(value: object) -> list[Any]:
    """Returns the values of all ranks, in the order of the ranks."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
