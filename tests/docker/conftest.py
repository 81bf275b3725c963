"""Fixtures: the project for its scripts, and, for tests that ask for them, the image and a checkout for containers."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs.archives import cifar10_files, write_archive
from runs.containers import PERSON, docker
from runs.programs import ENVIRONMENT, ROOT, copy_project
from runs.scripts import Project
from runs.tutorial import block


@pytest.fixture
def project(tmp_path: Path, aws) -> Project:
    """Copies what the scripts use to a folder of its own; moto simulates AWS."""
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project", aws.environment)


@pytest.fixture(scope="session")
def image() -> None:
    """Builds the image with the tutorial's own command."""
    subprocess.run(["bash", "-c", block("docker/build-image.sh").rstrip() + " --quiet"], cwd=ROOT, check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copies the project, with a small archive in .cache and the tests' network, for a user who is not root."""
    copy_project(tmp_path, "app", "launcher", "run_sagemaker.py")
    for file in ("tests/projects/tiny.py", "examples/synthetic/synthetic.py"):
        shutil.copy(ROOT / file, tmp_path / "app")
    (tmp_path / ".cache").mkdir()
    write_archive(tmp_path / ".cache", cifar10_files())
    if os.getuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, PERSON, PERSON)
        for folder in (tmp_path.parent, tmp_path.parent.parent):  # pytest creates them for root only
            folder.chmod(0o711)
    return tmp_path


@pytest.fixture
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Checks that no container, network, temporary folder or file of a different user is left."""
    networks = docker("network", "ls", "--quiet")
    yield
    assert docker("ps", "--all", "--quiet") == ""
    assert docker("network", "ls", "--quiet") == networks
    for folder in (Path("/tmp"), Path(ENVIRONMENT["TMPDIR"])):  # the owner of the checkout may not use the second
        assert not list(folder.glob("sagemaker-*"))
    for folder in (tmp_path / "app", tmp_path / "output"):
        assert {path.stat().st_uid for path in folder.rglob("*")} <= {tmp_path.stat().st_uid}
