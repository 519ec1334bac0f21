"""Putting a peer's files into the S3 server. Runs in the peers' environment; boto3 is there with litdata and MDS."""

import os
from pathlib import Path
from typing import Any


def upload(folder: Path, url: str) -> None:
    """Copy the files of `folder` below `url`, unless one of the same size is there."""
    client = s3()
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    there = {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", [])}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"{prefix}/{file.relative_to(folder)}"
        if there.get(key) != file.stat().st_size:
            client.upload_file(str(file), bucket, key)


def s3() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
