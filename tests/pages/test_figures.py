"""The figures of the README: drawn from the recorded runs, small, and accessible."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from runs.programs import ENVIRONMENT, ROOT, SYNTHETIC

FIGURES, RESULTS = ROOT / "docs/figures", ROOT / "docs/results"
NAMES = ["interruption", "learning-curves"]


def draw(output_dir: Path, results_dir: Path = RESULTS) -> list[str]:
    program = [Path(sys.executable).parents[1] / "figures/bin/python", ROOT / "docs/figures.py"]
    subprocess.run([*program, f"--results_dir={results_dir}", f"--output_dir={output_dir}"], check=True)
    return sorted(path.name for path in output_dir.glob("*.svg"))


def test_the_figures_match_the_recorded_results(tmp_path):
    drawn = draw(tmp_path)
    assert drawn == sorted(f"{name}-{theme}.svg" for name in NAMES for theme in ("light", "dark"))
    assert drawn == sorted(path.name for path in FIGURES.iterdir())
    assert [name for name in drawn if (tmp_path / name).read_bytes() != (FIGURES / name).read_bytes()] == []


@pytest.mark.parametrize("path", sorted(FIGURES.iterdir()), ids=lambda path: path.name)
def test_a_figure_is_small_and_has_a_text_alternative(path):
    svg = "{http://www.w3.org/2000/svg}"
    figure = ElementTree.parse(path).getroot()
    assert path.stat().st_size < 30_000
    assert figure.get("role") == "img"
    assert figure.findtext(f"{svg}title") and figure.findtext(f"{svg}desc")
    assert figure.findtext(f".//{svg}text")  # and not the outlines of its letters


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_a_result_states_its_command_date_hardware_and_versions(path):
    result = json.loads(path.read_text())
    assert result["command"].startswith("python app/train.py ")
    assert result["date"] and result["hardware"] and result["versions"].keys() >= {"python", "torch"}


def test_the_recorded_interruption_changed_no_result():
    result = json.loads((RESULTS / "interruption.json").read_text())
    expected = {step["step"]: step["loss"] for step in result["uninterrupted"]["steps"]}
    first, second = result["interrupted"]
    assert first["signal"] == 9
    assert first["steps"][-1]["step"] >= second["steps"][0]["step"], "no step was repeated"
    assert {step["step"]: step["loss"] for step in first["steps"] + second["steps"]} == expected
    assert {step["step"]: step["loss"] for step in second["steps"] + first["steps"]} == expected
    assert second["model_sha256"] == result["uninterrupted"]["model_sha256"]


@pytest.mark.slow
def test_a_new_recording_can_be_drawn(tmp_path):
    tiny = [*SYNTHETIC, "--model=tiny.Tiny", "--data.batch_size=5", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    slow = ["--trainer.callbacks=tiny.Drill", "--trainer.callbacks.file=step", "--trainer.callbacks.seconds=0.03"]
    for name, options in [("defaults", tiny), ("interruption", [*tiny, *slow])]:
        program = [sys.executable, ROOT / "docs/record.py", name, f"--results_dir={tmp_path}"]
        subprocess.run([*program, *options], env=ENVIRONMENT, check=True)
    shutil.copy(tmp_path / "defaults.json", tmp_path / "fast.json")
    draw(tmp_path, tmp_path)
    assert "the same to the last bit" in (tmp_path / "interruption-light.svg").read_text()
    assert "Accuracy on held-out synthetic images" in (tmp_path / "learning-curves-dark.svg").read_text()
