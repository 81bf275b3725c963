"""A run that was stopped goes on where it was, bit for bit, whatever it trains and whatever has stopped it."""

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from sagemaker_env import job_name

from runtime import private_lightning
from runtime.checkpoint_files import CheckpointFolder
from runtime.errors import AgreedEnd
from runtime.find_checkpoint import START_ANEW, check_epochs, find_checkpoint
from runtime.stop_signal import StopSignal


class Resume(Checkpoint):
    """Saves what a run needs to go on, and goes on from there. Lightning calls it after all other callbacks.

    There are three points to go on from: after a step inside an epoch, if the loader can tell its position; the end of
    an epoch; the end of the run. Each is a file `last-step=N.ckpt`, of which the last two are kept. Only rank 0 reads
    and writes; the others get from it what they need.

    Args:
        dirpath: Folder of the checkpoints; null is that of the best network.
        every_n_train_steps: Least number of steps between two points inside an epoch; 0 is no limit.
        every_n_minutes: Least minutes between two points inside an epoch; 0 is no limit.
        timeout: Seconds that the ranks wait for each other.
    """

    def __init__(self, dirpath: str | None, every_n_train_steps: int, every_n_minutes: float, timeout: float):
        self.folder = CheckpointFolder(Path(dirpath)) if dirpath else None
        self.every_n_train_steps, self.every_n_seconds = every_n_train_steps, every_n_minutes * 60
        self.stop_signal = StopSignal(timeout)
        self.options: dict[str, Any] = {}  # what two runs must have in common for one to go on where the other was
        self.found: dict[str, Any] | None = None  # the checkpoint from which this run goes on
        self._point, self._state_to_restore = "end", None
        self._last_step: int | None = None

    def find(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None) -> None:
        """Finds the checkpoint to go on from, as `find_checkpoint` does, on rank 0 and before training begins."""
        if found := find_checkpoint(self.folder, ckpt_path, model, self.options):
            path, checkpoint = found
            check_epochs(path, checkpoint, trainer.max_epochs)
            for logger, state in zip(trainer.loggers, checkpoint["resume"]["loggers"], strict=False):
                if state is not None:
                    logger.load_state_dict(state)
            self.found = checkpoint
            if self.folder:
                self.folder.go_on_from(path)
            print(f"going on from {path}, step {checkpoint['global_step']} in epoch {checkpoint['epoch']}", flush=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = self.folder or CheckpointFolder(Path(trainer.checkpoint_callback.dirpath))
        if stage == "fit":
            private_lightning.shuffle_by_epoch_alone(trainer)
            self.found = trainer.strategy.broadcast(self.found)
            if self.found:
                self.found["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # restored here
                private_lightning.restore_later(trainer, self.found)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_signal.listen()
        private_lightning.call_between_steps(trainer, partial(self._between_steps, trainer))
        self._last_time = time.monotonic()
        has_positions = private_lightning.loader_states(trainer) is not None
        if trainer.is_global_zero and not (has_positions or trainer.fast_dev_run):
            print(
                "the training loader cannot tell its position, so a run goes on from the end of an epoch; "
                "torchdata's StatefulDataLoader, of a dataset that has a length, can",
                flush=True,
            )
        if not self.found:
            return
        state, self.found = self.found["resume"], None
        self._check_that_it_fits(trainer, state)
        self._last_step = private_lightning.num_steps_done(trainer)
        same_ranks = len(state["ranks"]) == trainer.world_size
        rank = state["ranks"][trainer.global_rank if same_ranks else 0]
        if state["point"] == "between steps":
            private_lightning.move_loaders(trainer, rank["loaders"])
        if state["point"] == "end" or not private_lightning.num_batches_done(trainer):
            private_lightning.forget_that_this_is_a_restart(trainer, epoch_too=True)
        private_lightning.restore_metrics(trainer, state["metrics"])
        self._state_to_restore = rank["random_states"] if same_ranks else {}

    def _check_that_it_fits(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Ends all ranks if a step or an epoch is not what it was for the run that has written the checkpoint."""
        old, new = state["shape"], self._shape(trainer)
        if old == new:
            return
        if old["samples per step"] is None or old["samples per step"] != new["samples per step"]:
            was = ", ".join(f"{value} {name}" for name, value in old.items() if value != new[name])
            now = ", ".join(f"{value} {name}" for name, value in new.items() if value != old[name])
            raise AgreedEnd(
                f"{self.folder.newest} is of a run with {was}, not {now}: make them the same, or {START_ANEW}",
                2,
            )
        if trainer.is_global_zero:
            before = old["processes"]
            print(f"{trainer.world_size} processes instead of {before} go on, so not bit for bit", flush=True)

    def _shape(self, trainer: Trainer) -> dict[str, Any]:
        """What makes a step and an epoch."""
        sizes = [getattr(loader, "global_batch_size", None) for loader in private_lightning.loaders(trainer)]
        accumulated = trainer.accumulate_grad_batches
        return {
            "samples per step": None if None in sizes else sum(sizes) * accumulated,
            "batches per epoch": trainer.num_training_batches,
            "batches per step": accumulated,
            "processes": trainer.world_size,
        }

    def _between_steps(self, trainer: Trainer) -> None:
        if self._state_to_restore:
            private_lightning.set_random_states(self._state_to_restore)
        if self._state_to_restore is not None:
            private_lightning.forget_that_this_is_a_restart(trainer, epoch_too=False)
            self._state_to_restore = None
        step, is_new_epoch = private_lightning.num_steps_done(trainer), not private_lightning.num_batches_done(trainer)
        num_steps = step - (self._last_step or 0)
        is_late = 0 < self.every_n_seconds <= time.monotonic() - self._last_time
        signum, is_late = self.stop_signal.agree(trainer, is_late)
        is_due = is_new_epoch or self._last_step is None or is_late or 0 < self.every_n_train_steps <= num_steps
        can_save = num_steps > 0 and (is_new_epoch or self._is_inside_epoch(trainer))
        if can_save and (is_due or signum):
            self._save(trainer, "between steps")
        self._stop_if_asked(trainer, signum)

    def _is_inside_epoch(self, trainer: Trainer) -> bool:
        has_positions = private_lightning.loader_states(trainer) is not None
        return has_positions and private_lightning.is_between_steps(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit" and float("inf") not in trainer.num_val_batches:
            signum, _ = self.stop_signal.agree(trainer)
            self._stop_if_asked(trainer, signum)

    def _stop_if_asked(self, trainer: Trainer, signum: int) -> None:
        if signum:
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.finalize("failed")
            trainer.strategy.barrier()
            name, code = signal.Signals(signum).name, 128 + signum
            raise AgreedEnd(
                f"stopped by {name} after step {trainer.global_step}; the same command {self._what_goes_on()}", code
            )

    def _what_goes_on(self) -> str:
        return f"goes on from {self.folder.newest}" if self.folder.newest else "starts anew"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "end")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is saved

    def _save(self, trainer: Trainer, point: str) -> None:
        if trainer.fast_dev_run:
            return
        is_finite = all(bool(torch.isfinite(weight).all()) for weight in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            raise AgreedEnd(
                f"the weights are not finite after step {trainer.global_step}: try a smaller learning rate; the same "
                f"command {self._what_goes_on()}",
                1,
            )
        path, self._point = self.folder.file(trainer.global_step), point
        trainer.save_checkpoint(path, weights_only=False)
        self._point = "end"
        self._last_step, self._last_time = private_lightning.num_steps_done(trainer), time.monotonic()
        files = trainer.strategy.checkpoint_io
        if trainer.is_global_zero and not files.error:
            self.folder.keep(path)
            files.remove_superseded()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        rank = {
            "random_states": private_lightning.collect_random_states(),
            "loaders": private_lightning.loader_states(trainer),
        }
        loggers = []
        if trainer.is_global_zero:
            loggers = [logger.state_dict() if hasattr(logger, "state_dict") else None for logger in trainer.loggers]
        checkpoint["resume"] = {
            "point": self._point,
            "ranks": gather(rank),
            "shape": self._shape(trainer),
            "metrics": dict(trainer.callback_metrics),
            "loggers": loggers,
            "options": self.options,
            "job": job_name(),
        }

    def end(self, trainer: Trainer) -> None:
        """Says that nothing is left to do, so that the same command starts anew. SageMaker may repeat a job, though.

        Raises:
            AgreedEnd: The last checkpoint could not be written.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if error := trainer.strategy.checkpoint_io.error:
            raise AgreedEnd(f"the last checkpoint could not be written: {error}", 1)
        self.folder.mark_the_end()


def gather(value: object) -> list[Any]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
