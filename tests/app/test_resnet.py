"""ResNet-18: faster on small images, and otherwise torchvision's."""

import pytest
import torch
import torchvision
from resnet import ResNet18
from torch.nn.functional import cross_entropy


@pytest.mark.parametrize("size", [32, 64])
def test_outputs_and_gradients_are_those_of_torchvision(size):
    stock = torchvision.models.resnet18(num_classes=10).double()
    ours = ResNet18().network.double()
    ours.load_state_dict(stock.state_dict())  # so that the names and shapes of the weights are the same
    images = torch.rand(4, 3, size, size, dtype=torch.double)
    results = []
    for network in (stock, ours):
        outputs = network(images)
        cross_entropy(outputs, torch.arange(4)).backward()
        results.append([outputs, *(weight.grad for weight in network.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
