"""Crash-tests checkpoints: kills runs of train.py, resumes them, and compares the results with uninterrupted runs.

    .venv/bin/python benchmarks/drill.py [NUM_KILLS [SEED [SETUP ...]]]

The exit code is 1 if a run did not resume, hung, lost more steps than the checkpoint interval, or was not bit-exact.
Runs on two hosts get their checkpoints only from SageMaker's agent and lose the steps that it had not copied yet.
"""

import contextlib
import logging
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))

from drill_run import INTERVAL, NUM_HOSTS, NUM_RANKS, Run
from runs.results import newest_complete_step

HOOKS = ("on_train_batch_start", "on_train_batch_end", "save", "on_validation_batch_end", "on_train_epoch_end")
KINDS = ("kill -9 of all", "kill -9 of one rank", "SIGTERM to all at once", "SIGTERM to all, one after the other")
KINDS += ("SIGTERM to one", *(f"kill -9 in {hook}" for hook in (*HOOKS, "on_test_start")))


@dataclass
class Interruption:
    setup: str
    network: str
    kind: str
    is_resumed: bool = False
    differences: str = ""
    num_steps_lost: int = 0
    seconds_to_recover: float = 0.0


@cache
def uninterrupted(folder: Path, setup: str, network: str) -> tuple[dict[str, Any], float]:
    """Returns the result of an uninterrupted run and the seconds from its first step to its last."""
    (folder / f"{setup}, {network}").mkdir()
    run = Run(folder / f"{setup}, {network}", setup, network)
    assert run.wait(), run.log
    return run.result(), run.step_file.stat().st_mtime - run.first_step_file.stat().st_mtime


def interrupt(run: Run, kind: str, seconds: float, rng: random.Random) -> int:
    """Sends the signals that a run does not send to itself, and returns the last step before them."""
    run.wait_for_first_step()
    if kind.startswith("kill -9 in"):
        return 0
    time.sleep(rng.uniform(0, seconds))
    ranks, step = run.ranks(), int(run.step_file.read_text())
    if "SIGTERM" in kind and run.hosts:
        ranks = [psutil.Process(process.pid) for process in run.processes if process.poll() is None]  # the entrypoints
    if "kill -9 of all" in kind:
        run.gone_file.touch()
    chosen = [rng.choice(ranks)] if ranks and "one" in kind.split()[-2:] else ranks
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL if "kill" in kind else signal.SIGTERM)
        if "after the other" in kind:
            time.sleep(rng.uniform(0.1, 1.5))
    return step


def crash_test(interruption: Interruption, folder: Path, rng: random.Random) -> None:
    """Interrupts a run once or twice, resumes it, and compares it with the uninterrupted run."""
    expected, seconds = uninterrupted(folder, interruption.setup, interruption.network)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name)
        options, last_step = [], len(expected["TensorBoard"]["images_per_second"])
        if "kill -9 in" in interruption.kind:
            hook = interruption.kind.split()[-1]
            early = hook.startswith("on_train_batch") and rng.random() < 0.5  # one of the first two steps
            step = rng.randrange(0, 2 if early else expected["global_step"])
            rank = rng.randrange(NUM_RANKS[interruption.setup])
            values = {"hook": hook, "step": min(step, expected["global_step"] - last_step), "rank": rank}
            options = [f"--trainer.callbacks.{key}={value}" for key, value in values.items()]
        for _ in range(rng.choice((1, 1, 1, 2))):
            vanishes = "in" not in interruption.kind.split() or rng.random() < 0.5
            run = Run(path, interruption.setup, interruption.network, *options, vanishes=vanishes)
            try:
                step = interrupt(run, interruption.kind, seconds, rng)
                if run.wait() or list(run.checkpoint_dir.glob("*.ended")):
                    assert step == expected["global_step"], f"not interrupted at step {step}: {run.log}"
                    return crash_test(interruption, folder, rng)  # the run had finished first: try again
            finally:
                run.kill()
            reached = int(run.step_file.read_text()) if run.step_file.exists() else 0
        newest = newest_complete_step(run.store)
        run = Run(path, interruption.setup, interruption.network)
        try:
            run.wait_for_first_step()
            interruption.seconds_to_recover = time.time() - run.start
            interruption.is_resumed = run.wait()
            found = re.search(r"resuming from .* \(step (\d+)", run.log)
            start = int(found[1]) if found else 0
            interruption.num_steps_lost = reached - start
            result = run.result() if interruption.is_resumed else {}
            if not found:  # a run that starts from scratch gets a new log folder
                result |= {"log folders": expected["log folders"]}
            different = [name for name in expected if result.get(name) != expected[name]]
            growing = [agent.gave_up_at for agent in run.agents if agent.gave_up_at]
            different += [f"the agent gave up at {name}, which keeps growing" for name in growing]
            if run.agents and start != newest:
                different.append(f"resumed from step {start}, expected {newest}, the newest that the agent had copied")
            interruption.differences = ", ".join(different)
        except TimeoutError as error:
            interruption.differences = str(error)
        finally:
            run.kill()
        if interruption.differences or not interruption.is_resumed:
            print(run.log)


def plan(num_interruptions: int, rng: random.Random, setups: list[str]) -> list[Interruption]:
    """Returns interruptions of all kinds in random order, alternating setups and networks, mostly fast ones."""
    interruptions = []
    while len(interruptions) < num_interruptions:
        kinds = list(KINDS)
        rng.shuffle(kinds)
        for kind in kinds:
            setup = setups[len(interruptions) % len(setups)]
            network = "ResNet-18" if kind.endswith("save") or len(interruptions) % 4 == 3 else "tiny"
            if setup == "one process" and ("one" in kind.split()[-2:] or kind.endswith(("one", "other"))):
                setup = "two processes"
            interruptions.append(Interruption(setup, network, kind))
    return interruptions[:num_interruptions]


def main() -> None:
    num_interruptions, seed, *only = [*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]]
    rng = random.Random(int(seed))
    setups = only or ["one process"] * 3 + ["two processes"] * 2 + ["four on two hosts"]
    interruptions = plan(int(num_interruptions), rng, setups)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns when it purges steps, which is expected here
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for number, interruption in enumerate(interruptions, 1):
            where = f"{number:3} {interruption.setup:18}{interruption.network:10}{interruption.kind:36}"
            try:
                crash_test(interruption, Path(folder), rng)
            except (TimeoutError, AssertionError) as error:
                interruption.differences = str(error)
            outcome = "bit-exact" if interruption.is_resumed and not interruption.differences else "FAILED"
            times = f"{interruption.num_steps_lost:3} steps lost, {interruption.seconds_to_recover:3.0f} s to recover"
            print(f"{where} {outcome:10}{times} {interruption.differences}", flush=True)
    lost = [interruption.num_steps_lost for interruption in interruptions]
    limited = [interruption.num_steps_lost for interruption in interruptions if not NUM_HOSTS[interruption.setup]]
    exact = [interruption for interruption in interruptions if interruption.is_resumed and not interruption.differences]
    seconds = [interruption.seconds_to_recover for interruption in interruptions]
    print(f"""
interruptions       {len(interruptions)} in {(time.time() - start) / 60:.0f} minutes
resumed             {sum(interruption.is_resumed for interruption in interruptions)}
bit-exact           {len(exact)}
steps lost          {max(lost)} at most, {mean(lost):.1f} on average; a checkpoint every {INTERVAL} steps
seconds to recover  {max(seconds):.0f} at most, {mean(seconds):.0f} on average, imports included""")
    sys.exit(len(exact) < len(interruptions) or max(limited, default=0) > INTERVAL)


if __name__ == "__main__":
    main()
