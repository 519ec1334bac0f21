"""The picture of a profile: what a step consists of, step after step; the longest operators; the tensors' memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.profiling.bottleneck import PARTS, Bottleneck

if TYPE_CHECKING:
    from pipelines.profiling.capture import Found
    from pipelines.profiling.trace import Traced

COLOURS = {"data": "#d1495b", "network": "#8d6a9f", "memory": "#edae49", "compute": "#1b6ca8", "overhead": "#b8b8b8"}
_TOP = 12
_MIB = 1 << 20


def draw(file: Path, title: str, bottleneck: Bottleneck, found: "Found", traced: "Traced") -> None:
    """Write `file` (PNG)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    panels = figure.subplot_mosaic(
        [["step", "step"], ["traced", "operators"], ["memory", "operators"]], height_ratios=[1, 3, 3]
    )
    _whole(panels["step"], bottleneck)
    _steps(panels["traced"], traced)
    _operators(panels["operators"], traced)
    _memory(panels["memory"], traced)
    for panel in panels.values():
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.suptitle(f"{title}\n{bottleneck.lines()[0]}", fontsize=10)
    figure.savefig(file, metadata={"Software": None})


def _whole(panel: Any, bottleneck: Bottleneck) -> None:
    """The mean step as one stacked bar, in milliseconds."""
    left, step = 0.0, bottleneck.figures.step_seconds * 1000
    for part in PARTS:
        width = bottleneck.figures.shares[part] * step
        panel.barh([0], [width], left=left, color=COLOURS[part], label=f"{part} {bottleneck.figures.shares[part]:.1%}")
        left += width
    panel.set_yticks([])
    panel.set_xlabel("a step by the clock, ms", fontsize=8)
    panel.legend(fontsize=8, frameon=False, ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _steps(panel: Any, traced: "Traced") -> None:
    """The traced steps, one bar each."""
    bottom, numbers = [0.0] * len(traced.parts), range(1, len(traced.parts) + 1)
    for part in PARTS:
        heights = [1000 * one[part] for one in traced.parts]
        panel.bar(numbers, heights, bottom=bottom, color=COLOURS[part], width=0.85)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    panel.set_xlabel("traced step (the profiler adds to overhead)", fontsize=8)
    panel.set_ylabel("ms", fontsize=8)


def _operators(panel: Any, traced: "Traced") -> None:
    top = traced.operators[:_TOP][::-1]
    names = [one.name.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ") for one in top]
    panel.barh([name[:44] for name in names], [1000 * one.seconds for one in top], color=[COLOURS[o.part] for o in top])
    panel.set_xlabel("own time a step, ms", fontsize=8)


def _memory(panel: Any, traced: "Traced") -> None:
    moments, sizes = zip(*traced.memory, strict=True) if traced.memory else ((0.0,), (0.0,))
    panel.step(
        [1000 * moment for moment in moments], [size / _MIB for size in sizes], where="post", color="#333333", lw=0.8
    )
    panel.set_xlabel("ms since the first traced step", fontsize=8)
    panel.set_ylabel("MiB of tensors since then", fontsize=8)
