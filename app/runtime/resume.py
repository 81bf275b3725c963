"""A run that was stopped goes on where it was, bit for bit, whatever it trains and whatever has stopped it."""

import signal
import time
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from sagemaker_env import in_sagemaker, job_name

from runtime import private_lightning
from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFolder, end_mark, find_checkpoint
from runtime.errors import AgreedEnd
from runtime.stop_signal import StopSignal


class Resume(Checkpoint):
    """Saves what a run needs to go on, and goes on from there. Lightning calls it after all other callbacks.

    There are three points to go on from: after a step inside an epoch, if the loader can tell its position; the end of
    an epoch; the end of the run. Each is a file `last-step=N.ckpt`, of which the last two are kept. Only rank 0 reads
    and writes; the others get from it what they need.

    Args:
        best: The callback that has the options of the checkpoints.
        timeout: Seconds that the ranks wait for each other.
        options: What two runs must have in common for one to go on where the other was.
    """

    def __init__(self, best: BestNetwork, timeout: float, options: dict[str, Any]):
        self.folder, self.options = CheckpointFolder(best.folder), options
        self.every_n_steps, self.every_n_seconds = best.every_n_steps, best.every_n_seconds
        self.stop_signal = StopSignal(timeout)
        self.found: dict[str, Any] | None = None  # the checkpoint from which this run goes on
        self._point, self._random_states = "end", None
        self._last_step: int | None = None

    def find(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None) -> None:
        """Finds the checkpoint to go on from, on rank 0, before training begins. Raises BadInput."""
        if found := find_checkpoint(self.folder.files(), ckpt_path, model, self.options):
            path, self.found = found
            for logger, state in zip(trainer.loggers, self.found["resume"]["loggers"], strict=False):
                if state is not None:
                    logger.load_state_dict(state)
            self.folder.kept = [path]
            print(f"going on from {path}, step {self.found['global_step']} in epoch {self.found['epoch']}", flush=True)

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
            line = (
                "the training loader cannot tell its position, so an interrupted run goes on from the end of an epoch"
            )
            print(f"{line}; torchdata's StatefulDataLoader can", flush=True)
        if self.found:
            state, self.found = self.found["resume"], None
            self._check_that_it_fits(trainer, state["shape"])
            same_ranks = len(state["ranks"]) == trainer.world_size
            rank = state["ranks"][trainer.global_rank if same_ranks else 0]
            private_lightning.go_on(trainer, state["point"] == "between steps", rank["loaders"], state["metrics"])
            self._last_step = private_lightning.num_steps_done(trainer)
            self._random_states = rank["random_states"] if same_ranks else None

    def _check_that_it_fits(self, trainer: Trainer, before: dict[str, Any]) -> None:
        now = shape(trainer)
        others = [name for name in now if before[name] != now[name]]
        if others and (now["samples per step"] is None or "samples per step" in others):
            one, other = (", ".join(f"{values[name]} {name}" for name in others) for values in (before, now))
            line = f"is of a run with {one}, not {other}: make them the same, or start anew with --ckpt_path=none"
            raise AgreedEnd(f"{self.folder.kept[0] if self.folder.kept else 'the checkpoint'} {line}", 2)
        if others and trainer.is_global_zero:
            print(f"{trainer.world_size} processes instead of {before['processes']} go on, so not bit for bit")

    def _between_steps(self, trainer: Trainer) -> None:
        if self._random_states:
            private_lightning.set_random_states(self._random_states)
            self._random_states = None
        is_new_epoch = not private_lightning.num_batches_done(trainer)
        num_steps = private_lightning.num_steps_done(trainer) - (self._last_step or 0)
        is_late = 0 < self.every_n_seconds <= time.monotonic() - self._last_time
        signum, is_late = self.stop_signal.agree(trainer, is_late)
        is_due = is_new_epoch or self._last_step is None or 0 < self.every_n_steps <= num_steps
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
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.finalize("failed")
            trainer.strategy.barrier()
            reason = f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}"
            self._end(trainer, reason, 128 + signum)

    def _end(self, trainer: Trainer, reason: str, code: int) -> None:
        where = f"goes on from {self.folder.kept[-1]}" if self.folder.kept else "starts anew"
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
        path, self._point = self.folder.file(trainer.global_step), point
        trainer.save_checkpoint(path, weights_only=False)
        self._point = "end"
        self._last_step, self._last_time = private_lightning.num_steps_done(trainer), time.monotonic()
        if trainer.is_global_zero and not trainer.strategy.checkpoint_io.error:
            self.folder.keep(path)
            trainer.strategy.checkpoint_io.remove_superseded()

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
            if error := trainer.strategy.checkpoint_io.error:
                raise AgreedEnd(f"the last checkpoint could not be written: {error}", 1)
            for path in self.folder.kept[-1:] if not in_sagemaker() else []:  # which may repeat a job
                end_mark(path).touch()


def shape(trainer: Trainer) -> dict[str, Any]:
    """What two runs must have in common for the position of one to be one of the other."""
    sizes = [getattr(loader, "global_batch_size", None) for loader in private_lightning.loaders(trainer)]
    return {
        "samples per step": None if None in sizes else sum(sizes) * trainer.accumulate_grad_batches,
        "batches per epoch": trainer.num_training_batches,
        "batches per step": trainer.accumulate_grad_batches,
        "processes": trainer.world_size,
    }


def gather(value: object) -> list[Any]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
