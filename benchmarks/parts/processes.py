"""Compares two DDP processes of one thread each with one process of two threads, at the same global batch size.

The efficiency on more hosts is not measured but calculated from the bytes that a step sends.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

import torch
from fast import FastNet
from measuring import DATA, NUM_WARMUP_STEPS, ROOT, Result, has_bf16, interleave, seconds_per_step, train_command
from other_hosts import FLOPS, FLOPS_16, bytes_sent, communication_seconds, efficiency
from resnet import ResNet18
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

NUM_STEPS, NUM_ROUNDS = 20, 2
PRECISION = "bf16-mixed" if has_bf16("cpu") else "32-true"
RECIPE = [f"--config={ROOT}/examples/fast/fast.yaml", f"--trainer.precision={PRECISION}"]
TASKS = {"ResNet-18": (128, []), "recipe": (512, RECIPE)}  # global batch size and options
SHARES = (0.45, 0.3, 0.25)  # of the recipe's steps, for each of its resolutions


def time_steps(options: list[str], batch_size: int, num_processes: int, num_threads: int) -> list[float]:
    """Runs `python app/train.py` and returns the seconds of each step."""
    with tempfile.TemporaryDirectory() as folder:
        limits = ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={NUM_WARMUP_STEPS + NUM_STEPS}"]
        limits += ["--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1"]
        paths = [f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}"]
        sizes = [f"--trainer.devices={num_processes}", f"--data.batch_size={batch_size // num_processes}"]
        options = [*options, *DATA, *limits, *paths, *sizes]
        options += ["--trainer.accelerator=cpu", "--trainer.callbacks=measuring.PrintSteps"]
        command = train_command(*options, OMP_NUM_THREADS=str(num_threads))
        result = subprocess.run(**command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return [float(word) for word in re.search("seconds of steps: (.*)", result.stdout)[1].split()]


def measure_processes() -> Iterator[Result]:
    for name, (batch_size, options) in TASKS.items():
        run = partial(time_steps, options, batch_size)
        alternatives = {"one process": partial(run, 1, 2), "two processes": partial(run, 2, 1)}
        rounds = interleave(alternatives, NUM_ROUNDS)
        speeds = {f"{kind}, images/s": batch_size / seconds_per_step(each) for kind, each in rounds.items()}
        one, two = speeds.values()
        yield Result(f"{name}, batch {batch_size}: speed of two processes", two / one, least=0.9, details=speeds)
    yield from calculate()


def measure_exact() -> Iterator[Result]:
    for name, (batch_size, options) in TASKS.items():
        alternatives = {
            strategy: partial(time_steps, [*options, f"--trainer.strategy={strategy}"], batch_size, 2, 1)
            for strategy in ("ddp", "ddp_exact")
        }
        rounds = interleave(alternatives, NUM_ROUNDS)
        ms = {f"{kind} ms": seconds_per_step(each) * 1000 for kind, each in rounds.items()}
        ddp, exact = ms.values()
        yield Result(f"{name}, batch {batch_size}: speed of ddp_exact compared with ddp", ddp / exact, details=ms)


def calculate() -> Iterator[Result]:
    """Yields calculated results. They assume peak FLOPS and full bandwidth, and no overlap."""
    for name, model, batch_size, flops in ("ResNet-18", ResNet18(), 128, FLOPS), ("recipe", FastNet(), 512, FLOPS_16):
        num_parameters = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
        yield Result(f"CALCULATED {name}: sent per step by each of two", bytes_sent(num_parameters, 2) / 1e6, "MB")
        sizes = zip(getattr(model, "resolutions", [32]), SHARES if name == "recipe" else [1], strict=True)
        computing = sum(share * num_flops(model.network, size) for size, share in sizes) * batch_size / flops
        for num_hosts in 1, 2, 4, 8:
            communication = communication_seconds(num_parameters, num_hosts)
            times = {"computing": computing, "communication": communication, "computing for 0.9": 9 * communication}
            what = f"CALCULATED {name}, batch {batch_size} per GPU, {num_hosts} ml.g4dn.12xlarge: efficiency at peak"
            details = {f"ms of {name}": seconds * 1000 for name, seconds in times.items()}
            yield Result(what, efficiency(computing, num_parameters, num_hosts), details=details)


def num_flops(network: torch.nn.Module, size: int) -> float:
    """Returns the FLOPs of a training step per image of `size` x `size` pixels."""
    with FlopCounterMode(display=False) as counter:
        cross_entropy(network(torch.zeros(2, 3, size, size)), torch.zeros(2, dtype=torch.int64)).backward()
    return counter.get_total_flops() / 2
