"""How failures are reported: to people on stderr, to other programs in fields that no rewording changes."""

from pathlib import Path

import pytest
from runtime.errors import CoordinatedExit, one_line_errors
from sagemaker_env import PEER_LOST, STOPPED
from torch.distributed import DistNetworkError


@pytest.fixture
def failure_file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path))
    return tmp_path / "failure"


def failed(error: BaseException) -> int:
    """Returns the exit code of a program that raises an exception."""
    with pytest.raises(SystemExit) as found, one_line_errors():
        raise error
    return found.value.code


@pytest.mark.parametrize(
    "error, tag, code",
    [
        (DistNetworkError("any words"), PEER_LOST, 1),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] any words"), PEER_LOST, 1),
        (CoordinatedExit("any words", 143), STOPPED, 143),
    ],
)
def test_the_failure_file_begins_with_a_tag_for_other_programs(failure_file, error, tag, code):
    assert failed(error) == code
    assert failure_file.read_text().startswith(f"{tag}: train.py: error: ")


def test_a_failure_of_its_own_has_no_tag(failure_file):
    assert failed(CoordinatedExit("any words", 1)) == 1
    assert failure_file.read_text() == "train.py: error: any words"
