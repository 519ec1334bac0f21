"""Metrics named after the data's classes, which may be called anything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking.names import mlflow_name
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


@given(st.text(max_size=300) | st.text("./a<", max_size=6))
def test_mlflow_takes_every_name(name: str) -> None:
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    for prefix in ("", "test.f1."):
        found = mlflow_name(prefix + name)
        _validate_metric_name(found)
        assert 0 < len(found) <= MAX_ENTITY_KEY_LENGTH


def test_names_that_it_takes_stay_and_the_others_differ() -> None:
    for name in ("val_loss/code", "test.f1.Grün 3: x-y", "mixture/a"):
        assert mlflow_name(name) == name
    assert mlflow_name("../..") == "_2e._2f.."  # found by chance
    classes = ["<=50K", ">50K", "C+", "C#", "C", "n/a", "a//b", "a/../b", "a/b/"]
    assert len({mlflow_name(f"f1.{name}") for name in classes}) == len(classes)
    assert mlflow_name("test.f1.<=50K") == "test.f1._3c_3d50K"


def test_a_run_sends_such_names() -> None:
    points: list[Any] = []
    run = Run("recipe", "nowhere")
    run._outbox, run._ends = Outbox(points.extend, "nowhere"), False
    with run:
        run.log_metrics({"test.accuracy": 0.5, "test.f1.<=50K": 1.0})
    assert [point.key for point in points] == ["test.accuracy", "test.f1._3c_3d50K"]
