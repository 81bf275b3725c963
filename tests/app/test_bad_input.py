"""Tests of bad input: one line on stderr that states what to do, exit code 2, and no files written."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from runs.programs import ENVIRONMENT, SYNTHETIC, TINY, run_train, run_train_warm

NO_SERVER = "--data.url=http://127.0.0.1:9/cifar-10-python.tar.gz"


def error_line(*options: str, cwd: Path) -> str:
    """Returns the only line on stderr, after checking that nothing was written."""
    before = sorted(cwd.rglob("*"))
    result = run_train_warm(*options, cwd=cwd, code=2)
    assert sorted(cwd.rglob("*")) == before
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("train.py: error: ")
    return line.removeprefix("train.py: error: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.max_epoch=3"], ["--trainer.max_epoch;", "did you mean --trainer.max_epochs?"]),
        (["--logger.nam=x"], ["did you mean --logger.name?"]),
        (["--data.batch_sizes=3"], ["unknown option --data.batch_sizes; did you mean --data.batch_size?"]),
        (["--data=synthetic.SyntheticCIFAR10DataModule", "--data.num_images=3"], ["unknown option --data.num_images;"]),
        (["--optimizer.lrr=3"], ["unknown option --optimizer.lrr; did you mean --optimizer.lr?"]),
        (["--nothing.like.it=3"], ["unknown option --nothing.like.it", "--help"]),
        (["fit"], ["unknown option fit"]),
        (["--trainer.max_epochs=many"], ["--trainer.max_epochs=many", "int or null"]),
        (["--data.batch_size=1.5"], ["--data.batch_size: ", "int", "1.5"]),
        (["--data.verify=perhaps"], ["--data.verify=perhaps", "bool"]),
        (["--optimizer.lr=fast"], ["--optimizer.lr=fast", "float"]),
        (["--trainer.precision=17"], ["--trainer.precision=17", "'bf16-mixed'"]),
        (["--data=CIFAR11"], ["--data=CIFAR11", "import path"]),
        (["--model=ResNet19"], ["--model=ResNet19", "import path"]),
        (["--optimizer=Adamm"], ["--optimizer=Adamm", "import path"]),
        (["--config=missing.yaml"], ["missing.yaml", "does not exist"]),
        (["--trainer.accelerator=abacus"], ["abacus", "cpu"]),
        (
            ["--trainer.accelerator=cpu", "--trainer.devices=-1"],
            ["devices=-1: -1 selects all GPUs; train", "--trainer.devices=1"],
        ),
        pytest.param(
            ["--trainer.accelerator=gpu", "--trainer.devices=-1"],
            ["finds no GPU", "--trainer.accelerator=cpu --trainer.devices=1"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        (
            [*SYNTHETIC, "--trainer.strategy={class_path: pytorch_lightning.strategies.ModelParallelStrategy}"],
            ["--trainer.strategy: ModelParallelStrategy is not supported; use ddp"],
        ),
        (["--data.batch_size=0"], ["--data.batch_size: ", " 0 ", "v>0"]),
        (["--data.val_split=-1"], ["--data.val_split: ", " -1 ", "v>=0"]),
        ([*SYNTHETIC, "--data.val_split=601"], ["val_split=601", "less than"]),
        (["--ckpt_path=last"], ["--ckpt_path=last", "no checkpoint to resume from"]),
        (["--ckpt_path=gone.ckpt"], ["gone.ckpt"]),
        (["--logger.save_dir=s3://bucket/logs"], ["s3://bucket/logs: expected a local folder"]),
        ([NO_SERVER], [".cache/cifar-10-python.tar.gz is missing", "--data.data_dir or --data.url"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith(("-", "fit")) else "",
)
def test_an_invalid_option_is_reported_with_the_expected_values(tmp_path, options, words):
    line = error_line(*options, cwd=tmp_path)
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize("content", ["a: [", "just words", "trainer: {max_epoch: 3}"])
def test_an_invalid_config_file_is_rejected(tmp_path, content):
    (tmp_path / "wrong.yaml").write_text(content)
    line = error_line("--config=wrong.yaml", cwd=tmp_path)
    assert "wrong.yaml" in line or "max_epochs" in line


def test_a_data_directory_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in error_line(f"--data.data_dir={tmp_path}/file/data", cwd=tmp_path)


def serve(directory: Path) -> str:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"--data.url=http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"


def test_a_downloaded_archive_with_a_wrong_checksum_is_not_kept(tmp_path, archive):
    (tmp_path / "run").mkdir()
    result = run_train_warm(serve(archive.parent), "--data.data_dir=.", cwd=tmp_path / "run", code=2)
    announcement, line = result.stderr.splitlines()
    assert announcement.startswith("downloading")
    assert "MD5" in line
    assert list((tmp_path / "run").iterdir()) == []


def test_a_missing_archive_is_downloaded_once_and_kept(tmp_path, archive):
    options = (*TINY, "--data.val_split=10", "--data.verify=false")
    assert "downloading" in run_train_warm(serve(archive.parent), *options, cwd=tmp_path).stderr
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == [archive.name]
    assert "downloading" not in run_train_warm(NO_SERVER, *options, cwd=tmp_path).stderr


@pytest.mark.parametrize("num_bytes", [100, -100])
def test_a_truncated_archive_is_rejected_even_without_verification(archive, num_bytes):
    archive.write_bytes(archive.read_bytes()[:num_bytes])
    line = error_line("--data.data_dir=.", cwd=archive.parent)
    assert "MD5" in line and "--data.verify=false" in line
    line = error_line("--data.data_dir=.", "--data.verify=false", cwd=archive.parent)
    assert "not a CIFAR-10 archive" in line


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build a driver with")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a real driver")
@pytest.mark.skipif(not torch.version.cuda, reason="this torch is built without CUDA")
def test_an_outdated_driver_is_reported_with_its_version(tmp_path_factory, tmp_path):
    driver = tmp_path_factory.mktemp("driver")
    (driver / "cuda.c").write_text(
        "int cuDriverGetVersion(int *version) { *version = 11040; return 0; } int cuInit(unsigned flags) { return 0; }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", driver / "libcuda.so.1", driver / "cuda.c"], check=True)
    environment = ENVIRONMENT | {"LD_LIBRARY_PATH": str(driver)}
    warning, *_, line = run_train(
        "--trainer.accelerator=gpu", cwd=tmp_path, env=environment, code=2
    ).stderr.splitlines()
    assert "too old (found version 11040)" in warning
    assert f"{torch.version.cuda=}" in line


@pytest.mark.parametrize("option", ["--logger.save_dir", "--checkpoint.dirpath", "--model_dir"])
def test_a_read_only_output_directory_is_reported(tmp_path, option):
    # Root may write to any folder except the kernel's.
    forbidden = "/sys" if os.geteuid() == 0 else str(tmp_path / "forbidden")
    Path(forbidden).mkdir(exist_ok=True, mode=0o555)
    assert forbidden in error_line(*SYNTHETIC, f"{option}={forbidden}/x", cwd=tmp_path)


def test_a_full_disk_is_reported_in_one_line(small_disk):
    options = (*SYNTHETIC, *TINY, "--model=ResNet18", "--trainer.limit_train_batches=1")
    result = run_train_warm(*options, cwd=small_disk, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("train.py: error:")]
    assert "No space left on device" in line
    assert "Traceback" not in result.stderr
