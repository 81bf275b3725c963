"""TensorBoard's log in S3 while a run goes on: a thread copies there what is new in a temporary folder."""

import atexit
import os
import re
import shutil
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from jsonargparse.typing import PositiveInt
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from sagemaker_env import job_name

from runtime.errors import warn
from runtime.files import write_atomically
from runtime.private_lightning import continue_version

LAST_SECONDS = 30  # at the end of a run, for what is not in S3 yet


class S3TensorBoardLogger(TensorBoardLogger):
    """A TensorBoardLogger that can also log to S3, where `check` must come before a run and `finish` may come after.

    Args:
        save_dir: Folder, or address in S3 like s3://bucket/prefix, of the logs of all runs. The bucket must exist.
        flush_secs: Seconds between writes to disk. S3 has the new log once in this time at most, and at the end.
        **kwargs: As for TensorBoardLogger.
    """

    def __init__(self, save_dir: str, flush_secs: PositiveInt = 120, **kwargs: Any):
        self._url = save_dir.rstrip("/") if save_dir.startswith("s3://") else None
        if self._url:
            self._bucket, _, self._key = self._url.removeprefix("s3://").partition("/")
            save_dir = os.path.join(tempfile.gettempdir(), f"tensorboard-{uuid4()}")  # which rank 0 alone will make
        super().__init__(save_dir, flush_secs=flush_secs, **kwargs)
        self._flush_secs, self._thread, self._next_step = flush_secs, None, 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._next_step = max(self._next_step, (step or 0) + 1)
        super().log_metrics(metrics, step)

    def state_dict(self) -> dict[str, Any]:
        # Neither a killed host nor S3 may have all of the log.
        self.experiment.flush()
        files = {path.name: path.read_bytes() for path in Path(self.log_dir).glob("events.*")}
        return {"version": self.version, "files": files, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with that log, in its folder unless a person has named a version or another run's log is there."""
        version = state["version"] if self._version in (None, job_name()) else self._version
        continue_version(self, version, state["next_step"])
        there = {path.name for path in Path(self.log_dir).glob("events.*")}
        if there and not there & state["files"].keys():
            continue_version(self, None, state["next_step"])
        for name, content in state["files"].items():
            path = Path(self.log_dir, name)
            if not path.exists() or path.stat().st_size < len(content):
                write_atomically(content, path)
        self._next_step = state["next_step"]

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if status == "failed":
            self.finish()

    def check(self) -> None:
        """Raises OSError if the log cannot be in S3; finds the next free version there, unless one was given."""
        if not self._url:
            return
        query = {"Bucket": self._bucket, "Prefix": os.path.join(self._key, self.name, ""), "Delimiter": "/"}
        try:
            pages = client().get_paginator("list_objects_v2").paginate(**query)
            folders = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", [])]
        except (BotoCoreError, ClientError) as error:
            missing = "there is no such bucket; make it, or log to a folder"
            reason = missing if "NoSuchBucket" in str(error) else error
            raise OSError(f"--logger.save_dir={self._url}: {reason}") from error
        if self._version is None:
            numbers = [int(version[1]) for folder in folders if (version := re.search(r"version_(\d+)/$", folder))]
            self._version = job_name() or max(numbers, default=-1) + 1  # a restart of the job goes on there

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        experiment = super().experiment
        if self._url and not self._thread:
            self._stop, self._error = threading.Event(), None
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()
            atexit.register(self.finish)
        return experiment

    def _copy(self) -> None:
        """Copies all files that have changed, every `flush_secs`, and at the end until that has succeeded."""
        copied, warned = {}, False
        while True:
            last = self._stop.is_set()
            try:
                for path in filter(Path.is_file, Path(self.save_dir).rglob("*")):
                    state = path.stat().st_size, path.stat().st_mtime_ns  # an event is there within milliseconds
                    if copied.get(path) != state:
                        key = os.path.join(self._key, path.relative_to(self.save_dir))
                        client().put_object(Bucket=self._bucket, Key=key, Body=path.read_bytes())
                        copied[path] = state
                self._error = None
                if last:
                    return
            except Exception as error:  # whatever it is, the training goes on
                self._error = error
                if not (warned or self._stop.is_set()):
                    warn(f"training goes on, but its log cannot be written to {self._url} for now: {error}")
                    warned = True
            if last:
                time.sleep(1)
            else:
                self._stop.wait(self._flush_secs)

    def finish(self) -> str:
        """Where the log is: in S3, if that works within 30 seconds, or else a warning says how to get it there."""
        if not self._thread:
            return self.log_dir
        atexit.unregister(self.finish)
        self._experiment.flush()
        self._stop.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            reason = self._error or f"{LAST_SECONDS} seconds were too short"
            warn(f"not all of the log is in S3 ({reason}); what does it: aws s3 sync {self.save_dir} {self._url}")
        else:
            shutil.rmtree(self.save_dir, ignore_errors=True)
        return self.log_dir.replace(self.save_dir, self._url)


@cache  # making one takes 0.2 s
def client() -> Any:
    config = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard"})
    # SageMaker names its containers' region in this variable, which boto3 does not read.
    return boto3.client("s3", region_name=os.environ.get("AWS_REGION"), config=config)
