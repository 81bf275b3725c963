"""Fixtures: uninterrupted runs, with which tests compare resumed ones."""

from pathlib import Path

import pytest
from runs.interrupted import CHECKPOINTED_RUN, GLYPHS, THREE_EPOCHS, train


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    """Trains a tiny network and returns the folder of the run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(*CHECKPOINTED_RUN, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted_glyphs(tmp_path_factory) -> tuple[Path, str]:
    """Trains the custom project GlyphNet and returns the folder and the output of the run."""
    folder = tmp_path_factory.mktemp("uninterrupted-glyphs")
    return folder, train(*GLYPHS, *THREE_EPOCHS, cwd=folder).stdout
