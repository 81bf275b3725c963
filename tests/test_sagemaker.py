"""Training on SageMaker's hosts, which its real toolkit plays on this machine, without Docker."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SYNTHETIC, TINY
from toolkit import Host, free_port

HYPERPARAMETERS = dict(option.removeprefix("--").split("=") for option in TINY + SYNTHETIC) | {"data.batch_size": "20"}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable]:
    """Starts hosts that train together: `job(2, {"trainer.max_epochs": "1"})`."""
    hosts: list[Host] = []

    def start(num_hosts: int, hyperparameters: dict[str, str], start_only: int | None = None, **kwargs) -> list[Host]:
        names = [f"127.0.0.{number}" for number in range(1, num_hosts + 1)]
        for name in names[:start_only]:
            host = Host(tmp_path / name, name, names, HYPERPARAMETERS | hyperparameters, **kwargs)
            hosts.append(host)
        port = free_port()
        for host in hosts:
            host.start(MASTER_PORT=port)
        return hosts

    yield start
    for host in hosts:
        host.kill()


def test_two_hosts_with_two_processes_each_train_one_model(job):
    hosts = job(2, {"trainer.devices": "2"})
    assert [host.wait() for host in hosts] == [0, 0], hosts[0].log + hosts[1].log
    print(hosts[0].log)
