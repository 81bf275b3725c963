"""SIGTERM and Ctrl-C: a signal to any rank ends all ranks after the same step."""

import signal
from datetime import timedelta
from types import FrameType

import torch
from pytorch_lightning import Trainer


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
