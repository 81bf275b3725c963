"""Dependencies: the groups of pyproject.toml, and the locks that `make lock` writes from them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from runs.programs import ROOT

LAPTOP = ("requirements.txt",)
IMAGE = tuple(f"docker/requirements/{part}.txt" for part in ("others", "setuptools", "sources", "torch"))
LOCKS = {"test": LAPTOP, "image": IMAGE}


def read_lock(files: tuple[str, ...]) -> dict[str, tuple[str, list[str]]]:
    """Returns the version of each package, with its marker if it has one, and its checksums."""
    text = "".join((ROOT / file).read_text() for file in files)
    entries = re.findall(r"^([a-z0-9-]+)(?:\[\w+\])?==(.+?) \\\n((?: +--hash=.*\n)+)", text, re.M)
    return {package: (version, re.findall(r"sha256:[0-9a-f]{64}\b", hashes)) for package, version, hashes in entries}


def requested(group: str) -> dict[str, str]:
    """Returns the versions of the packages in a group of pyproject.toml and in the groups that it includes."""
    versions = {}
    for item in tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]:
        if isinstance(item, dict):
            versions |= requested(item["include-group"])
        else:
            package, version = re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?==([\w.]+)", item).groups()
            versions[package] = version
    return versions


@pytest.mark.parametrize("group", LOCKS)
def test_every_direct_dependency_is_locked_with_its_version(group):
    locked = read_lock(LOCKS[group])
    assert requested(group).items() <= {package: version for package, (version, _) in locked.items()}.items()


@pytest.mark.parametrize("file", [*LAPTOP, *IMAGE])
def test_every_locked_package_has_a_version_and_checksums_and_no_index(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.strip().startswith(("#", "--hash="))]
    locked = read_lock((file,))
    assert len(locked) == len(lines) and all(hashes for _, hashes in locked.values())


def test_every_package_of_the_image_is_in_one_part_of_the_lock_only():
    parts = [set(read_lock((file,))) for file in IMAGE]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_the_torch_part_has_torch_and_its_dependencies_and_no_comments_that_change():
    text = (ROOT / "docker/requirements/torch.txt").read_text()
    assert {"torch", "torchvision", "triton", "nvidia-nccl-cu12"} <= read_lock((IMAGE[-1],)).keys()
    assert "# via" not in text


def test_the_image_has_the_laptops_versions_and_no_laptop_only_packages():
    laptop, image = map(read_lock, LOCKS.values())
    assert {package: laptop[package] for package in laptop.keys() & image.keys()}.items() <= image.items()
    assert not {"sagemaker", "moto", "pytest"} & image.keys()


def test_the_conda_environment_installs_the_laptops_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert environment["name"] == "sagemaker-tutorial"
    assert packages == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.txt"]}


def test_github_runs_make_check_test_with_actions_pinned_to_commits():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make check test"]
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]) for step in job["steps"] if "uses" in step)


class Project:
    """A project with the tutorial's Makefile. Its only index is a folder with a package `photos`."""

    def __init__(self, folder: Path):
        self.folder = folder
        for path in ("index", "docker/requirements", ".venv/bin"):
            (folder / path).mkdir(parents=True)
        self.make_wheel("")
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copy(ROOT / "docker/requirements/split.awk", folder / "docker/requirements")
        groups = 'laptop = ["photos==1.0"]\ntest = ["photos==1.0"]\nimage = ["photos==1.0"]\n'
        (folder / "pyproject.toml").write_text(f"[dependency-groups]\n{groups}")
        (folder / "requirements.txt").touch()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
        (folder / ".venv/bin/uv").symlink_to(Path(sys.executable).with_name("uv"))

    def make_wheel(self, code: str) -> None:
        with zipfile.ZipFile(self.folder / "index/photos-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("photos.py", code)
            wheel.writestr("photos-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: photos\nVersion: 1.0\n")
            wheel.writestr(
                "photos-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr("photos-1.0.dist-info/RECORD", "")

    def make(self, target: str) -> subprocess.CompletedProcess:
        index = {"UV_NO_INDEX": "1", "UV_FIND_LINKS": f"{self.folder}/index", "UV_NO_CACHE": "1"}
        command = ["make", "--old-file=.venv/bin/uv", target]
        return subprocess.run(command, cwd=self.folder, env=os.environ | index, capture_output=True, text=True)


def test_an_added_package_is_locked_and_installed(tmp_path):
    project = Project(tmp_path)
    locking = project.make("lock")
    assert locking.returncode == 0, locking.stderr
    for file in ("requirements.txt", "docker/requirements/others.txt"):
        assert re.search(r"^photos==1.0 \\\n    --hash=sha256:[0-9a-f]{64}\n", (tmp_path / file).read_text(), re.M)
    installing = project.make(".venv/installed")
    assert installing.returncode == 0, installing.stderr
    assert list(tmp_path.glob(".venv/lib/python3.*/site-packages/photos.py"))


def test_a_package_with_a_wrong_checksum_is_not_installed(tmp_path):
    project = Project(tmp_path)
    project.make("lock")
    project.make_wheel("steal_credentials()")
    installing = project.make(".venv/installed")
    assert installing.returncode == 2 and "Hash mismatch for `photos==1.0`" in installing.stderr
    assert not list(tmp_path.glob(".venv/lib/python3.*/site-packages/photos.py"))
