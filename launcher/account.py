"""The AWS account and the region of a job."""

import os
import re
from typing import Any

from launcher.command_line import refuse_if


def find_session(options: Any) -> Any:
    """A session in the region of the job and all it uses, which docker/aws.sh finds by the same rule."""
    import boto3

    region = options.region or os.environ.get("AWS_REGION")  # which boto3 does not read
    region = region or boto3.Session(profile_name=options.profile).region_name
    has_region = region or options.is_local or options.dry_run
    refuse_if(not has_region, "there is no AWS region; name one, such as --region=us-east-1")
    return boto3.Session(profile_name=options.profile, region_name=region or "us-east-1")


def check_account(options: Any) -> None:
    """Fails, before anything is uploaded, without valid credentials or with an image of another region."""
    session = find_session(options)
    session.client("sts").get_caller_identity()
    image = re.match(r"\d{12}\.dkr\.ecr[^.]*\.([^.]+)\.", options.image_uri)
    region = image[1] if image else session.region_name
    line = f"--image_uri={options.image_uri}: is in {region}, the job would be in {session.region_name}"
    refuse_if(region != session.region_name, line)
