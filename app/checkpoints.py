"""Checkpoints that hold all of a run, so that it goes on exactly where it was, whatever has stopped it."""

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from files import save_atomically
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from messages import warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from s3_logger import S3TensorBoardLogger

LAST, PREVIOUS, FINISHED = "last.ckpt", "previous.ckpt", "finished.ckpt"
OPTIONS = ("seed_everything", "data", "model", "optimizer", "lr_scheduler", "lr_scheduler_interval")
SAME_RUN = ("data_dir", "url", "verify", "batch_size")  # of the data, may differ


class Interrupted(Exception):
    """A signal has stopped all ranks, and last.ckpt holds what they need to go on."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints completely or not at all. A failure is told in one line, kept in `error`, and tolerated."""

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            for partial in path.parent.glob(".*.ckpt.*.partial"):  # of a process that was killed
                partial.unlink()
            save_atomically(checkpoint, path, path.with_name(PREVIOUS) if path.name == LAST else None)
            self.error = None
        except OSError as error:
            self.error = error
            warn(f"training goes on without {path}, which could not be written and will be tried again: {error}")


class Checkpoints(ModelCheckpoint):
    """Keeps the best network, and writes all that a run needs to go on from where it is, bit for bit.

    last.ckpt is written in the middle of epochs, at their ends, and when SIGTERM or Ctrl-C ends the run, which it does
    on all processes after the same step. The one before it stays as previous.ckpt. Process 0 alone reads and writes.

    Args:
        dirpath: Folder of the checkpoints; null is the log's.
        every_n_train_steps: Number of steps between two last.ckpt; 0 is no limit.
        every_n_minutes: Minutes between two last.ckpt; 0 is no limit.
        **kwargs: As for ModelCheckpoint, for the best network.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: NonNegativeInt = 0,
        every_n_minutes: NonNegativeFloat = 5.0,
        **kwargs: Any,
    ):
        super().__init__(
            dirpath,
            save_last=None,
            save_weights_only=False,
            save_on_train_epoch_end=True,
            save_on_exception=False,
            train_time_interval=None,
            enable_version_counter=False,
            **kwargs,
        )
        self.num_steps, self.num_seconds = every_n_train_steps, every_n_minutes * 60
        self.resumed: dict[str, Any] | None = None  # the checkpoint that rank 0 has found
        self.run: dict[str, Any] = {}  # what its run must have in common with this one
        self.last_step = 0
        self._signal, self._stopping = 0, 0
        self._rehearse, self._validation_pending, self._epoch_ended = False, False, False
        self._random_state: dict[str, Any] | None = None
        self._obsolete: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # Lightning would have each rank read a file of its own, which on another host may be older or missing.
            self.resumed = trainer.strategy.broadcast(self.resumed)
            trainer._checkpoint_connector._loaded_checkpoint = self.resumed or {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals from Lightning, whose handler makes ranks that get them at different times hang."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_sanity_check_start(trainer, pl_module)
        self._last_time = time.monotonic()
        if self.resumed:
            self.last_step = trainer.global_step
            self._rehearse = self.last_step > 0
            states = self.resumed["run"]["random_states"]
            if len(states) == trainer.world_size:
                _set_rng_states(states[trainer.global_rank])
            metrics = self.resumed["run"]["epoch_metrics"]
            for config in trainer.lr_scheduler_configs:  # which Lightning steps after the end of the epoch
                if config.reduce_on_plateau and config.interval == "epoch" and config.monitor in metrics:
                    config.scheduler.step(metrics[config.monitor])
            self.resumed = None
        else:
            self._save_last(trainer)  # shows early whether it can be done, and even the first steps have a past

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is saved

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for the step's end

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # gradients are not saved
            return
        due = self.num_steps and trainer.global_step % self.num_steps == 0
        due |= bool(self.num_seconds) and time.monotonic() - self._last_time >= self.num_seconds
        self._stopping, due = self._agree(trainer, due)
        self._validation_pending = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        is_last_batch = loop._num_ready_batches_reached()
        if (due or self._stopping) and (self._validation_pending or not is_last_batch):
            self._save_last(trainer)
            self._stop_if_asked(trainer)
        self._validation_pending = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx) -> None:
        if self._rehearse and trainer.world_size > 2:
            # DDP sorts the gradients into new buckets after the first step of a process, and where a gradient lies
            # decides in which order three or more are added up. So there must have been a step.
            random_state, buffers = _collect_rng_states(), [buffer.clone() for buffer in pl_module.buffers()]
            output = trainer.strategy.training_step(batch, batch_idx)
            (output["loss"] if isinstance(output, dict) else output).backward()
            pl_module.zero_grad()
            _set_rng_states(random_state)
            for buffer, before in zip(pl_module.buffers(), buffers, strict=True):
                buffer.data.copy_(before)
        self._rehearse = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._random_state = None if trainer.sanity_checking else _collect_rng_states()

    def on_validation_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.sanity_checking or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self._stopping, _ = self._agree(trainer, False)
        if self._stopping:
            self._validation_pending = True
            self._save_last(trainer)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._random_state = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(trainer)
        self._epoch_ended = True
        before = self.state_dict() | {"best_k_models": dict(self.best_k_models)}
        super().on_train_epoch_end(trainer, pl_module)
        if self._error(trainer):  # the best network could not be saved, and the one before it stays the best
            self.load_state_dict(before)
            self._obsolete = []
        if trainer.max_steps in (-1, trainer.global_step):  # otherwise Lightning would repeat the end of this epoch
            self._save_last(trainer)
            self._stopping, _ = self._agree(trainer, False)
            self._stop_if_asked(trainer)
        self._epoch_ended = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = gather(self._random_state or _collect_rng_states())
        metrics = dict(trainer.callback_metrics) if self._epoch_ended else {}
        checkpoint["run"] = self.run | {"random_states": states, "epoch_metrics": metrics}
        if trainer.is_global_zero and isinstance(trainer.logger, S3TensorBoardLogger):
            checkpoint["run"] |= {"log_version": trainer.logger.version, "log_files": trainer.logger.files()}
        if self._validation_pending:
            # Lightning's own words for "between the last step and the validation", which it never saves itself.
            loops = checkpoint["loops"]["fit_loop"]
            for progress in (loops["epoch_loop.batch_progress"][name] for name in ("total", "current")):
                progress["completed"] = progress["processed"]
            validation = loops["epoch_loop.val_loop.batch_progress"]
            validation["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}
            validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:  # the folder may have moved
            return os.path.join(self.dirpath, os.path.basename(path)) if path else path

        moved = {key: here(value) for key, value in state_dict.items() if key.endswith("_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": models, "dirpath": self.dirpath})

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:
            return
        self._check_weights(trainer)
        trainer.save_checkpoint(os.path.join(self.dirpath, LAST), weights_only=False)
        self._last_time = time.monotonic()
        if not self._error(trainer):
            self.last_step = trainer.global_step
            for path in set(self._obsolete) - set(self.best_k_models):
                trainer.strategy.remove_checkpoint(path)
            self._obsolete = []

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._obsolete.append(filepath)  # until last.ckpt knows the better one

    def _error(self, trainer: Trainer) -> bool:
        """Whether rank 0 could not write the last file."""
        return trainer.strategy.broadcast(bool(getattr(trainer.strategy.checkpoint_io, "error", None)))

    def _check_weights(self, trainer: Trainer) -> None:
        finite = all(bool(torch.isfinite(weight).all()) for weight in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(finite):
            raise FloatingPointError(f"the weights are not finite after step {trainer.global_step}")

    def _agree(self, trainer: Trainer, due: bool) -> tuple[int, bool]:
        """A signal that any rank has received, or 0, and whether rank 0 finds a checkpoint due."""
        if trainer.world_size == 1:
            return self._signal, due
        flags = torch.tensor([self._signal, int(due and trainer.is_global_zero)], device=trainer.strategy.root_device)
        signum, due = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        return signum, bool(due)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._stopping:
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    getattr(logger, "finish", logger.save)()
            trainer.strategy.barrier()
            raise Interrupted(self._stopping)


def gather(value: object) -> list[Any]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def find_checkpoint(
    directory: Path | None, ckpt_path: str | None, model: LightningModule, run: dict[str, Any]
) -> dict | None:
    """What the run goes on from: the newest readable checkpoint of this run, or the one that `ckpt_path` names.

    Raises:
        ValueError: The checkpoint that was named cannot be used, or the global batch is another one.
    """
    if ckpt_path and run["job"] and directory and job_of(directory) == run["job"]:
        ckpt_path = None  # SageMaker has restarted the job, whose own checkpoints are newer
    if ckpt_path == "none":
        return None
    names = [LAST, PREVIOUS, *([FINISHED] if ckpt_path == "last" else [])]
    paths = [directory / name for name in names] if directory else []
    if ckpt_path not in (None, "last"):
        paths = [Path(ckpt_path)]
    paths = [path for path in paths if path.exists()]
    for path in paths:
        try:
            checkpoint = read_checkpoint(path, model, run, any_options=bool(ckpt_path))
        except ValueError as error:
            if ckpt_path not in (None, "last"):
                raise ValueError(f"--ckpt_path: {error}") from error
            print(f"not used: {error}", flush=True)
        else:
            adapt(checkpoint, path, run)
            return checkpoint
    if ckpt_path:
        where = directory / LAST if directory and ckpt_path == "last" else ckpt_path
        raise ValueError(f"--ckpt_path={ckpt_path}: there is no {where} to go on from; leave the option out")
    if paths:
        print("starting anew, as there is no checkpoint to go on from", flush=True)
    return None


def read_checkpoint(path: Path, model: LightningModule, run: dict[str, Any], any_options: bool) -> dict[str, Any]:
    """ValueError if the file is damaged, of another network, or, unless that may be, of a run with other options."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        weights, options = checkpoint["state_dict"], checkpoint["run"]["options"]
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read, or is no checkpoint of train.py ({reason})") from error
    shapes, expected = ({name: weight.shape for name, weight in all.items()} for all in (weights, model.state_dict()))
    if shapes != expected:
        raise ValueError(f"{path} is of another network")
    others = [name for name in run["options"] | options if options.get(name) != run["options"].get(name)]
    if others and not any_options:
        raise ValueError(
            f"{path} is of a run with another {', '.join(sorted(others))}; it will be replaced unless you stop now and "
            f"say --ckpt_path={path}"
        )
    return checkpoint


def job_of(directory: Path) -> str | None:
    """The SageMaker job that has written the newest readable checkpoint."""
    for name in (LAST, PREVIOUS):
        with contextlib.suppress(Exception):  # a damaged file can raise anything
            return torch.load(directory / name, map_location="cpu", weights_only=False)["run"]["job"]
    return None


def adapt(checkpoint: dict[str, Any], path: Path, run: dict[str, Any]) -> None:
    """Says from where the run goes on, and makes the checkpoint fit another number of processes or, if asked, batch."""
    old = checkpoint["run"]
    num_epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if num_epochs > run["max_epochs"] >= 0:
        raise ValueError(
            f"{path} has done {num_epochs} epochs, more than --trainer.max_epochs={run['max_epochs']}: raise that, or "
            "start anew with --ckpt_path=none"
        )
    if old["global_batch_size"] != run["global_batch_size"]:
        if not run["accept_global_batch"]:
            raise ValueError(
                f"{path} is of a run with {old['global_batch_size']} images per step on all processes, not "
                f"{run['global_batch_size']}: make them the same with --data.batch_size, accept the difference with "
                "--accept_global_batch=true, or start anew with --ckpt_path=none"
            )
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]["current"]
        num_batches = progress["processed"] * old["global_batch_size"] // run["global_batch_size"]
        num_open = progress["processed"] - progress["completed"]
        progress |= dict.fromkeys(progress, num_batches) | {"completed": num_batches - num_open}
        for state in loops["state_dict"].get("combined_loader", []):
            state["batch"] = num_batches
    remark = ""
    if old["world_size"] != run["world_size"]:
        remark = f", with {run['world_size']} processes instead of {old['world_size']}, so not bit for bit"
    step, epoch = checkpoint["global_step"], checkpoint["epoch"]
    print(f"going on from {path}, step {step} in epoch {epoch}{remark}", flush=True)


def describe(config: Any, world_size: int) -> dict[str, Any]:
    """What two runs must have in common for one to go on with the other's checkpoint."""
    options = {}
    for name in OPTIONS:
        value = config.get(name)
        for key, item in (value.as_dict() if hasattr(value, "as_dict") else {"": value}).items():
            items = item.items() if key == "init_args" else [("", item)]
            options |= {f"{name} {inner or key}".strip(): each for inner, each in items if inner not in SAME_RUN}
    save_dir = config.logger.save_dir
    if "://" not in save_dir:  # it may have moved, together with the checkpoints
        save_dir = os.path.relpath(save_dir, config.checkpoint.dirpath or save_dir)
    batch_size = config.data.init_args.get("batch_size", 1) * (config.trainer.accumulate_grad_batches or 1)
    return {
        "options": options,
        "global_batch_size": batch_size * world_size,
        "world_size": world_size,
        "max_epochs": -1 if config.trainer.max_epochs is None else config.trainer.max_epochs,
        "accept_global_batch": config.accept_global_batch,
        "log": (save_dir, config.logger.name),
        "job": os.environ.get("TRAINING_JOB_NAME"),
    }


def finish(directory: Path) -> None:
    """Leaves no checkpoint from which the same command would go on."""
    (directory / PREVIOUS).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(directory / LAST, directory / FINISHED)
