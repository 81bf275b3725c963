"""What a step costs more with the log in S3, and with a checkpoint at its end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median

from measuring import Result, in_turns
from our_trainer import time_ours

# S3 in another process, where each request takes 50 ms longer.
S3 = "from aws import *; AWS().reset(); print(Endpoint(delay=0.05).url, BUCKET, flush=True); input()"
INTERVAL = 5  # minutes, the default of --checkpoint.every_n_minutes


def measure_log() -> Result:
    """How fast steps are with the log in S3, which gets it every second, compared with a log in a folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", S3], cwd=Path(__file__).parents[1] / "support", **pipes) as server:
        url, bucket = server.stdout.readline().split()
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY="mine")
        run = partial(time_ours, ["--model=our_trainer.Linear", "--logger.flush_secs=1"], 1200)
        alternatives = {"folder": run, "S3": partial(run, save_dir=f"s3://{bucket}/tensorboard")}
        rounds = {name: [mean(steps) for steps in each] for name, each in in_turns(alternatives, 12).items()}
        server.stdin.close()
    # Of neighbours, whatever else the machine does meanwhile.
    ratio = median(folder / s3 for folder, s3 in zip(rounds["folder"], rounds["S3"], strict=True))
    ms = {f"{name} ms": median(values) * 1000 for name, values in rounds.items()}
    return Result("linear, batch 32: speed with the log in S3, of that in a folder", ratio, least=0.97, details=ms)


def measure_checkpoint() -> Result:
    """The share of the time that checkpoints of all that a run needs to go on take."""
    every = 5
    options = ["--model=ResNet18", f"--checkpoint.every_n_train_steps={every}"]
    steps = time_ours(options, 8 * every)
    # A checkpoint is written after step 1 and every fifth one after it, and the first five steps are not timed.
    with_checkpoint = steps[1::every]
    seconds = median(with_checkpoint) - median(steps)
    share = seconds / (60 * INTERVAL) * 100
    what = f"ResNet-18 with Adam: checkpoints, of the time, one in {INTERVAL} minutes"
    return Result(what, share, "%", most=2, details={"seconds": seconds})


def measure_saving() -> Iterator[Result]:
    yield measure_log()
    yield measure_checkpoint()
