"""The policies in docker/policies, and the administrator's commands in the README that use them."""

import inspect
import json
import os
import re
import shutil
import subprocess

import pytest
from botocore.exceptions import ClientError
from fake_aws.aws import ACCOUNT, BUCKET, REGION, ROLE, filled_in
from runs.programs import ROOT, executable
from runs.scripts import ARCHIVE, UPLOAD, Project
from runs.terminals import run_on_terminal
from runs.tutorial import block

pytestmark = pytest.mark.slow  # they start the AWS CLI several times
POLICIES = ("execution-role.json", "laptop.json", "optional.json", "trust.json")
ON_EVERYTHING = {"ecr:GetAuthorizationToken", "sts:GetCallerIdentity", "cloudwatch:PutMetricData"}


def load_policy(name: str) -> dict:
    """Returns a policy of docker/policies."""
    return json.loads((ROOT / "docker/policies" / name).read_text())


@pytest.mark.parametrize("name", ["execution-role.json", "laptop.json"])
def test_a_policy_names_its_actions_and_resources(name):
    policy = load_policy(name)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        assert statement["Effect"] == "Allow"
        assert "*" not in "".join(actions)
        if "*" in resources:
            assert set(actions) <= ON_EVERYTHING
        if "cloudwatch:PutMetricData" in actions or "iam:PassRole" in actions:
            assert "StringEquals" in statement["Condition"]


@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_are_valid_in_every_partition(name):
    arns = re.findall(r'"(arn:[^"]*)"', (ROOT / "docker/policies" / name).read_text())
    assert all(arn.startswith("arn:*:") for arn in arns)


def test_the_policies_have_the_placeholders_of_the_tutorial():
    texts = [(ROOT / "docker/policies" / name).read_text() for name in POLICIES]
    assert set(re.findall(r"<.*?>", "".join(texts))) == {"<account-id>", "<role-name>", "<my-bucket>", "<key-id>"}


def test_the_optional_statements_are_named_after_arguments_of_the_estimator():
    from launcher.sagemaker_sdk import PyTorch  # imported here, as it takes seconds

    known = {name for base in PyTorch.__mro__ for name in inspect.signature(base.__init__).parameters}
    for statement in load_policy("optional.json")["Statement"]:
        words = re.findall("[A-Z][a-z]+", statement["Sid"].split("And")[0].split("Or")[0])
        argument = "_".join(words).lower()
        assert argument in known and f"`{argument}`" in (ROOT / "docs/permissions.md").read_text()


def test_the_administrators_commands_create_a_role_and_complete_policies(aws):
    aws.set_up_as_administrator()
    iam = aws.client("iam")
    role = iam.get_role(RoleName="sagemaker")["Role"]
    assert role["Arn"] == ROLE
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert (trust["Principal"], trust["Action"]) == ({"Service": "sagemaker.amazonaws.com"}, "sts:AssumeRole")
    (policy,) = iam.list_policies(Scope="Local")["Policies"]
    documents = [
        iam.get_role_policy(RoleName="sagemaker", PolicyName="sagemaker-tutorial")["PolicyDocument"],
        iam.get_policy_version(PolicyArn=policy["Arn"], VersionId="v1")["PolicyVersion"]["Document"],
    ]
    assert "<" not in json.dumps(documents)
    assert aws.client("s3").get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == REGION


def test_the_laptops_policy_uploads_data_and_the_roles_policy_keeps_checkpoints(aws, tmp_path):
    project = Project(tmp_path, aws.environment)
    person, role = aws.set_up_as_administrator()

    def s3(environment: dict[str, str], *arguments: str) -> str:
        command = ["aws", "s3api", *arguments, f"--bucket={BUCKET}"]
        return subprocess.run(command, env=environment, cwd=project.folder, capture_output=True, text=True).stderr

    data, checkpoint = f"--key=datasets/cifar-10/{ARCHIVE}", "--key=checkpoints/my-run/last-step=1.ckpt"
    with aws.enforce_policies():
        assert project.run(UPLOAD, f"s3://{BUCKET}/datasets/cifar-10", **person).startswith("uploaded")
        assert s3(role, "get-object", data, "data") == ""
        assert s3(role, "put-object", checkpoint, "--body=data") == ""
        assert s3(person, "get-object", checkpoint, "checkpoint") == ""
        assert s3(role, "delete-object", checkpoint) == ""
        assert "AccessDenied" in s3(role, "delete-object", data)
        assert "AccessDenied" in s3(person, "put-object", checkpoint, "--body=data")


@pytest.mark.parametrize(
    ("role", "service"),
    [("another-role", "sagemaker.amazonaws.com"), ("sagemaker", "lambda.amazonaws.com")],
)
def test_the_laptops_policy_passes_its_role_only_and_only_to_sagemaker(aws, role, service):
    text = (ROOT / "docker/policies/laptop.json").read_text().replace("sagemaker.amazonaws.com", service)
    person = aws.person("person", filled_in(text))
    with aws.enforce_policies(), pytest.raises(ClientError, match="not authorized to perform: iam:PassRole"):
        aws.create_job("my-job", person, role=f"arn:aws:iam::{ACCOUNT}:role/{role}")


def test_the_laptops_policy_passes_its_role_to_sagemaker(aws):
    person = aws.person_with("laptop")
    with aws.enforce_policies():
        aws.create_job("my-job", person)
    assert [request["RoleArn"] for request in aws.requests] == [ROLE]


def find_aws_cli_2() -> str | None:
    """Returns the path of an AWS CLI of version 2, such as that of Debian's package awscli."""
    for folder in os.environ["PATH"].split(os.pathsep):
        if cli := shutil.which("aws", path=folder):
            version = subprocess.run([cli, "--version"], capture_output=True, text=True).stdout
            if version.startswith("aws-cli/2."):
                return cli
    return None


def test_the_administrators_commands_start_no_pager_that_would_swallow_the_next_line(aws, tmp_path):
    cli = find_aws_cli_2()
    if not cli:
        pytest.skip(reason="there is no AWS CLI 2, such as Debian's package awscli")
    paged = tmp_path / "paged"
    executable(tmp_path / "less", f"touch {paged}\nexec cat")
    # Debian's version does not read AWS_ENDPOINT_URL yet.
    executable(tmp_path / "aws", f'exec {cli} --endpoint-url $AWS_ENDPOINT_URL "$@"')
    environment = {name: value for name, value in aws.environment.items() if name not in ("AWS_PAGER", "PAGER")}
    options = {"cwd": ROOT, "env": environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}}
    run_on_terminal(["bash", "-ec", "aws iam list-roles"], **options)
    assert paged.exists()
    paged.unlink()

    commands = filled_in(block("export SAGEMAKER_ROLE="), bucket="new-bucket") + block("aws iam create-role")
    run_on_terminal(["bash", "-ec", commands], **options)
    assert not paged.exists()
    assert aws.client("iam").get_role(RoleName="sagemaker")
