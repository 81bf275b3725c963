"""Tests of the fast recipe: its parts, a whole run, and a resumed run."""

import re
from pathlib import Path

import pytest
import torch
from fast import PATCH_SIZE, FastCIFAR10DataModule, FastNet, orthogonalize, whitening_filters
from runs.interrupted import assert_same_final_state, interrupt, train
from runs.programs import ROOT
from runs.results import epoch_lines, exported_weights
from synthetic import SyntheticCIFAR10DataModule

RECIPE = (f"--config={ROOT}/examples/fast/fast.yaml", "--data=synthetic.SyntheticCIFAR10DataModule")
RECIPE += ("--data.num_train_images=600", "--data.num_test_images=100", "--data.batch_size=60")
RECIPE += ("--trainer.max_epochs=3", "--checkpoint.dirpath=logs/checkpoints", "--resume.every_n_steps=4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """Trains for three epochs and returns the folder and the output of the run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(*RECIPE, cwd=folder).stdout


def test_the_recipe_trains_on_all_images_and_tests_once(finished):
    _, stdout = finished
    assert "60 samples per step, from step 0\n" in stdout
    lines = epoch_lines(stdout)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert all(set(line) == {"epoch", "step", "train_loss", "train_acc", "images_per_second"} for line in lines)
    assert float(re.search(r"^test accuracy +([\d.]+)%", stdout, re.MULTILINE)[1]) > 40  # of ten classes


def test_the_exported_weights_load_into_a_new_network(finished):
    folder, _ = finished
    FastNet().network.load_state_dict(exported_weights(folder))


def test_an_interrupted_run_of_the_recipe_resumes_bit_exactly(finished, tmp_path):
    interrupt(*RECIPE, cwd=tmp_path, step=17)
    assert "resuming from" in train(*RECIPE, cwd=tmp_path).stdout
    assert_same_final_state(finished[0], tmp_path)


def test_whitening_decorrelates_the_pixels_of_a_patch():
    pixels = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(pixels, scale_factor=4, mode="bilinear")
    filters = whitening_filters(images)
    assert filters.shape == (24, 3, PATCH_SIZE, PATCH_SIZE) and torch.equal(filters[:12], -filters[12:])
    outputs = torch.nn.functional.conv2d(images, filters[:12]).movedim(1, -1).flatten(0, 2)
    products = outputs.T @ outputs / len(outputs)
    torch.testing.assert_close(products - products.diag().diag(), torch.zeros(12, 12), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_singular_values_of_an_orthogonalized_update_are_close_to_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.4


def test_logits_at_test_time_are_the_mean_over_shifted_and_mirrored_images():
    network, images = FastNet().eval(), torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = FastNet(tta=False).eval()
    alone.load_state_dict(network.state_dict())
    frame = torch.nn.functional.pad(images, (1, 1, 1, 1), "reflect")
    views = [images, images, frame[..., :32, :32], frame[..., 2:, 2:]]
    expected = torch.stack([alone(each) for view in views for each in (view, view.flip(-1))]).mean(dim=0)
    torch.testing.assert_close(network(images), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(network(images), alone(images), atol=1e-6)


def test_alternate_flips_mirror_each_image_every_other_epoch():
    class Alternating(FastCIFAR10DataModule, SyntheticCIFAR10DataModule):
        pass

    options = {"num_train_images": 100, "num_test_images": 10, "val_split": 0, "padding": 0}
    module, everything = Alternating(**options), torch.arange(100)
    module.setup()
    first, second, third = (module.gather("train", everything, epoch)[0] for epoch in range(3))
    assert torch.equal(first.flip(-1), second) and torch.equal(first, third)
    plain = SyntheticCIFAR10DataModule(**options | {"augment": False})
    plain.setup()
    is_mirrored = (first != plain.gather("train", everything)[0]).flatten(1).any(dim=1)
    assert 30 < is_mirrored.sum() < 70
