"""A run that was stopped goes on where it was, bit for bit, whatever it trains and whatever has stopped it."""

import signal
import time
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from sagemaker_env import in_sagemaker, job_name

from runtime import private_lightning
from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles, end_mark
from runtime.errors import AgreedEnd


class Resume(Checkpoint):
    """Saves what a run needs to go on, after a step, an epoch, or all, and goes on from there. Rank 0 has the files."""

    def __init__(self, best: BestNetwork, files: CheckpointFiles, timeout: float, options: dict[str, Any]):
        self.best, self.files, self.options = best, files, options
        self.stop_signal = StopSignal(timeout)
        self.found: dict[str, Any] | None = None  # the checkpoint from which this run goes on
        self._point, self._random_states, self._last_step = "end", None, None

    def find(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None) -> None:
        """Finds the checkpoint to go on from, on rank 0, before training begins. Raises ValueError."""
        self.found = self.files.find(ckpt_path, model, self.options)
        states = self.found["resume"]["loggers"] if self.found else []
        for logger, state in zip(trainer.loggers, states, strict=False):
            if state is not None:
                logger.load_state_dict(state)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.found = trainer.strategy.broadcast(self.found)
            if self.found:
                private_lightning.restore_later(trainer, self.found)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.listen()
        private_lightning.call_between_steps(trainer, partial(self._between_steps, trainer))
        self._last_time = time.monotonic()
        if trainer.is_global_zero and not private_lightning.can_tell_positions(trainer):
            line = "the training loader cannot tell its position, so an interrupted run goes on from the end of an"
            print(f"{line} epoch; torchdata's StatefulDataLoader can", flush=True)
        if self.found:
            state, self.found = self.found["resume"], None
            before, now, same_ranks = state["shape"], shape(trainer), len(state["ranks"]) == trainer.world_size
            if before != now:
                line = f"is of a run with {before}, not {now}: make them the same, or start anew with --ckpt_path=none"
                raise AgreedEnd(f"{self.files.kept[0] if self.files.kept else 'the checkpoint'} {line}", 2)
            if not same_ranks and trainer.is_global_zero:
                print(f"{trainer.world_size} processes instead of {len(state['ranks'])} go on, so not bit for bit")
            rank = state["ranks"][trainer.global_rank if same_ranks else 0]
            private_lightning.go_on(trainer, state["point"] == "between steps", rank["loaders"], state["metrics"])
            self._last_step = private_lightning.num_steps_done(trainer)
            self._random_states = rank["random_states"] if same_ranks else None

    def _between_steps(self, trainer: Trainer) -> None:
        if self._random_states:
            private_lightning.set_random_states(self._random_states)
            self._random_states = None
        is_new_epoch = not private_lightning.num_batches_done(trainer)
        num_steps = private_lightning.num_steps_done(trainer) - (self._last_step or 0)
        is_late = 0 < self.best.every_n_seconds <= time.monotonic() - self._last_time
        signum, is_late = self.stop_signal.agree(trainer, is_late)
        is_due = is_new_epoch or self._last_step is None or 0 < self.best.every_n_steps <= num_steps
        is_due |= is_late and num_steps > 1  # the ranks still say that it was late in the step after a checkpoint
        if num_steps and (is_due or signum) and (is_new_epoch or private_lightning.can_go_on_from_here(trainer)):
            self._save(trainer, "between steps")
        self._stop_if_asked(trainer, signum)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Ranks whose loaders have no length may have different numbers of batches, and so could not agree.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and float("inf") not in trainer.num_val_batches:
            self._stop_if_asked(trainer, self.stop_signal.agree(trainer)[0])

    def _stop_if_asked(self, trainer: Trainer, signum: int) -> None:
        if signum:
            trainer.strategy.barrier()
            reason = f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}"
            self._end(trainer, reason, 128 + signum)

    def _end(self, trainer: Trainer, reason: str, code: int) -> None:
        where = f"goes on from {self.files.kept[-1]}" if self.files.kept else "starts anew"
        raise AgreedEnd(f"{reason}; the same command {where if trainer.is_global_zero else 'goes on'}", code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "end")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is saved

    def _save(self, trainer: Trainer, point: str) -> None:
        is_finite = all(bool(torch.isfinite(weight).all()) for weight in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            reason = f"the weights are not finite after step {trainer.global_step}: try a smaller learning rate"
            self._end(trainer, reason, 1)
        path, self._point = self.files.path(trainer.global_step), point
        trainer.save_checkpoint(path, weights_only=False)
        self._point = "end"
        self._last_step, self._last_time = private_lightning.num_steps_done(trainer), time.monotonic()
        if trainer.is_global_zero and not self.files.error:
            self.files.keep(path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loggers = trainer.loggers if trainer.is_global_zero else []
        checkpoint["resume"] = {
            "point": self._point,
            "ranks": gather(private_lightning.state_of_rank(trainer)),
            "shape": shape(trainer),
            "metrics": dict(trainer.callback_metrics),
            "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else None for logger in loggers],
            "options": self.options,
            "job": job_name(),
        }

    def end(self, trainer: Trainer) -> None:
        """Says that nothing is left to do. Raises AgreedEnd if the last checkpoint could not be written."""
        if trainer.is_global_zero:
            if self.files.error:
                raise AgreedEnd(f"the last checkpoint could not be written: {self.files.error}", 1)
            for path in self.files.kept[-1:] if not in_sagemaker() else []:  # which may repeat a job
                end_mark(path).touch()


class StopSignal:
    """Hears signals, and lets the ranks agree on them; one that says nothing for `timeout` seconds counts as lost."""

    # What a rank says is read by all one step later, and goes over the network of the hosts (gloo), never through a
    # GPU: so no rank waits for another, or for its own device, which would cost each step a synchronization.

    def __init__(self, timeout: float):
        self.timeout = timedelta(seconds=timeout)
        self.signum = 0
        self._group, self._before = None, (torch.zeros(2, dtype=torch.int64), None)

    def listen(self) -> None:
        # Lightning's own handler makes ranks that get a signal at different times hang.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for the step's end

    def agree(self, trainer: Trainer, is_late: bool = False) -> tuple[int, bool]:
        """The signal that any rank has heard, or 0, and whether it is late by any rank's clock."""
        said, work = torch.tensor([self.signum, int(is_late)]), None
        if trainer.world_size > 1:
            if self._group is None:
                self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
            work = torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
            (said, work), self._before = self._before, (said, work)
        if work is not None:
            work.wait()
        signum, is_late = said.tolist()
        return signum, bool(is_late)


def shape(trainer: Trainer) -> str:
    """What two runs must have in common for the position of one to be one of the other."""
    num_batches, num_per_step = trainer.num_training_batches, trainer.accumulate_grad_batches
    sizes = [getattr(loader, "global_batch_size", 0) for loader in private_lightning.loaders(trainer)]
    if all(sizes):
        return f"{sum(sizes) * num_per_step} samples per step, {num_batches} batches per epoch"
    return f"{num_batches} batches per epoch, {num_per_step} batches per step, {trainer.world_size} processes"


def gather(value: object) -> list[Any]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
