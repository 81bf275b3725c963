"""Benchmarks train.py part by part, each compared with its alternatives in the same run.

    .venv/bin/python benchmarks/bench.py [PART ...] [--json FILE]

Each part takes one to three minutes on two cores. Alternatives run in turns, so that other work on the machine slows
down all of them; on a machine that is fully busy the ratios are meaningless, because torch's threads wait for each
other. recipe.py measures the time to an accuracy. The exit code is 1 if a target is missed.
"""

import argparse
import logging
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

FOLDERS = ("app", "examples/synthetic", "examples/fast")
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in FOLDERS]

PARTS = {
    "input": "images per second that are ready for the network, compared with torchvision",
    "network": "training steps of ResNet-18, compared with torchvision's",
    "steps": "training steps of ResNet-18 and a linear network, compared with a plain loop and a stock Trainer",
    "recipe": "training steps of the fast recipe, compared with a plain loop and a stock Trainer",
    "saving": "overhead of checkpoints",
    "processes": "two processes compared with one of two threads, and a calculation for more hosts",
    "exact": "--trainer.strategy=ddp_exact compared with ddp",
    "start": "startup time, compared with the time of the imports",
    "memory": "peak memory of a run",
}
MODULES = {"recipe": "steps", "exact": "processes"}  # parts in a module of a different name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12}{job}" for name, job in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="Parts to measure (default: all).")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the results to this JSON file.")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: expected one of {', '.join(PARTS)}")
    from measuring import DEVICES, hardware_and_versions, write_report  # takes seconds to import

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(", ".join(f"{name} {value}" for name, value in hardware_and_versions().items()))
    if "gpu" not in DEVICES:
        print("no CUDA device found: skipping the GPU measurements")
    results: list[dict] = []
    write_report(options.json, results)  # fails before the measurements if the file cannot be written
    for part in options.parts or PARTS:
        print(f"\n{part}: {PARTS[part]}", flush=True)
        for result in getattr(import_module(f"parts.{MODULES.get(part, part)}"), f"measure_{part}")():
            print(result, flush=True)
            results.append({"part": part, **asdict(result), "is_met": result.is_met})
            write_report(options.json, results)
    sys.exit(any(result["is_met"] is False for result in results))


if __name__ == "__main__":
    main()
