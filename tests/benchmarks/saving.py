"""What a step costs more with a checkpoint at its end."""

from collections.abc import Iterator
from statistics import median

from measuring import Result
from our_trainer import time_ours

INTERVAL = 5  # minutes, the default of --checkpoint.every_n_minutes


def measure_saving() -> Iterator[Result]:
    """The share of the time that checkpoints of all that a run needs to go on take."""
    every = 5
    options = ["--model=ResNet18", f"--resume.every_n_steps={every}"]
    steps = time_ours(options, 8 * every)
    # A checkpoint is written after step 1 and every fifth one after it, and the first five steps are not timed.
    with_checkpoint = steps[1::every]
    seconds = median(with_checkpoint) - median(steps)
    share = seconds / (60 * INTERVAL) * 100
    what = f"ResNet-18 with Adam: checkpoints, of the time, one in {INTERVAL} minutes"
    yield Result(what, share, "%", most=2, details={"seconds": seconds})
