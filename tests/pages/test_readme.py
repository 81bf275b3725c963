"""The README and docs: commands work as printed, outputs look as shown, and options, links and messages exist."""

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from runs.programs import ENVIRONMENT, ROOT, executable, run_train_warm
from runs.results import epoch_lines
from runs.tutorial import BLOCKS, PAGES, block, run_block, same_lines
from torchvision.io import write_jpeg
from torchvision.models import resnet18

README = PAGES[ROOT / "README.md"]
PROSE = {page: re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) for page, text in PAGES.items()}
# Options of other programs, and of examples/photos.
OTHER_OPTIONS = """
    --checkpoint.every_n_minutes --checkpoint.every_n_train_steps --trainer.weights_save_path --node_rank
    --user-name --policy-arn --recursive --force --repository-name --build-arg --num_seeds --leave_out --filter
    --model.lr --model.weights --model.widths
"""


def test_the_readme_states_how_many_of_its_blocks_are_tested():
    fates = [block.fate.split()[0] for block in BLOCKS if block.page.name == "README.md"]
    num_executed, num_parsed = fates.count("executed"), fates.count("parsed")
    sentence = (
        f"This page has {len(fates)} blocks of commands: "
        f"tests execute {num_executed} of them and check the syntax of the other {num_parsed}."
    )
    assert num_executed + num_parsed == len(fates)
    assert sentence in " ".join(README.split())


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_executed_by_the_test_that_it_names_or_can_be_parsed(number):
    fate, language, commands = BLOCKS[number].fate, BLOCKS[number].language, BLOCKS[number].commands
    if fate.startswith("executed by "):
        source = (ROOT / fate.removeprefix("executed by ")).read_text()
        words = [ast.literal_eval(text) for text in re.findall(r'block\((".*?")\)', source)]
        assert any(word in commands for word in words)
    elif language == "bash":
        assert fate == "parsed" or fate.startswith("not run: ")
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_or_a_heading_has_a_target(page):
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", PAGES[page])
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        titles = re.findall("^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_every_file_that_the_tutorial_names_exists():
    for page, text in PROSE.items():
        for path in re.findall(r"`((?:app|docker|docs|examples|launcher|tests)/[\w./-]*\w)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_message_in_the_readme_exists_in_the_programs():
    table = README.split("## When something goes wrong")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    programs = [path.read_text() for name in ("app", "launcher", "docker") for path in (ROOT / name).rglob("*.py")]
    assert messages and [message for message in messages if not any(message in text for text in programs)] == []


def test_every_option_in_the_tutorial_exists_in_the_programs(tmp_path):
    launcher = [sys.executable, ROOT / "run_sagemaker.py", "--help"]
    of_classes = ("data.help=CIFAR10DataModule", "optimizer.help=SGD", "lr_scheduler.help=OneCycleLR")
    helps = [run_train_warm(f"--{name}", cwd=tmp_path) for name in ("help", *of_classes)]
    helps.append(subprocess.run(launcher, capture_output=True, text=True))
    known = set(re.findall(r"--[\w.]+", "".join(result.stdout for result in helps))) | set(OTHER_OPTIONS.split())
    launches = [block.commands for block in BLOCKS if block.fate == "parsed" and "run_sagemaker.py" in block.commands]
    texts = [*PROSE.values(), *launches]
    named = {option for text in texts for option in re.findall(r"(?<=[`\s(])--[a-z][\w.-]*\w", text)}
    assert named - known == set()


def path_with_options(folder: Path, options: str) -> str:
    """Returns a PATH on which `python` appends `options` to its command, so that training takes seconds."""
    program = executable(folder / "bin/python", f'exec {sys.executable} "$@" {options}')
    return f"{program.parent}:{os.environ['PATH']}"


def copy_project(folder: Path) -> Path:
    for name in ("app", "docker", "examples", ".venv", "Makefile", "pyproject.toml", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
def test_the_training_commands_work_as_printed(tmp_path, archive):
    copy_project(tmp_path)
    (tmp_path / ".cache").symlink_to(archive.parent)
    options = "--data.verify=false --data.val_split=10 --trainer.accelerator=cpu"
    path = path_with_options(tmp_path, f"{options} --trainer.devices=1")
    commands = [
        block("python app/train.py\n"),
        block("PYTHONPATH=. python app/train.py"),
        block("--ckpt_path=last"),
        block("--config=logs/tensorboard/tutorial/version_0/config.yaml"),
        block("--lr_scheduler=OneCycleLR"),
        block("--config examples/fast/fast.yaml"),
    ]
    for command in commands:
        assert re.search(r"^test accuracy +[\d.]+% on CIFAR-10$", run_block(command, tmp_path, PATH=path), re.MULTILINE)
    path = path_with_options(tmp_path, options)
    assert "training in 2 processes" in run_block(block("--trainer.devices=2 --data"), tmp_path, PATH=path)


@pytest.mark.slow
def test_make_train_prints_what_the_readme_shows_and_learns(tmp_path):
    (shown,) = [each.output for each in BLOCKS if each.commands == block("make train")]
    output = run_block(block("make train"), copy_project(tmp_path))
    same_lines(shown, output)
    accuracies = [line["val_acc"] for line in epoch_lines(output)]
    assert len(accuracies) == 3 and all(later > earlier - 0.01 for earlier, later in pairwise(accuracies))
    assert float(re.search(r"test accuracy +([\d.]+)%", output)[1]) >= 95


@pytest.mark.slow
def test_a_killed_run_resumes_as_the_readme_shows(tmp_path):
    (shown,) = [each.output for each in BLOCKS if each.commands == block("kill -9 $!")]
    same_lines(shown, run_block(block("kill -9 $!"), copy_project(tmp_path)))


def test_the_exported_model_classifies_a_photo_as_the_readme_shows(tmp_path):
    torch.save(resnet18(num_classes=10).state_dict(), tmp_path / "model.pt")
    write_jpeg(torch.zeros(3, 480, 640, dtype=torch.uint8), str(tmp_path / "photo.jpg"))
    command = [sys.executable, "-c", block("decode_image(")]
    output = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert output.strip() in ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_make_help_lists_every_command():
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", output)) == targets
