"""The AWS account and the region of a job."""

import os
from typing import Any

from launcher.command_line import refuse_if


def create_session(options: Any) -> Any:
    """A session in the region of the job and all it uses, which docker/aws.sh finds by the same rule."""
    import boto3

    # boto3 does not read AWS_REGION.
    region = options.region or os.environ.get("AWS_REGION") or boto3.Session(profile_name=options.profile).region_name
    has_region = region or options.is_local or options.dry_run
    refuse_if(not has_region, "there is no AWS region; name one, such as --region=us-east-1")
    return boto3.Session(profile_name=options.profile, region_name=region or "us-east-1")
