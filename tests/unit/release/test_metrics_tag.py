"""The metrics that a version carries in the registry."""

import json

from pipelines.release.promotion import LONGEST_TAG, _fitting


def test_metrics_of_so_many_classes_that_no_tag_holds_them_are_left_out() -> None:
    """MLflow refuses the version otherwise, each time."""
    few = {"accuracy": 0.9, "f1.cat": 0.5}
    assert json.loads(_fitting(few, "accuracy")) == few
    many = few | {f"f1.{number}": 0.123456 for number in range(10_000)}
    assert len(json.dumps(many)) > LONGEST_TAG
    assert json.loads(_fitting(many, "f1.7")) == {"accuracy": 0.9, "f1.7": 0.123456}
