"""The bottleneck: for each bound the right word, the right advice, and a gain that follows from the figures."""

from typing import Any

import pytest

from pipelines.profiling.bottleneck import PARTS, Figures, judge


def figures(**values: Any) -> Figures:
    """Shares by part, the rest overhead; other figures by name."""
    shares = {part: float(values.pop(part, 0.0)) for part in PARTS if part != "overhead"}
    shares["overhead"] = 1 - sum(shares.values())
    return Figures(step_seconds=values.pop("step_seconds", 0.1), shares=shares, **values)


@pytest.mark.parametrize(
    ("stream", "more", "setting"),
    [
        ({"fetch": 0.9, "gather": 0.1}, {"remote": True}, "cache.node.enabled"),
        ({"fetch": 0.9, "gather": 0.1}, {"remote": True, "node_cache": True}, "compute.ahead_mb"),
        ({"fetch": 0.1, "decode": 0.9}, {}, "shard.images"),
        ({"plan": 0.8, "gather": 0.1}, {}, "stream.window"),
        ({"gather": 0.9}, {}, "compute.prefetch"),
        ({"gather": 0.01, "fetch": 0.01}, {}, "train.threads"),
    ],
)
def test_waiting_for_data_names_what_the_stream_is_busy_with(
    stream: dict[str, float], more: dict[str, Any], setting: str
) -> None:
    bottleneck = judge(figures(data=0.6, compute=0.3, stream=stream, **more))
    assert bottleneck.bound == "data"
    assert setting in bottleneck.advice[0].change
    assert bottleneck.advice[0].gain == 0.6


def test_compute_bound_on_a_device_with_a_faster_precision() -> None:
    bottleneck = judge(figures(compute=0.8, memory=0.1, device="cuda:0", peaks={"float32": 10e12, "bfloat16": 40e12}))
    assert bottleneck.bound == "compute"
    assert bottleneck.advice[0].change == "set train.precision to bf16"
    assert bottleneck.advice[0].gain == pytest.approx(0.8 * 0.75)
    assert "2.50 times as fast" in str(bottleneck.advice[0])


def test_compute_bound_with_cores_to_spare() -> None:
    bottleneck = judge(figures(compute=0.7, memory=0.1, threads=1, cores=4, ranks=2))
    assert bottleneck.advice[0].change == "raise train.threads from 1 to 2"
    assert bottleneck.advice[0].gain == pytest.approx(0.4)


def test_compute_bound_and_as_good_as_it_goes() -> None:
    """70 % of the peak in the products: no setting helps, and the report says so instead of inventing one."""
    peak = 100e9
    bottleneck = judge(figures(compute=0.98, flops=0.98 * 0.7 * peak * 0.1, peaks={"float32": peak}))
    assert bottleneck.figures.utilisation == pytest.approx(0.98 * 0.7)
    assert bottleneck.figures.product_utilisation == pytest.approx(0.7)
    assert [one.gain for one in bottleneck.advice] == [None]
    assert "faster" in bottleneck.advice[0].change


def test_small_products_reach_little_of_the_peak() -> None:
    bottleneck = judge(figures(compute=0.9, flops=1e9, peaks={"float32": 100e9}))  # 0.1 s at 10 GFLOP/s
    assert "they reach 11% of the peak" in bottleneck.advice[0].change


def test_memory_bound() -> None:
    bottleneck = judge(figures(memory=0.7, compute=0.2, optimizer=0.4, compiled=True))
    assert bottleneck.bound == "memory"
    assert "stream.batch_size" in bottleneck.advice[0].change
    assert bottleneck.advice[0].gain == pytest.approx(0.2)
    passes = judge(figures(memory=0.7, compute=0.2, optimizer=0.1))
    assert "train.parallel.compile" in passes.advice[0].change
    assert passes.advice[0].gain == pytest.approx(0.3)
    gpu = judge(figures(memory=0.7, compute=0.2, device="cuda:0"))
    assert gpu.advice[0].change.startswith("set train.precision to bf16")
    assert gpu.advice[0].gain == pytest.approx(0.35)


def test_network_bound() -> None:
    bottleneck = judge(figures(network=0.5, compute=0.3, ranks=2, cores=2))
    assert bottleneck.bound == "network"
    assert bottleneck.advice[0].change.startswith("set train.communication.compression to bf16")
    assert bottleneck.advice[0].gain == pytest.approx(0.25)
    assert "train.communication.local_steps" in bottleneck.advice[1].change
    assert "gradients" in bottleneck.lines()[0]
    compressed = judge(figures(network=0.5, compute=0.3, ranks=2, cores=2, compression="bf16"))
    assert "stream.batch_size" in compressed.advice[0].change


def test_overhead_bound() -> None:
    bottleneck = judge(figures(compute=0.2, memory=0.1))
    assert bottleneck.bound == "overhead"
    assert "stream.batch_size" in bottleneck.advice[0].change


def test_other_parts_are_named_by_what_they_would_bring_and_trifles_are_not() -> None:
    bottleneck = judge(
        figures(compute=0.6, data=0.2, network=0.01, memory=0.01, ranks=2, cores=2, stream={"gather": 0.9})
    )
    gains = [one.gain for one in bottleneck.advice if one.gain is not None]
    assert bottleneck.bound == "compute"
    assert "compute.prefetch" in bottleneck.advice[1].change
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 0.02


def test_a_busy_machine_is_named() -> None:
    assert "30% of the time" in "\n".join(judge(figures(compute=0.9, stolen=0.3)).lines())
    assert "other programs" not in "\n".join(judge(figures(compute=0.9, stolen=0.01)).lines())


def test_the_lines_hold_the_figures() -> None:
    bottleneck = judge(figures(compute=0.75, step_seconds=0.2, flops=5e9, peaks={"float32": 100e9}))
    text = "\n".join(bottleneck.lines())
    assert "compute-bound" in text
    assert "75%" in text
    assert "200.00 ms" in text
    assert "5 GFLOP a step, 25 GFLOP/s: 25.0% of the 100 GFLOP/s" in text
    assert bottleneck.to_json()["model_flops_utilisation"] == pytest.approx(0.25)
