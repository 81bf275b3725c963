"""TensorBoard's log, in a folder or in S3, where a thread copies what is new while a run goes on."""

import atexit
import os
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
    """A TensorBoardLogger that can also log to S3.

    Args:
        save_dir: Folder, or address in S3 like s3://bucket/prefix, of the logs of all runs. The bucket must exist.
        flush_secs: Seconds between writes to disk. S3 has the new log once in this time at most, and at the end.
        version: Name of the run's folder; in S3 by default that of SageMaker's job, or the time.
        **kwargs: As for TensorBoardLogger.
    """

    def __init__(self, save_dir: str, flush_secs: PositiveInt = 120, version: int | str | None = None, **kwargs: Any):
        self._url, self._is_my_version = None, version is None
        if save_dir.startswith("s3://"):
            self._url = save_dir.rstrip("/")
            save_dir = os.path.join(tempfile.gettempdir(), f"tensorboard-{uuid4()}")  # which rank 0 alone will make
            version = version or job_name() or time.strftime("%Y-%m-%d-%H-%M-%S")
        super().__init__(save_dir, version=version, flush_secs=flush_secs, **kwargs)
        self._flush_secs, self._next_step = flush_secs, 0
        self._thread, self._stop, self._error = None, threading.Event(), None

    def check(self) -> None:
        """Raises OSError if the log cannot be in S3."""
        try:
            if self._url:
                client().list_objects_v2(Bucket=self._url.split("/")[2], MaxKeys=1)
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"--logger.save_dir={self._url}: {error}") from error

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        experiment = super().experiment
        if self._url and not self._thread:
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()
            atexit.register(self.finish)
        return experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._next_step = max(self._next_step, (step or 0) + 1)
        super().log_metrics(metrics, step)

    def state_dict(self) -> dict[str, Any]:
        # Neither a killed host nor S3 may have all of the log.
        self.experiment.flush()
        files = {path.name: path.read_bytes() for path in Path(self.log_dir).glob("events.*")}
        return {"version": self.version, "files": files, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with that log, in its folder unless a person has named a version."""
        self._next_step = state["next_step"]
        continue_version(self, state["version"] if self._is_my_version else self._version, self._next_step)
        for name, content in state["files"].items():
            path = Path(self.log_dir, name)
            if not path.exists() or path.stat().st_size < len(content):
                write_atomically(content, path)

    def _copy(self) -> None:
        """Copies all files that have changed, every `flush_secs` and at the end."""
        bucket, _, prefix = self._url.removeprefix("s3://").partition("/")
        copied, is_last = {}, False
        while not is_last:
            is_last = self._stop.wait(self._flush_secs)
            try:
                for path in filter(Path.is_file, Path(self.save_dir).rglob("*")):
                    state = path.stat().st_size, path.stat().st_mtime_ns  # an event is there within milliseconds
                    if copied.get(path) != state:
                        key = os.path.join(prefix, path.relative_to(self.save_dir))
                        client().put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
                        copied[path] = state
                self._error = None
            except Exception as error:  # whatever it is, the training goes on
                if not (self._error or is_last):
                    warn(f"training goes on, but its log cannot be written to {self._url} for now: {error}")
                self._error = error

    def finish(self) -> str:
        """Where the log is: in S3, if that works within 30 seconds, or else a warning says how to get it there."""
        if self._thread and not self._stop.is_set():
            self._experiment.flush()
            self._stop.set()
            self._thread.join(LAST_SECONDS)
            if self._error or self._thread.is_alive():
                reason = self._error or f"{LAST_SECONDS} seconds were too short"
                warn(f"not all of the log is in S3 ({reason}); what does it: aws s3 sync {self.save_dir} {self._url}")
            else:
                shutil.rmtree(self.save_dir, ignore_errors=True)
        return self.log_dir.replace(self.save_dir, self._url or self.save_dir)


@cache  # making one takes 0.2 s
def client() -> Any:
    config = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard"})
    # SageMaker names its containers' region in this variable, which boto3 does not read.
    return boto3.client("s3", region_name=os.environ.get("AWS_REGION"), config=config)
