"""The Trainer that train.py makes of its options, in this process, and the seconds of its steps."""

import contextlib
import io
import signal
import sys
import tempfile
from collections.abc import Iterable
from unittest.mock import patch

import torch
from measuring import ROOT, SKIPPED, Clock
from resnet import Classifier
from runtime.cli import CLI
from torch import nn

FEW = ("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--trainer.devices=1", "--data=measuring.Images")
FEW += ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


class Linear(Classifier):
    """Costs next to nothing, so that all the rest can be seen."""

    def __init__(self, num_classes: int = 10):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)))


def make_cli(options: Iterable[str], num_steps: int, device: str, folder: str) -> CLI:
    limit = f"--trainer.limit_train_batches={SKIPPED + num_steps}"
    here = [f"--trainer.accelerator={device}", f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}"]
    with patch.object(sys, "argv", ["train.py", *options, *FEW, limit, *here]):
        return CLI(ROOT / "app/train.yaml", "")


def time_ours(options: Iterable[str], num_steps: int, device: str = "cpu") -> list[float]:
    """Seconds of each step of train.py with these options: log, checkpoints and metrics as always."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cli = make_cli(options, num_steps, device, folder)
        cli.trainer.callbacks.insert(0, clock)
        cli.trainer.fit(cli.model, cli.datamodule)
    back_to_normal()
    return clock.seconds()


def back_to_normal() -> None:
    """Undoes what Trainer and train.py change in the whole process."""
    torch.use_deterministic_algorithms(False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
