"""Tests of the pictures that examples/pictures adds to TensorBoard."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from runs.programs import SYNTHETIC, TINY, run_train, run_train_warm
from runs.tutorial import block
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import ImageReadMode, decode_image

GREEN, RED = (0, 128, 0), (255, 0, 0)
LOG = Path("logs/tensorboard/tutorial/version_0")
WITH_PICTURES = (*TINY, *SYNTHETIC, block("pictures.TestPictures").split()[-1])


def confusion_matrix(log_dir: Path) -> np.ndarray:
    """Reads the confusion matrix from a Markdown table; its first column and first row are the classes."""
    event = EventAccumulator(str(log_dir)).Reload().Tensors("confusion_matrix/text_summary")[-1]
    header, _, *rows = event.tensor_proto.string_val[0].decode().splitlines()
    assert [row.split("|")[1] for row in rows] == header.split("|")[2:-1]
    return np.array([[int(number) for number in row.split("|")[2:-1]] for row in rows])


def colours(log_dir: Path) -> list[tuple[int, int, int]]:
    """Reads the RGB colours of the frames from an image grid with a spacing of 130 pixels; empty cells are black."""
    event = EventAccumulator(str(log_dir)).Reload().Images("test_images")[-1]
    data = torch.frombuffer(bytearray(event.encoded_image_string), dtype=torch.uint8)
    corners = decode_image(data, ImageReadMode.RGB)[:, 2::130, 2::130].flatten(1).T.tolist()
    return [tuple(corner) for corner in corners if any(corner)]


def test_confusion_matrix_and_image_frames_agree_with_the_test_accuracy(tmp_path):
    output = run_train_warm(*WITH_PICTURES, "--trainer.callbacks.num_images=101", cwd=tmp_path).stdout
    matrix, frames = confusion_matrix(tmp_path / LOG), colours(tmp_path / LOG)
    assert matrix.shape == (10, 10) and matrix.sum() == len(frames) == 101
    assert np.trace(matrix) / 101 == pytest.approx(float(re.search(r"test_acc=(\S+)", output)[1]), abs=1e-5)
    assert 0 < frames.count(GREEN) == np.trace(matrix) and frames.count(RED) == 101 - np.trace(matrix) > 0


def test_the_requested_number_of_images_is_collected_from_several_batches(tmp_path):
    options = ("--data.batch_size=3", "--trainer.callbacks.num_images=5")
    run_train_warm(*WITH_PICTURES, *options, cwd=tmp_path)
    assert len(colours(tmp_path / LOG)) == 5


@pytest.mark.slow
def test_two_processes_share_one_confusion_matrix(tmp_path):
    run_train(*WITH_PICTURES, "--trainer.devices=2", cwd=tmp_path)
    assert confusion_matrix(tmp_path / LOG).sum() == 101
