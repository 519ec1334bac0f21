"""What rank 0 tells of a training: the curves in MLflow, the bar, lines for people. The other ranks say nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.progress import Advance, say
from pipelines.streaming import Times
from pipelines.training.state import Point, TrainState

if TYPE_CHECKING:
    from pipelines.diagnosis.spending import Spending
    from pipelines.tracking import Run
    from pipelines.training.network import Exchange


@dataclass
class Reporter:
    """`run` is None where nobody listens; `unit` is what the rate counts: tokens or samples; `steps` is the goal;
    `planned` gives what the batch at a step, counted from 0, is made of, where that changes."""

    run: "Run | None"
    advance: Advance
    unit: str
    steps: int
    seconds: float = 0.0
    waited: float = 0.0
    work: int = 0
    done: int = 0
    reported: int = 0
    times: Times = field(default_factory=Times)
    spending: "Spending | None" = None
    planned: Callable[[int], dict[str, float]] = lambda step: {}

    def step(self, seconds: float, waited: float, work: int) -> None:
        """Count a step: how long it took, how much of that was waiting for data, units of work (of all ranks)."""
        self.seconds += seconds
        self.waited += waited
        self.work += work
        self.done += 1
        self.advance(1)

    def point(self, point: Point, times: Times, exchange: "Exchange | None" = None) -> None:
        """A point of the train curve, with the rates since the last one; `times` are of the stream's meter."""
        if self.run is None:
            return
        rates = {f"{self.unit}_per_second": self.work / self.seconds, "wait_share": self.waited / self.seconds}
        shares = (times - self.times).shares()
        rates |= {f"stream_{part}_share": shares[part] for part in ("fetch", "plan", "decode", "gather")}
        rates |= self.planned(int(point["step"]) - 1)
        rates |= {f"{part}_share": share for part, share in (times - self.times).of_documents().items()}
        rates |= exchange.metrics(self.done, self.seconds) if exchange else {}
        self.times = times
        self.seconds, self.waited, self.work, self.done = 0.0, 0.0, 0, 0
        self.run.log_metrics({k: v for k, v in point.items() if k != "step"} | rates, step=int(point["step"]))
        if self.spending is not None:
            self.run.log_metrics(self.spending.note(), step=int(point["step"]))
        self.advance(0, note=f"loss {point['train_loss']:.4f}")

    def validation(self, state: TrainState) -> None:
        """The newest point of the val curve, once."""
        if self.run is None or not state.val_curve or state.validated == self.reported:
            return
        self.reported = state.validated
        values = {name: value for name, value in state.val_curve[-1].items() if name != "step"}
        self.run.log_metrics(values, step=state.validated)
        if state.train_curve:
            values = {"train_loss": state.train_curve[-1]["train_loss"]} | values
        say(f"step {state.validated}/{self.steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def spent(self, step: int) -> str:
        """What the run took, in MLflow and as the end of a sentence; it is over then."""
        if self.run is None or self.spending is None:
            return ""
        from pipelines.diagnosis.spending import sentence

        found = self.spending.close()
        self.run.log_metrics(found, step=step)
        return f"; {sentence(found)}"
