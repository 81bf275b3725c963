"""Generates requests of run_sagemaker.py in this process and without a network."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from fake_aws.aws import NO_AWS
from sagemaker import Session

from launcher.sagemaker_sdk import make_session, preview_request
from run_sagemaker import inputs, make_estimator, read_options


@cache
def one_session(container_root: str) -> Session:
    return make_session(boto3.Session(region_name="eu-central-1"), container_root)  # which takes 0.7 seconds


@pytest.fixture
def offline(monkeypatch):
    """Removes the AWS configuration, and sets an endpoint at which all requests fail."""
    monkeypatch.setattr("launcher.sagemaker_sdk.make_session", lambda _, root: one_session(root))
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, NO_AWS[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def preview(*args: str) -> dict[str, Any]:
    """Returns the request that the launcher would send."""
    options = read_options(list(args))
    with tempfile.TemporaryDirectory() as folder:
        return preview_request(make_estimator(options, None, Path(folder)), inputs(options), options.job_name)
