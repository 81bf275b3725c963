"""How fast the program is, part by part, each beside what one could use in its place, in one run.

    .venv/bin/python tests/bench.py [PART ...] [--json FILE]

Each part takes one to three minutes on two cores. The alternatives take turns, because other work on the machine slows
some of them down; where all cores are always busy, torch's threads mostly wait for each other, and no ratio is right.
What it takes to reach an accuracy is measured by bench_recipe.py. The exit code is 1 if a target is missed.
"""

import argparse
import logging
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("app", "tests/support", "examples/synthetic")]

PARTS = {
    "input": "images that are ready for the network, beside torchvision's",
    "steps": "a training step of ResNet-18 and of a linear network, beside a bare loop's and a stock Trainer's",
    "recipe": "the same of the fast recipe",
    "saving": "checkpoints",
    "processes": "two processes beside one with two threads, and what that would be on more hosts",
    "exact": "--trainer.strategy=ddp_exact beside ddp",
    "start": "seconds until something happens, beside those of the imports",
    "memory": "the peak of a run",
}
MODULES = {"recipe": "steps", "exact": "processes"}  # where a part is not in the module of its name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12}{job}" for name, job in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="What to measure; everything, if not said.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all results to this file, too.")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: it is one of {', '.join(PARTS)}")
    from measuring import DEVICES, where, write_report  # takes seconds to import

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(", ".join(f"{name} {value}" for name, value in where().items()))
    if "gpu" not in DEVICES:
        print("there is no CUDA device here, so nothing is measured on one")
    results: list[dict] = []
    write_report(options.json, results)  # which says now if that cannot be done
    for part in options.parts or PARTS:
        print(f"\n{part}: {PARTS[part]}", flush=True)
        for result in getattr(import_module(f"benchmarks.{MODULES.get(part, part)}"), f"measure_{part}")():
            print(result, flush=True)
            results.append({"part": part, **asdict(result), "is_met": result.is_met})
            write_report(options.json, results)
    sys.exit(any(result["is_met"] is False for result in results))


if __name__ == "__main__":
    main()
