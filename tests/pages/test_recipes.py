"""The commands of docs/recipes.md: what the shell makes of them, and the requests that they would send."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from runs.interrupted import interrupt, train
from runs.launches import offline, preview
from runs.programs import ROOT, SYNTHETIC, TINY, executable
from runs.tutorial import block, run_block

from launcher.checks import check_rules

pytestmark = pytest.mark.usefixtures(offline.__name__)
JOB = block("JOB=")
ENVIRONMENT = {
    "SAGEMAKER_ROLE": "arn:aws:iam::123456789012:role/sagemaker",
    "S3_PATH": "s3://my-bucket",
    "REGISTRY": "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
}


def requests(commands: str, folder: Path) -> list[dict[str, Any]]:
    """Returns the requests of the launches in a block, each checked as before an upload."""
    (folder / "docker").symlink_to(ROOT / "docker")
    log = "import json, sys; print(json.dumps(sys.argv[2:]), file=open('launches', 'a'))"
    program = executable(folder / "bin/python", f'exec {sys.executable} -c "{log}" "$@"')
    run_block(f"{JOB}\n{commands}", folder, PATH=f"{program.parent}:{os.environ['PATH']}", **ENVIRONMENT)
    launches = [json.loads(line) for line in (folder / "launches").read_text().splitlines()]
    found = [preview(*options, "--region=eu-central-1") for options in launches]
    for request in found:
        check_rules(request)
    return found


@pytest.mark.parametrize(
    "commands, expected",
    [
        (block("NCCL_DEBUG=INFO"), {"NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "DETAIL"}),
        (block("keep_alive_period_in_seconds"), {"KeepAlivePeriodInSeconds": 1800}),
        (block("subnets="), {"Subnets": ["subnet-0123456789abcdef0"], "SecurityGroupIds": ["sg-0123456789abcdef0"]}),
        (block("trainer.logger=CSVLogger"), {"trainer.logger": '"CSVLogger"'}),
    ],
    ids=["NCCL", "warm pool", "VPC", "CSV"],
)
def test_a_recipe_sends_what_it_promises(tmp_path, commands, expected):
    (request,) = requests(commands, tmp_path)
    fields: dict[str, Any] = {}
    for name in ("Environment", "ResourceConfig", "VpcConfig", "HyperParameters"):
        fields |= request.get(name, {})
    assert expected.items() <= fields.items()


def test_a_sweep_starts_a_job_per_value(tmp_path):
    jobs = requests(block("for lr in"), tmp_path)
    rates = {job["TrainingJobName"]: job["HyperParameters"]["optimizer.lr"] for job in jobs}
    assert rates == {"lr-0-1": '"0.1"', "lr-0-01": '"0.01"', "lr-0-001": '"0.001"'}


@pytest.mark.slow
def test_a_resumed_run_with_csv_logger_continues_in_a_second_file(tmp_path):
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    logger += ("--trainer.logger.flush_logs_every_n_steps=1", "--resume.every_n_steps=5")
    interrupt(*TINY, *SYNTHETIC, *logger, cwd=tmp_path, step=23)
    train(*TINY, *SYNTHETIC, *logger, cwd=tmp_path)
    steps = []
    for path in sorted((tmp_path / "csv/lightning_logs").glob("version_*/metrics.csv")):
        with open(path) as file:
            steps.append([int(row["step"]) for row in csv.DictReader(file)])
    first, second = steps
    assert first[0] == 0 and first[-1] == 22
    assert second[0] == 21 and second[-1] == 32
