"""The largest memory of a process."""

import atexit
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class PrintPeak(Callback):
    """Prints at the very end of the process how much memory it had at most."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            atexit.register(print_peak)


# Not what getrusage says, which begins with the memory of the parent.
def print_peak() -> None:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    on_gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    print("peak memory:", int(line.split()[1]) * 1024, on_gpu, flush=True)
