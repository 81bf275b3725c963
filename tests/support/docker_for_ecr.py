"""A `docker` whose pushes arrive in ECR: a registry of this machine holds the images, and moto's API is told of them.

ENGINE imitates an engine of another kind, in that part alone in which it differs from the one of this machine:
"no-image"  Its builder leaves no image in the engine.
"oci"       Its store pushes OCI's manifests.
"index"     Its store pushes an index.
"overtaken" Somebody else pushes to the same tag.
"buildx"    It has buildx, which takes --output.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
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
            return 1  # which a real one does not: what it makes would be another kind of image
        command = ["build", *command[4:]]
    code = subprocess.run([os.environ["DOCKER"], *command]).returncode
    if command[0] == "push" and code == 0:
        arrive(command[1], engine)
    return code


def arrive(uri: str, engine: str | None) -> None:
    """Tells moto's ECR which manifest the registry has."""
    import boto3  # only here, as it takes long

    manifest = ask(uri).decode()
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
        ask(uri, "PUT", manifest.encode(), {"Content-Type": media_type})
        manifest = ask(uri).decode()
    repository, _, tag = uri.partition("/")[2].rpartition(":")
    boto3.client("ecr").put_image(
        repositoryName=repository,
        imageTag=tag,
        imageManifest=manifest,
        imageManifestMediaType=json.loads(manifest)["mediaType"],
        imageDigest=digest_of(manifest),
    )


def digest_of(manifest: str) -> str:
    return f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"


def ask(uri: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """Reads or writes the manifest of an image, in a registry into which `docker login` has led."""
    host, _, name = uri.partition("/")
    repository, _, tag = name.rpartition(":")
    config = json.loads((Path(os.environ["DOCKER_CONFIG"]) / "config.json").read_text())
    headers = {"Authorization": f"Basic {config['auths'][host]['auth']}", "Accept": f"{DOCKER},{OCI},{INDEX}"} | (
        headers or {}
    )
    url = f"http://{host}/v2/{repository}/manifests/{tag}"
    with urlopen(Request(url, body, headers, method=method)) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
