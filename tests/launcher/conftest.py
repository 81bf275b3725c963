"""Fixtures: an AWS account that is ready for a launch."""

import pytest
from fake_aws.aws import BUCKET
from runs.archives import cifar10_files, write_archive


@pytest.fixture
def account(aws, tmp_path):
    """Simulates an account in which the data is in S3 and the image in ECR."""
    archive = write_archive(tmp_path, cifar10_files())
    aws.client("s3").upload_file(str(archive), BUCKET, "datasets/cifar-10/cifar-10-python.tar.gz")
    aws.put_image(tag="1")
    return aws
