"""Prints the peak memory of a process."""

import atexit
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class PrintPeak(Callback):
    """Prints the peak memory when the process exits."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            atexit.register(print_peak)


def print_peak() -> None:
    """Prints the peak memory of the process and of its GPU, in bytes."""
    # getrusage would include the memory of the parent process.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    on_gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    print("peak memory:", int(line.split()[1]) * 1024, on_gpu, flush=True)
