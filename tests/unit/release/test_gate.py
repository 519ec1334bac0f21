"""The gate's arithmetic, as a table of cases."""

import json
import math

import pytest

from pipelines.params import Gate
from pipelines.release.gate import judge
from storage.errors import ParamsError

HIGH = {"metric": "accuracy", "mode": "max"}
LOW = {"metric": "loss", "mode": "min"}


@pytest.mark.parametrize(
    ("gate", "metrics", "champion", "promoted"),
    [
        # No champion: bound and baseline alone decide.
        (HIGH, {"accuracy": 0.1}, None, True),
        (HIGH | {"bound": 0.9}, {"accuracy": 0.9}, None, True),
        (HIGH | {"bound": 0.9}, {"accuracy": 0.8999}, None, False),
        (LOW | {"bound": 2.0}, {"loss": 2.0}, None, True),
        (LOW | {"bound": 2.0}, {"loss": 2.0001}, None, False),
        (HIGH | {"baseline": "majority.accuracy"}, {"accuracy": 0.6, "majority.accuracy": 0.5}, None, True),
        (HIGH | {"baseline": "majority.accuracy"}, {"accuracy": 0.5, "majority.accuracy": 0.5}, None, False),
        (LOW | {"baseline": "bigram.loss"}, {"loss": 1.9, "bigram.loss": 2.0}, None, True),
        (LOW | {"baseline": "bigram.loss"}, {"loss": 2.0, "bigram.loss": 2.0}, None, False),
        # A champion must be beaten; equality is no gain.
        (HIGH, {"accuracy": 0.91}, {"accuracy": 0.9}, True),
        (HIGH, {"accuracy": 0.9}, {"accuracy": 0.9}, False),
        (HIGH, {"accuracy": 0.89}, {"accuracy": 0.9}, False),
        (LOW, {"loss": 1.0}, {"loss": 1.1}, True),
        (LOW, {"loss": 1.1}, {"loss": 1.1}, False),
        # By min_gain, inclusive: 0.9 - 0.8 is 0.09999999999999998 in binary.
        (HIGH | {"min_gain": 0.1}, {"accuracy": 0.9}, {"accuracy": 0.8}, True),
        (HIGH | {"min_gain": 0.1}, {"accuracy": 0.899}, {"accuracy": 0.8}, False),
        (LOW | {"min_gain": 0.1}, {"loss": 0.8}, {"loss": 0.9}, True),
        # Every condition must hold.
        (HIGH | {"bound": 0.95}, {"accuracy": 0.92}, {"accuracy": 0.9}, False),
        (HIGH | {"bound": 0.9}, {"accuracy": 0.92}, {"accuracy": 0.93}, False),
        (HIGH | {"bound": 0.9, "baseline": "b"}, {"accuracy": 0.92, "b": 0.95}, {"accuracy": 0.8}, False),
        # What is not a number never passes.
        (HIGH, {"accuracy": math.nan}, None, False),
        (HIGH, {"accuracy": 0.9}, {"accuracy": math.nan}, False),
        (HIGH, {"accuracy": 0.9}, {}, False),
    ],
)
def test_verdict(gate, metrics, champion, promoted):
    assert judge(Gate(**gate), metrics, champion).promoted is promoted


def test_each_condition_states_its_numbers():
    gate = Gate(metric="accuracy", bound=0.9, baseline="majority.accuracy", min_gain=0.01)
    decision = judge(gate, {"accuracy": 0.95, "majority.accuracy": 0.6}, {"accuracy": 0.945})
    conditions = {condition.name: condition for condition in decision.conditions}
    assert {name: (c.value, c.limit, c.passed) for name, c in conditions.items()} == {
        "bound": (0.95, 0.9, True),
        "baseline": (0.95, 0.6, True),
        "champion": (0.95, 0.945, False),
    }
    assert decision.reason == "accuracy 0.95 does not beat the champion's 0.945 by at least 0.01 (gain 0.005)"


def test_a_refusal_names_only_what_failed_and_a_pass_names_all():
    passed = judge(Gate(metric="accuracy", bound=0.9), {"accuracy": 0.95}, {"accuracy": 0.9})
    assert passed.reason == "accuracy 0.95 is at least the bound 0.9, beats the champion's 0.9 by 0.05"
    refused = judge(Gate(metric="accuracy", bound=0.99), {"accuracy": 0.95}, {"accuracy": 0.9})
    assert refused.reason == "accuracy 0.95 is not at least the bound 0.99"


def test_the_json_of_a_decision_is_strict_even_with_nan():
    decision = judge(Gate(metric="accuracy"), {"accuracy": 0.9}, {"accuracy": math.nan})
    text = json.dumps(decision.to_json(), allow_nan=False)
    assert json.loads(text)["conditions"][0]["limit"] is None


@pytest.mark.parametrize(
    ("gate", "setting"),
    [
        ({"metric": "acuracy"}, "promote.gate.metric"),
        ({"metric": "accuracy", "baseline": "x"}, "promote.gate.baseline"),
    ],
)
def test_a_metric_that_does_not_exist_is_named_with_its_setting(gate, setting):
    with pytest.raises(ParamsError, match=setting):
        judge(Gate(**gate), {"accuracy": 0.9}, None)


def test_a_misspelt_metric_is_corrected():
    with pytest.raises(ParamsError, match="Did you mean 'accuracy'"):
        judge(Gate(metric="acuracy"), {"accuracy": 0.9}, None)
