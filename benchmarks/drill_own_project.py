"""Kills runs of custom projects at random steps and hooks, resumes them, and compares them with uninterrupted runs.

    .venv/bin/python benchmarks/drill_own_project.py [NUM_KILLS [SEED]]

The exit code is 1 if a run did not resume or was not bit-exact.
"""

import logging
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))

from runs.interrupted import GLYPHS, differences, interrupt, train
from runs.programs import PATH

sys.path.extend(PATH.split(os.pathsep))  # warm processes inherit it

COMMON = ("--trainer.max_epochs=3", "--resume.every_n_steps=3")
STATEFUL = "--data=projects.StatefulData"
KINDS = {  # options, and the number of steps as Lightning counts them
    "custom project": (GLYPHS, 30),
    "custom schedules": (("--model=glyph_net.ScheduledGlyphNet", "--data=glyph_data.GlyphDataModule"), 30),
    "training metrics": (("--model=projects.LogsEverything", STATEFUL), 30),
    "validation within epochs": (("--model=projects.OnPlateau", STATEFUL, "--trainer.val_check_interval=0.25"), 30),
    "accumulation": (("--model=projects.OneCycle", STATEFUL, "--trainer.accumulate_grad_batches=3"), 12),
    "two optimizers": (("--model=projects.Manual", STATEFUL), 60),
    "two processes": (("--model=projects.LogsEverything", "--data=projects.OwnSamplerData", "--trainer.devices=2"), 15),
}
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end")


def crash_test(kind: str, folder: Path, rng: random.Random) -> tuple[str, list[str]]:
    """Kills a run, resumes it, and returns a description of the kill and the names of the results that differ."""
    options, num_steps = KINDS[kind]
    options, is_cold = (*COMMON, *options), kind == "two processes"  # a warm process cannot start a second rank
    hooks = HOOKS[:2] if kind == "two optimizers" else HOOKS  # this project has no validation
    hook, step = rng.choice(hooks), rng.randrange(1, num_steps - num_steps // 10)
    signum = rng.choice((signal.SIGKILL, signal.SIGTERM)) if hook != "on_train_epoch_end" else signal.SIGKILL
    uninterrupted = folder / kind
    if not uninterrupted.exists():
        uninterrupted.mkdir()
        train(*options, cwd=uninterrupted, cold=is_cold)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        interrupt(*options, cwd=Path(name), hook=hook, step=step, signum=signum, cold=is_cold)
        train(*options, cwd=Path(name), cold=is_cold)
        found = differences(uninterrupted, Path(name))
    return f"{signal.Signals(signum).name} in {hook}, step {step}", found


def main() -> None:
    num_kills, seed = [*map(int, sys.argv[1:]), *(20, 0)[len(sys.argv) - 1 :]]
    rng, num_exact = random.Random(seed), 0
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns when it purges steps, which is expected here
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_kills):
            kind = list(KINDS)[number % len(KINDS)]
            try:
                kill, found = crash_test(kind, Path(folder), rng)
            except AssertionError as error:
                kill, found = str(error), ["did not finish"]
            num_exact += not found
            print(f"{number + 1:3} {kind:26}{kill:46}{', '.join(found) or 'bit-exact'}", flush=True)
    print(f"\n{num_exact} of {num_kills} bit-exact")
    sys.exit(num_exact < num_kills)


if __name__ == "__main__":
    main()
