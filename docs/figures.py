"""Draws the figures of the README, docs/figures/*.svg, from the runs that docs/record.py recorded in docs/results."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svg import Figure

DOCS = Path(__file__).parent
Scale = Callable[[float], float]


def scale(values: tuple[float, float], pixels: tuple[float, float]) -> Scale:
    """Returns the linear function that maps the interval `values` to the interval `pixels`."""
    return lambda value: pixels[0] + (value - values[0]) / (values[1] - values[0]) * (pixels[1] - pixels[0])


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Returns about `num` round numbers from low to high."""
    step = min((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500), key=lambda step: abs((high - low) / step - num))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def horizontal_lines(figure: Figure, values: list[float], y: Scale, left: float, right: float, unit: str) -> None:
    for value in values:
        figure.line([(left, y(value)), (right, y(value))], "grid")
        figure.text((left - 8, y(value) + 5), f"{value:g}{unit}", "gray", "end")


def learning_curves(results: dict[str, dict[str, Any]]) -> Figure:
    """Draws the accuracy on held-out images over minutes of training, for the defaults and the fast recipe."""
    curves = [("fast", "fast recipe", "orange"), ("defaults", "default ResNet-18", "blue")]
    points = {
        name: [(epoch["training_seconds"] / 60, epoch["val_acc"] * 100) for epoch in results[name]["epochs"]]
        for name, *_ in curves
    }
    test_accuracies = {name: results[name]["test_accuracy"] * 100 for name in points}
    images, hardware = results["fast"]["images"], results["fast"]["hardware"]
    heading = f"Accuracy on held-out images of {images}" if images == "CIFAR-10" else f"Accuracy on held-out {images}"
    descriptions = [
        f"{label} reaches {test_accuracies[name]:.1f} % test accuracy in {points[name][-1][0]:.1f} minutes"
        for name, label, _ in curves
    ]
    figure = Figure(640, 380, heading, f"{'; '.join(descriptions)} of training on {hardware}.")
    minutes, percents = zip(*(point for each in points.values() for point in each), strict=True)
    lowest, highest = min(percents) // 10 * 10, -(-max(percents) // 10) * 10
    left, right, top, bottom = 58, 452, 52, 318
    x = scale((0, max(minutes)), (left, right))
    y = scale((lowest, highest), (bottom, top))
    figure.text((left - 50, 24), heading, bold=True)
    horizontal_lines(figure, ticks(lowest, highest), y, left, right, " %")
    for value in ticks(0, max(minutes)):
        figure.text((x(value), bottom + 24), f"{value:g}", "gray", "middle")
    figure.text(((left + right) / 2, bottom + 50), f"minutes of training on {hardware}", "gray", "middle")
    previous = -100.0
    for name, label, color in sorted(curves, key=lambda curve: -points[curve[0]][-1][1]):
        positions = [(x(minute), y(percent)) for minute, percent in points[name]]
        figure.line(positions, color, 2.5)
        for position in positions:
            figure.dot(position, color, 4)
        previous = max(positions[-1][1] + 12, previous + 50)  # so that labels do not overlap
        figure.text((positions[-1][0] + 14, previous), label, color, bold=True)
        figure.text((positions[-1][0] + 14, previous + 21), f"{test_accuracies[name]:.1f} % test accuracy", color)
    return figure


def interruption(results: dict[str, dict[str, Any]]) -> Figure:
    """Draws the loss of each step of an uninterrupted and of an interrupted run, and a timeline of the latter."""
    result = results["interruption"]
    uninterrupted, (first, second) = result["uninterrupted"], result["interrupted"]
    last, killed, resumed = second["steps"][-1]["step"], first["steps"][-1]["step"], second["steps"][0]["step"] - 1
    heading = f"The loss of each step, with and without a kill -9 after step {killed}"
    figure = Figure(640, 470, heading, f"{verdict(result)} The killed run resumes from step {resumed}.")
    left, right = 44, 606
    x = scale((0, last), (left, right))
    figure.text((8, 24), heading, bold=True)
    figure.text((8, 47), verdict(result), "gray")
    figure.box(x(resumed), 68, x(killed), 404, "band")
    losses(figure, x, uninterrupted["steps"], first["steps"], second["steps"])
    timeline(figure, x, first, second)
    for value in ticks(0, last):
        figure.text((x(value), 430), f"{value:g}", "gray", "middle")
    figure.text(((left + right) / 2, 456), "steps", "gray", "middle")
    return figure


def verdict(result: dict[str, Any]) -> str:
    expected = {step["step"]: step["loss"] for step in result["uninterrupted"]["steps"]}
    steps = [step for start in result["interrupted"] for step in start["steps"]]
    is_exact = {step["step"] for step in steps} == set(expected)
    is_exact &= all(step["loss"] == expected[step["step"]] for step in steps)
    is_exact &= result["uninterrupted"]["model_sha256"] == result["interrupted"][-1]["model_sha256"]
    return "All losses, and the final model, are the same to the last bit." if is_exact else "The runs differ."


def losses(figure: Figure, x: Scale, *starts: list[dict[str, float]]) -> None:
    highest = max(step["loss"] for steps in starts for step in steps)
    y = scale((0, highest), (268, 72))
    figure.line([(x(0), y(0)), (x(starts[0][-1]["step"]), y(0))], "grid")
    for value in ticks(0, highest, 3):
        figure.text((x(0) - 10, y(value) + 5), f"{value:g}", "gray", "end")
    labels = ("uninterrupted", "until the kill", "after the restart")
    styles = [("pale", "gray", 7), ("blue", "blue", 2), ("orange", "orange", 2)]
    for row, (steps, label, (color, text_color, width)) in enumerate(zip(starts, labels, styles, strict=True)):
        figure.line([(x(step["step"]), y(step["loss"])) for step in steps], color, width)
        middle = 202 + 24 * row  # below the losses, which decrease
        figure.line([(x(0) + 10, middle), (x(0) + 40, middle)], color, width)
        figure.text((x(0) + 54, middle + 5), label, text_color)


def timeline(figure: Figure, x: Scale, first: dict[str, Any], second: dict[str, Any]) -> None:
    last, killed, resumed = second["steps"][-1]["step"], first["steps"][-1]["step"], second["steps"][0]["step"] - 1
    seconds = second["steps"][0]["seconds"] - first["killed_after_seconds"]
    figure.box(x(0), 308, x(killed), 328, "blue", 4)
    figure.box(x(resumed), 376, x(last) + 10, 396, "orange", 4)
    for y, start in ((318, first), (386, second)):
        for step in start["checkpoints"]:
            figure.dot((x(step), y), "page", 5)
    for sign in (-1, 1):
        figure.line([(x(killed) - 8, 318 - 8 * sign), (x(killed) + 8, 318 + 8 * sign)], "ink", 3)
    figure.text((x(killed) + 16, 324), "kill -9", bold=True)
    figure.text((x(0), 298), "first start, with checkpoints", "blue")
    figure.text((x(resumed) - 10, 354), f"{killed - resumed} steps repeated", "ink", "end")
    figure.text((x(resumed) - 10, 391), f"the same command resumes {seconds:.0f} s later", "orange", "end")


FIGURES = {"learning-curves": learning_curves, "interruption": interruption}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results_dir", type=Path, default=DOCS / "results")
    parser.add_argument("--output_dir", type=Path, default=DOCS / "figures")
    options = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(options.results_dir.glob("*.json"))}
    for name, draw in FIGURES.items():
        draw(results).write(options.output_dir, name)


if __name__ == "__main__":
    main()
