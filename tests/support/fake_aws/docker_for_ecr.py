"""A `docker` that reports its pushes to moto's ECR: a registry of this machine holds the images, moto describes them.

ENGINE imitates one difference of a different engine; in all else it is the engine of this machine:
"no-image"  Its builder leaves no image in the engine.
"oci"       Its store pushes OCI manifests.
"index"     Its store pushes an index.
"overtaken" Somebody else pushes to the same tag.
"buildx"    It has buildx, which accepts --output.
It does not imitate ECR's own checks of a push, such as immutable tags.
"""

import hashlib
import json
import os
import subprocess
import sys
from urllib.request import Request, urlopen

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
OCI_TYPES = {
    DOCKER: OCI,
    "application/vnd.docker.container.image.v1+json": "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
}


def main(command: list[str]) -> int:
    engine = os.environ.get("ENGINE")
    with open(os.environ["COMMANDS"], "a") as file:
        print(*command, file=file)
    if engine == "no-image" and "build" in command[:2]:
        return 0
    if engine == "buildx" and command == ["buildx", "version"]:
        return 0
    if engine == "buildx" and command[:3] == ["buildx", "build", "--output"]:
        if os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS") != "1" or "oci-mediatypes=false" not in command[3]:
            return 1  # a real one succeeds, but its image has a different manifest
        command = ["build", *command[4:]]
    code = subprocess.run([os.environ["DOCKER"], *command]).returncode
    if command[0] == "push" and code == 0:
        report_to_ecr(command[1], engine)
    return code


def report_to_ecr(uri: str, engine: str | None) -> None:
    """Puts the manifest of a pushed image into moto's ECR."""
    import boto3  # imported here, as it takes long

    ecr = boto3.client("ecr")
    (login,) = ecr.get_authorization_token()["authorizationData"]
    registry = Registry(login["authorizationToken"])
    manifest = registry.request(uri).decode()
    media_type = DOCKER
    if engine == "oci":
        for docker_type, oci_type in OCI_TYPES.items():
            manifest = manifest.replace(docker_type, oci_type)
        media_type = OCI
    elif engine == "index":
        part = {"mediaType": DOCKER, "size": len(manifest), "digest": digest_of(manifest)}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [part]})
        media_type = INDEX
    elif engine == "overtaken":
        manifest += "\n"
    if engine in ("oci", "index", "overtaken"):
        registry.request(uri, "PUT", manifest.encode(), {"Content-Type": media_type})
        manifest = registry.request(uri).decode()
    repository, _, tag = uri.partition("/")[2].rpartition(":")
    ecr.put_image(
        repositoryName=repository,
        imageTag=tag,
        imageManifest=manifest,
        imageManifestMediaType=json.loads(manifest)["mediaType"],
        imageDigest=digest_of(manifest),
    )


def digest_of(manifest: str) -> str:
    return f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"


class Registry:
    """The registry, with ECR's token as its password."""

    def __init__(self, token: str):
        self.headers = {"Authorization": f"Basic {token}", "Accept": f"{DOCKER},{OCI},{INDEX}"}

    def request(self, uri: str, method: str = "GET", body: bytes | None = None, headers: dict | None = None) -> bytes:
        """Reads or writes the manifest of an image."""
        host, _, name = uri.partition("/")
        repository, _, tag = name.rpartition(":")
        url = f"http://{host}/v2/{repository}/manifests/{tag}"
        with urlopen(Request(url, body, self.headers | (headers or {}), method=method)) as answer:
            return answer.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
