"""Reads the output and the files of a run."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def epoch_lines(stdout: str) -> list[dict[str, float]]:
    """Returns the metrics of each line that begins with `epoch=`."""
    lines = [line for line in stdout.splitlines() if line.startswith("epoch=")]
    return [{key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", line)} for line in lines]


def scalars(log_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the (step, value) pairs of each scalar in a TensorBoard log."""
    events = EventAccumulator(str(log_dir)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def exported_weights(folder: Path) -> dict[str, Any]:
    """Returns the weights that a run in this folder has exported."""
    return torch.load(folder / "logs/checkpoints/model.pt", weights_only=True)


def printed_weights(log: str) -> list[tuple[int, int, str]]:
    """Returns rank, world size and checksum of the weights of each process, as PrintWeights prints them."""
    found = re.findall(r"rank=(\d) world_size=(\d) weights=([0-9a-f]{64})", log)
    return sorted((int(rank), int(world_size), checksum) for rank, world_size, checksum in found)


def assert_all_ranks_have_one_model(log: str, world_size: int) -> None:
    """Asserts that each of `world_size` processes has printed its weights, and all of them the same."""
    ranks = printed_weights(log)
    assert [rank[:2] for rank in ranks] == [(rank, world_size) for rank in range(world_size)], log
    assert len({checksum for _, _, checksum in ranks}) == 1


def samples(directory: Path, stage: str, epoch: int) -> list[int]:
    """Returns the sorted samples that all ranks together have recorded in an epoch."""
    lines = [line.split() for path in directory.glob(f"{stage}-*") for line in path.read_text().splitlines()]
    return sorted(int(index) for of_epoch, index in lines if int(of_epoch) == epoch)


def as_bytes(value: Any) -> Any:
    """Replaces tensors in nested dicts and lists by their bytes, so that == compares them."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bytes(item) for key, item in value.items()}
    return [as_bytes(item) for item in value] if isinstance(value, list | tuple) else value


def last_checkpoint(directory: Path) -> Path:
    """Returns the newest checkpoint to resume from."""
    return max(directory.glob("last-step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


def newest_complete_step(directory: Path) -> int:
    """Returns the step of the newest checkpoint that is complete, as is its best network; 0 if there is none."""
    steps = [int(path.stem.split("=")[1]) for path in directory.glob("last-step=*.ckpt") if is_complete(path)]
    return max(steps, default=0)


def is_complete(path: Path) -> bool:
    """Returns whether a checkpoint is undamaged, as is its best network."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():
                return False
    except (zipfile.BadZipFile, FileNotFoundError):
        return False
    states = torch.load(path, weights_only=False)["callbacks"].values()
    best = [Path(state.get("best_model_path", "")).name for state in states]
    return all(is_complete(path.with_name(name)) for name in best if name and name != path.name)
