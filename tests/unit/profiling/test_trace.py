"""Traces written by hand, whose parts are known: each moment of a step belongs to one part."""

from typing import Any

import pytest

from pipelines.profiling.trace import BATCH, analyse

MAIN, OTHER = 1, 2


def span(name: str, start: float, end: float, *, lane: Any = MAIN, category: str = "cpu_op") -> dict[str, Any]:
    """Milliseconds."""
    kind = "user_annotation" if name == BATCH or name.startswith("Optimizer") else category
    return {"ph": "X", "name": name, "cat": kind, "tid": lane, "ts": 1000 * start, "dur": 1000 * (end - start)}


def two_steps(*spans: dict[str, Any]) -> list[dict[str, Any]]:
    """The same spans in steps of 10 ms, each after 1 ms of waiting for the batch."""
    shifted = [{**one, "ts": one["ts"] + 10_000 * step} for step in range(2) for one in spans]
    return [span(BATCH, 10 * step, 10 * step + 1) for step in range(3)] + shifted


def test_the_innermost_operator_has_the_time() -> None:
    """aten::linear calls aten::addmm; the annotation of the optimiser holds an operator of the optimiser."""
    traced = analyse(
        two_steps(
            span("aten::linear", 2, 5),
            span("aten::addmm", 2.5, 4.5),
            span("aten::gelu", 5, 6),
            span("Optimizer.step#AdamW.step", 7, 9),
            span("aten::_fused_adamw_", 7.5, 8.5),
        )
    )
    assert traced.seconds == pytest.approx([0.01, 0.01])
    for parts in traced.parts:
        assert parts["data"] == pytest.approx(0.001)
        assert parts["compute"] == pytest.approx(0.003)  # linear is a product, too
        assert parts["memory"] == pytest.approx(0.002)
        assert parts["network"] == 0
        assert sum(parts.values()) == pytest.approx(0.01)
    assert traced.optimizer == pytest.approx(0.2)
    top = {operator.name: operator for operator in traced.operators}
    assert top["aten::addmm"].seconds == pytest.approx(0.002)
    assert top["aten::addmm"].calls == 1
    assert BATCH not in top


def test_a_collective_counts_where_nothing_hides_it() -> None:
    """Gloo works in a thread of its own from 3 to 8; the training thread computes until 5, then waits."""
    traced = analyse(two_steps(span("aten::mm", 2, 5), span("gloo:all_reduce", 3, 8, lane=OTHER)))
    assert traced.parts[0]["compute"] == pytest.approx(0.003)
    assert traced.parts[0]["network"] == pytest.approx(0.003)


def test_small_operators_are_overhead_even_if_one_was_cut_off_by_the_system() -> None:
    small = [span("aten::view", 2 + 0.1 * index, 2.002 + 0.1 * index) for index in range(20)]
    traced = analyse(two_steps(*small, span("aten::view", 6, 9)))
    assert traced.parts[0]["memory"] == 0
    assert traced.parts[0]["overhead"] == pytest.approx(0.009)


def test_on_an_accelerator_the_kernels_have_the_time() -> None:
    """Kernels of two streams; operators on the host don't count, gaps are overhead."""
    traced = analyse(
        two_steps(
            span("aten::mm", 1, 9),
            span("ampere_sgemm_128x64_tn", 2, 5, lane=7, category="kernel"),
            span("vectorized_elementwise_kernel", 5, 6, lane=7, category="kernel"),
            span("ncclDevKernel_AllReduce_Sum_f32", 4, 8, lane=8, category="kernel"),
        )
    )
    parts = traced.parts[0]
    assert {name: round(1000 * seconds, 6) for name, seconds in parts.items()} == {
        "data": 1, "compute": 3, "memory": 1, "network": 2, "overhead": 3,
    }  # fmt: skip


def test_the_memory_line_follows_the_tensors_of_the_accelerator() -> None:
    def change(moment: float, size: int, kind: int) -> dict[str, Any]:
        return {"ph": "i", "name": "[memory]", "ts": 1000 * moment, "args": {"Bytes": size, "Device Type": kind}}

    events = [*two_steps(), change(2, 100, 1), change(3, 7, 0), change(4, -40, 1)]
    assert [size for _, size in analyse(events).memory] == [100, 60]


def test_one_batch_is_no_step() -> None:
    with pytest.raises(ValueError, match="0 whole steps"):
        analyse([span(BATCH, 0, 1)])
