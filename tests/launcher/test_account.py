"""Tests of launcher/account.py, and of what AWS rejects: region, profile, credentials, permissions, quotas."""

import json
import os
import re
import time

import pytest
from fake_aws.aws import Endpoint
from runs.launcher import CLOUD, error_line, rejection, run_launcher

from launcher.account import create_session
from run_sagemaker import read_options

NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_EC2_METADATA_DISABLED": "true"}
UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}


@pytest.fixture
def account_error(monkeypatch, capsys):
    """Returns a function that checks the account as the launcher does, and returns the error within 5 seconds."""

    def identify() -> None:
        create_session(read_options(list(CLOUD))).client("sts").get_caller_identity()

    def error(environment: dict[str, str]) -> str:
        before = time.monotonic()
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            line = rejection(capsys, identify)
        assert time.monotonic() - before < 5
        return line

    return error


def test_a_profile_of_aws_login_needs_no_additional_package(account_error, tmp_path):
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-central-1\nlogin_session = arn:aws:iam::000000000000:user/x\n"
    )
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "HOME": str(tmp_path)}
    assert "reauthenticate with 'aws login'" in account_error(environment)


def launch_error(*options: str, environment: dict[str, str]) -> str:
    """Returns the error of a launch in the cloud, which must exit with code 2."""
    return error_line(run_launcher(*CLOUD, *options, environment=environment, code=2).stderr)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"AWS_DEFAULT_REGION": None}, "no AWS region is configured; pass --region"),
        (NO_KEYS, "Unable to locate credentials; run `aws configure`"),
        ({"AWS_PROFILE": "nobody"}, r"The config profile \(nobody\) could not be found$"),
        (UNREACHABLE, "Could not connect to the endpoint URL"),
    ],
    ids=["missing region", "missing credentials", "unknown profile", "unreachable endpoint"],
)
def test_a_mistake_in_the_configuration_of_aws_is_reported(account, account_error, changes, line):
    environment = account.environment | changes
    assert re.match(line, account_error({name: value for name, value in environment.items() if value is not None}))


@pytest.mark.parametrize(
    "options, environment, region",
    [
        ("--region=eu-north-1", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-north-1"),
        ("", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ("", {"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ("", {}, "eu-central-2"),
        ("--profile=other", {}, "sa-east-1"),
        ("--profile=other", {"AWS_REGION": "eu-west-1"}, "eu-west-1"),
    ],
)
def test_the_region_precedence_is_option_environment_profile(tmp_path, monkeypatch, options, environment, region):
    config = "[default]\nregion = eu-central-2\n[profile other]\nregion = sa-east-1\n"
    (tmp_path / "config").write_text(config)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"AWS_CONFIG_FILE": str(tmp_path / "config")}).items():
        monkeypatch.setenv(name, value)
    assert create_session(read_options([*CLOUD, *options.split()])).region_name == region


def test_an_expired_token_is_reported_with_the_advice_to_log_in_again(account, account_error):
    endpoint = Endpoint(error=lambda number: "403 ExpiredToken")
    line = account_error(account.environment | {"AWS_ENDPOINT_URL": endpoint.url})
    assert re.match(".*ExpiredToken.*; log in again", line)


def policy(*actions: str) -> str:
    """Returns a policy that allows no more than these actions."""
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": statement})


@pytest.mark.slow
def test_a_missing_permission_is_reported_with_the_policies_to_attach(account):
    newcomer = account.person("newcomer", policy("sts:*", "s3:*"))
    with account.enforce_policies():
        line = launch_error(environment=newcomer)
    assert re.match(".*(AccessDenied|not authorized).*CreateTrainingJob.*; check your permissions", line)


@pytest.mark.slow
def test_an_exceeded_quota_is_reported_with_what_to_do(account):
    account.refusal = ("ResourceLimitExceeded", "The account-level service limit is 2 Instances")
    line = launch_error(environment=account.environment)
    advice = "request a quota increase .*, or wait until other jobs end"
    assert re.match(f".*ResourceLimitExceeded.* 2 Instances; {advice}", line)


def test_credentials_are_checked_before_the_upload(account):
    environment = account.environment | {"AWS_PROFILE": "nobody"}
    assert launch_error(environment=environment) == "The config profile (nobody) could not be found"
    assert account.keys() == ["datasets/cifar-10/cifar-10-python.tar.gz"] and not account.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, line",
    [
        ("--max_run=0", "Invalid value for parameter StoppingCondition.MaxRuntimeInSeconds, value: 0, valid min"),
        ("--output_path=s3://no-such-bucket", ".*no-such-bucket.* The specified bucket does not exist"),
    ],
)
def test_an_error_of_sagemaker_or_s3_is_reported_in_its_own_words(account, option, line):
    assert re.match(line, launch_error(option, environment=account.environment))
    assert not account.requests
