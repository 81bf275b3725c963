"""Draws the figures of the README, docs/figures/*.svg, from the runs that docs/record.py recorded in docs/results."""

import argparse
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
# The colors of GitHub's pages. Blue and orange can also be distinguished by people who are red-green color-blind.
THEMES = {
    "light": {"ink": "#1f2328", "gray": "#59636e", "grid": "#d1d9e0", "blue": "#0969da", "orange": "#bc4c00"},
    "dark": {"ink": "#f0f6fc", "gray": "#9198a1", "grid": "#3d444d", "blue": "#58a6ff", "orange": "#f0883e"},
}
STYLE = {
    "axes.spines.bottom": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; a browser without it takes its own sans-serif font
    "font.size": 12,
    "lines.solid_capstyle": "round",
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text instead of the outlines of its letters
    "svg.hashsalt": "figures",  # the same identifiers each time instead of random ones
    "xtick.major.pad": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
Colors = dict[str, str]
Result = dict[str, Any]
Drawing = tuple[Figure, str, str]  # a figure, its title and its description


def new_figure(height: int, heading: str) -> Figure:
    """Returns a figure with a heading that is 640 pixels wide and `height` pixels high, at 96 pixels per inch."""
    figure = Figure(figsize=(640 / 96, height / 96))
    figure.text(8 / 640, 1 - 24 / height, heading, weight="bold")
    return figure


def annotate(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **style: str) -> None:
    """Adds text near a point of the data. The distance, in points of 1/72 inch, is the same for all data."""
    axes.annotate(text, point, offset, textcoords="offset points", annotation_clip=False, **style)


def learning_curves(results: dict[str, Result], colors: Colors) -> Drawing:
    """Draws the accuracy on held-out images over minutes of training, for the defaults and the fast recipe."""
    images = results["fast"]["images"]
    hardware = results["fast"]["hardware"]
    heading = f"Accuracy on held-out images of {images}" if images == "CIFAR-10" else f"Accuracy on held-out {images}"
    figure = new_figure(380, heading)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.09, right=0.705, top=0.88, bottom=0.165)
    descriptions = []
    for name, label, color in [("fast", "fast recipe", "orange"), ("defaults", "default ResNet-18", "blue")]:
        minutes = [epoch["training_seconds"] / 60 for epoch in results[name]["epochs"]]
        percents = [epoch["val_acc"] * 100 for epoch in results[name]["epochs"]]
        test_accuracy = f"{results[name]['test_accuracy'] * 100:.1f}% test accuracy"
        axes.plot(minutes, percents, "o-", color=colors[color], linewidth=2, clip_on=False)
        end = (minutes[-1], percents[-1])
        annotate(axes, label, end, (10, -8), color=colors[color], weight="bold")
        annotate(axes, test_accuracy, end, (10, -24), color=colors[color])
        descriptions.append(f"{label} reaches {test_accuracy} in {minutes[-1]:.1f} minutes")
    axes.grid(axis="y")
    axes.set_xlabel(f"minutes of training on {hardware}")
    axes.set_xlim(0)
    axes.set_ymargin(0.1)
    axes.yaxis.set_major_formatter("{x:g}%")
    return figure, heading, f"{'; '.join(descriptions)} of training on {hardware}."


def interruption(results: dict[str, Result], colors: Colors) -> Drawing:
    """Draws the loss of each step of an uninterrupted and of an interrupted run, and a timeline of the latter."""
    result = results["interruption"]
    first, second = result["interrupted"]
    killed = first["steps"][-1]["step"]
    resumed = second["steps"][0]["step"] - 1
    heading = f"The loss of each step, with and without a kill -9 after step {killed}"
    figure = new_figure(460, heading)
    figure.text(8 / 640, 1 - 47 / 460, verdict(result), color=colors["gray"])
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    figure.subplots_adjust(left=0.07, right=0.95, top=0.85, bottom=0.13, hspace=0)
    for axes in (upper, lower):
        axes.axvspan(resumed, killed, color=colors["grid"], alpha=0.5, linewidth=0)
    draw_losses(upper, [result["uninterrupted"], first, second], colors)
    draw_timeline(lower, first, second, colors)
    return figure, heading, f"{verdict(result)} The killed run resumes from step {resumed}."


def verdict(result: Result) -> str:
    expected = {step["step"]: step["loss"] for step in result["uninterrupted"]["steps"]}
    steps = [step for start in result["interrupted"] for step in start["steps"]]
    is_exact = {step["step"] for step in steps} == set(expected)
    is_exact &= all(step["loss"] == expected[step["step"]] for step in steps)
    is_exact &= result["uninterrupted"]["model_sha256"] == result["interrupted"][-1]["model_sha256"]
    return "All losses, and the final model, are the same to the last bit." if is_exact else "The runs differ."


def draw_losses(axes: Axes, runs: list[Result], colors: Colors) -> None:
    styles = [
        {"label": "uninterrupted", "color": colors["gray"], "alpha": 0.5, "linewidth": 5},
        {"label": "until the kill", "color": colors["blue"]},
        {"label": "after the restart", "color": colors["orange"]},
    ]
    for run, style in zip(runs, styles, strict=True):
        axes.plot([step["step"] for step in run["steps"]], [step["loss"] for step in run["steps"]], **style)
    axes.axhline(0, color=colors["grid"], linewidth=1, clip_on=False)
    axes.legend(loc="lower left", borderaxespad=0.2, frameon=False, handlelength=1.5, labelcolor="linecolor")
    axes.locator_params(axis="y", integer=True)
    axes.set_xlim(0)
    axes.set_ylim(0)


def draw_timeline(axes: Axes, first: Result, second: Result, colors: Colors) -> None:
    """Draws the steps of the two starts, with a dot at each checkpoint."""
    killed = first["steps"][-1]["step"]
    resumed = second["steps"][0]["step"] - 1
    last = second["steps"][-1]["step"]
    seconds = second["steps"][0]["seconds"] - first["killed_after_seconds"]
    for y, start, ends, color in [(2, first, (0, killed), "blue"), (0, second, (resumed, last), "orange")]:
        axes.plot(ends, [y, y], color=colors[color], linewidth=4)
        checkpoints = start["checkpoints"]
        axes.plot(checkpoints, [y] * len(checkpoints), "o", color=colors[color], markersize=11, clip_on=False)
    axes.plot(killed, 2, "x", color=colors["ink"], markersize=12, markeredgewidth=2.5)
    annotate(axes, "kill -9", (killed, 2), (11, 0), va="center", weight="bold")
    annotate(axes, "first start, with checkpoints", (0, 2), (0, 16), color=colors["blue"])
    annotate(axes, f"{killed - resumed} steps repeated", (resumed, 1), (-9, 0), ha="right", va="center")
    resuming = f"the same command resumes {seconds:.0f} s later"
    annotate(axes, resuming, (resumed, 0), (-9, 0), color=colors["orange"], ha="right", va="center")
    axes.set_xlabel("steps")
    axes.set_ylim(-1, 4)
    axes.yaxis.set_visible(False)


def save(figure: Figure, title: str, description: str, path: Path) -> None:
    """Saves a figure as SVG, with the title and the description that screen readers read aloud."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, svg = file.getvalue().split("<svg ")
    attributes, content = svg.split(">", 1)
    path.write_text(
        f'<svg role="img" aria-labelledby="title description" {attributes}>\n'
        f' <title id="title">{escape(title)}</title>\n'
        f' <desc id="description">{escape(description)}</desc>{content}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results_dir", type=Path, default=DOCS / "results")
    parser.add_argument("--output_dir", type=Path, default=DOCS / "figures")
    options = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(options.results_dir.glob("*.json"))}
    for theme, colors in THEMES.items():
        theme_style = {
            "axes.labelcolor": colors["gray"],
            "grid.color": colors["grid"],
            "text.color": colors["ink"],
            "xtick.labelcolor": colors["gray"],
            "ytick.labelcolor": colors["gray"],
        }
        with rc_context(STYLE | theme_style):
            save(*learning_curves(results, colors), options.output_dir / f"learning-curves-{theme}.svg")
            save(*interruption(results, colors), options.output_dir / f"interruption-{theme}.svg")


if __name__ == "__main__":
    main()
