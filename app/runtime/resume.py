"""Bit-exact resume of an interrupted run: on the same number of processes, and within an epoch for stateful loaders."""

import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from sagemaker_env import in_sagemaker, job_name

from runtime import private_lightning
from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.errors import CoordinatedExit

# Points of a run at which a checkpoint is saved.
BETWEEN_STEPS = "between steps"
END = "end"


class Resume(Checkpoint):
    """Saves checkpoints from which a run can resume, and resumes from them. Only rank 0 has the files.

    A checkpoint is saved after the first step, at the end of each epoch and of the run, and at intervals within an
    epoch.

    Args:
        best: Callback that knows the file of the best network.
        files: Checkpoints of this and earlier runs.
        options: Options of this run; a run resumes only from a checkpoint with the same options.
        timeout: Seconds after which a rank that does not respond counts as lost.
        minutes: Minutes between two checkpoints within an epoch; 0 for none.
        steps: Steps between two checkpoints within an epoch; 0 for none.
    """

    def __init__(
        self,
        best: BestNetwork,
        files: CheckpointFiles,
        options: dict[str, Any],
        timeout: float,
        minutes: float,
        steps: int,
    ):
        self.best = best
        self.files = files
        self.options = options
        self.stop_signal = StopSignal(timeout)
        self.every_n_seconds = minutes * 60
        self.every_n_steps = steps
        self.checkpoint: dict[str, Any] | None = None  # from which this run resumes
        self._point = END
        self._rank_state: dict[str, Any] | None = None
        self._last_step: int | None = None
        self._last_time = time.monotonic()

    def find(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None) -> None:
        """Finds the checkpoint to resume from, on rank 0, before training begins. Raises ValueError."""
        self.checkpoint = self.files.find_resumable(ckpt_path, model, self.options)
        states = self.checkpoint["resume"]["loggers"] if self.checkpoint else []
        for logger, state in zip(trainer.loggers, states, strict=False):
            if state is not None:
                logger.load_state_dict(state)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.checkpoint = trainer.strategy.broadcast(self.checkpoint)
            if self.checkpoint:
                private_lightning.preload_checkpoint(trainer, self.checkpoint)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.install_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.install_handlers()
        private_lightning.call_between_steps(trainer, partial(self._between_steps, trainer))
        self._last_time = time.monotonic()
        if trainer.is_global_zero and not private_lightning.loaders_are_stateful(trainer):
            reason = "the training loader is not stateful"
            print(f"{reason}: an interrupted run resumes from the last complete epoch", flush=True)
        if self.checkpoint:
            self._restore(trainer, self.checkpoint["resume"])
            self.checkpoint = None

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        ranks = state["ranks"]
        rank, world_size = trainer.global_rank, trainer.world_size
        if state["batch_geometry"] != batch_geometry(trainer):
            path = self.files.kept[0] if self.files.kept else "the checkpoint"
            difference = f"was saved with {state['batch_geometry']}, this run has {batch_geometry(trainer)}"
            raise CoordinatedExit(f"{path} {difference}: match them, or start from scratch with --ckpt_path=none", 2)
        has_same_ranks = len(ranks) == world_size
        if not has_same_ranks and trainer.is_global_zero:
            print(f"resuming on {world_size} processes instead of {len(ranks)}, so not bit-exact", flush=True)
        rank_state = ranks[rank if has_same_ranks else 0]
        is_between_steps = state["point"] == BETWEEN_STEPS
        private_lightning.restore_loop_state(trainer, is_between_steps, rank_state["loaders"], state["metrics"])
        private_lightning.restore_epoch_sums(trainer, [each["epoch_sums"] for each in ranks[rank::world_size]])
        self._last_step = private_lightning.num_steps_done(trainer)
        self._rank_state = rank_state if has_same_ranks else None

    def _between_steps(self, trainer: Trainer) -> None:
        if self._rank_state:
            private_lightning.restore_metrics(trainer.lightning_module, self._rank_state["metrics"])
            private_lightning.set_random_states(self._rank_state["random_states"])
            self._rank_state = None
        is_new_epoch = not private_lightning.num_batches_done(trainer)
        num_steps = private_lightning.num_steps_done(trainer) - (self._last_step or 0)
        is_late = 0 < self.every_n_seconds <= time.monotonic() - self._last_time
        signum, is_late = self.stop_signal.all_reduce(trainer, is_late)
        is_due = is_new_epoch or self._last_step is None or 0 < self.every_n_steps <= num_steps
        is_due |= is_late and num_steps > 1  # the ranks still report it in the step after a checkpoint
        can_resume = is_new_epoch or private_lightning.is_resumable_point(trainer)
        if num_steps and (is_due or signum) and can_resume:
            self._save(trainer, BETWEEN_STEPS)
        self._exit_if_stopped(trainer, signum)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Ranks whose loaders have no length may have different numbers of batches, and cannot reduce after each.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and float("inf") not in trainer.num_val_batches:
            self._exit_if_stopped(trainer, self.stop_signal.all_reduce(trainer)[0])

    def _exit_if_stopped(self, trainer: Trainer, signum: int) -> None:
        if signum:
            trainer.strategy.barrier()
            name = signal.Signals(signum).name
            self._exit(trainer, f"stopped by {name} after step {trainer.global_step}", 128 + signum)

    def _exit(self, trainer: Trainer, reason: str, code: int) -> NoReturn:
        resumes = f"resumes from {self.files.kept[-1]}" if self.files.kept else "starts from scratch"
        raise CoordinatedExit(f"{reason}; the same command {resumes if trainer.is_global_zero else 'resumes'}", code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, END)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # everything is saved

    def _save(self, trainer: Trainer, point: str) -> None:
        is_finite = all(bool(torch.isfinite(weight).all()) for weight in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            self._exit(trainer, f"weights not finite after step {trainer.global_step}: try a lower learning rate", 1)
        path = self.files.folder / f"last-step={trainer.global_step}.ckpt"
        self._point = point
        trainer.save_checkpoint(path, weights_only=False)
        self._point = END
        self._last_step = private_lightning.num_steps_done(trainer)
        self._last_time = time.monotonic()
        if trainer.is_global_zero and not self.files.error:
            self.files.keep(path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loggers = trainer.loggers if trainer.is_global_zero else []
        checkpoint["resume"] = {
            "point": self._point,
            "ranks": gather(private_lightning.rank_state(trainer)),
            "batch_geometry": batch_geometry(trainer),
            "metrics": dict(trainer.callback_metrics),
            "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else None for logger in loggers],
            "best": Path(self.best.best_model_path).name,
            "options": self.options,
            "job": job_name(),
        }

    def finish(self, trainer: Trainer) -> None:
        """Marks the run as finished. Raises CoordinatedExit if the last checkpoint could not be written."""
        if trainer.is_global_zero:
            if self.files.error:
                raise CoordinatedExit(f"could not write the last checkpoint: {self.files.error}", 1)
            if not in_sagemaker():  # which may repeat a job
                self.files.mark_finished()


class StopSignal:
    """SIGTERM and SIGINT, on which all ranks act after the same step.

    The flags of a step are read in the next one, and are reduced by gloo over the network of the hosts, never through
    a GPU: so no rank waits for another one, or for its own device, which would cost each step a synchronization.

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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for the step's end

    def all_reduce(self, trainer: Trainer, is_late: bool = False) -> tuple[int, bool]:
        """Returns the signal that any rank has received, or 0, and whether a checkpoint is late by any rank's clock."""
        flags, work = torch.tensor([self.signum, int(is_late)]), None
        if trainer.world_size > 1:
            if self._group is None:
                self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
            work = torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
            (flags, work), self._pending = self._pending, (flags, work)
        if work is not None:
            work.wait()
        signum, is_late = flags.tolist()
        return signum, bool(is_late)


def batch_geometry(trainer: Trainer) -> str:
    """Returns what two runs must have in common so that a position in one is a position in the other."""
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
