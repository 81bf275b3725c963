"""Runs the Trainer of train.py in this process and measures its steps."""

import contextlib
import io
import signal
import sys
import tempfile
from collections.abc import Iterable
from unittest.mock import patch

import torch
from measuring import NUM_WARMUP_STEPS, ROOT, Clock
from resnet import Classifier
from runtime.cli import CLI
from torch import nn

LIMITS = ("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--trainer.devices=1", "--data=measuring.Images")
LIMITS += ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


class Linear(Classifier):
    """A network that is cheap enough to expose the overhead of everything else."""

    def __init__(self, num_classes: int = 10):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)))


def make_cli(options: Iterable[str], num_steps: int, device: str, folder: str) -> CLI:
    limit = f"--trainer.limit_train_batches={NUM_WARMUP_STEPS + num_steps}"
    here = [f"--trainer.accelerator={device}", f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}"]
    with patch.object(sys, "argv", ["train.py", *options, *LIMITS, limit, *here]):
        return CLI(ROOT / "app/train.yaml", "")


def time_train_py(options: Iterable[str], num_steps: int, device: str = "cpu") -> list[float]:
    """Trains like train.py, with its log, checkpoints and metrics, and returns the seconds of each step."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cli = make_cli(options, num_steps, device, folder)
        cli.trainer.callbacks.insert(0, clock)
        cli.trainer.fit(cli.model, cli.datamodule)
    restore_process_state()
    return clock.seconds()


def restore_process_state() -> None:
    """Restores the process-wide settings that Trainer and train.py change."""
    torch.use_deterministic_algorithms(False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
