"""The AWS account and the region of a job."""

import os
from typing import Any


def create_session(options: Any) -> Any:
    """Returns a boto3 session in the AWS region of the job.

    The scripts of docker/ find the region by the same rule.

    Raises:
        ValueError: If a job in the cloud has no region.
    """
    import boto3

    configured = boto3.Session(profile_name=options.profile).region_name
    region = options.region or os.environ.get("AWS_REGION") or configured  # boto3 does not read AWS_REGION
    if not (region or options.is_local or options.dry_run):
        raise ValueError("no AWS region is configured; pass --region, or set AWS_REGION")
    return boto3.Session(profile_name=options.profile, region_name=region or "us-east-1")
