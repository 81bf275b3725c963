"""Measures training steps of resnet.ResNet18, compared with torchvision's own ResNet-18."""

from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from measuring import DEVICES, Clock, Result, interleave, seconds_per_step
from resnet import ResNet18
from torch import nn
from torch.nn.functional import cross_entropy

NUM_STEPS, NUM_ROUNDS = 8, 5
TARGETS = {32: 1.8, 128: 1.6}  # by batch size, on a CPU with AVX2 but without AVX-512


def time_network(make_network: type[nn.Module], batch_size: int, device: str) -> list[float]:
    target = torch.device("cuda" if device == "gpu" else device)
    network, clock = make_network().to(target).train(), Clock()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)  # as in train.yaml
    images = torch.randn(batch_size, 3, 32, 32, device=target)
    labels = torch.randint(10, (batch_size,), device=target)
    clock.tick(device)
    for _ in range(NUM_STEPS + 5):
        loss = cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick(device)
    return clock.seconds()


def measure_network() -> Iterator[Result]:
    for device in DEVICES:
        has_target = device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        for batch_size, target in TARGETS.items():
            networks = {"torchvision": partial(torchvision.models.resnet18, num_classes=10), "ours": ResNet18}
            alternatives = {name: partial(time_network, make, batch_size, device) for name, make in networks.items()}
            rounds = interleave(alternatives, NUM_ROUNDS)
            seconds = {name: seconds_per_step(each) for name, each in rounds.items()}
            yield Result(
                f"ResNet-18, batch {batch_size}, {device}: speed compared with torchvision's",
                seconds["torchvision"] / seconds["ours"],
                least=target if has_target else None,
                details={f"{name} ms": value * 1000 for name, value in seconds.items()},
            )
