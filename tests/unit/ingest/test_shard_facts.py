"""What the shard stage knows of the whole dataset before it reads an object."""

import json

import pytest

from pipelines.ingest.shard import _facts
from storage.manifest import Manifest


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10.5", "9", "1e1", "-.5"], ["-.5", "9", "1e1", "10.5"]),
        (["9", "10", "x"], ["10", "9", "x"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"]),
        ([], None),
    ],
)
def test_classes_that_are_all_numbers_are_in_their_order(labels: list[str], classes: list[str] | None) -> None:
    about = {"path": "a", "digest": "", "bytes": 1, "rows": 1, "key": "", "after": "", "split": "train"}
    records = [{**about, "stats": json.dumps({"labels": [label]})} for label in labels] or [{**about, "stats": "{}"}]
    assert _facts(Manifest.build("curated", records, kind="table"))["classes"] == classes
