"""Measures the overhead of a checkpoint."""

from collections.abc import Iterator
from statistics import median

from measuring import Result
from our_trainer import time_train_py

INTERVAL = 5  # minutes, the default of --resume.every_n_minutes


def measure_saving() -> Iterator[Result]:
    """Yields the share of the time that checkpoints take."""
    every = 5
    options = ["--model=ResNet18", f"--resume.every_n_steps={every}"]
    steps = time_train_py(options, 8 * every)
    # Checkpoints are written after steps 1, 6, 11 and so on; the first five steps are not timed.
    with_checkpoint = steps[1::every]
    seconds = median(with_checkpoint) - median(steps)
    share = seconds / (60 * INTERVAL) * 100
    what = f"ResNet-18 with Adam: time for checkpoints, one every {INTERVAL} minutes"
    yield Result(what, share, "%", most=2, details={"seconds": seconds})
