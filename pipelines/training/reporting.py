"""What rank 0 tells of a training: the curves in MLflow, the bar, lines for people. The other ranks say nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.console.progress import Advance, say
from pipelines.machine.run_cost import RunCost, sentence
from pipelines.streaming import Times
from pipelines.training.state import Point, TrainState

if TYPE_CHECKING:
    from pipelines.tracking import Run
    from pipelines.training.communication import GradientSync


#: Seconds between two looks at rates and shares of time, which are means over what lies between: a point of one costs
#: the processor 0.2 ms in MLflow's store (SQLAlchemy), so a dozen after each few short steps is some percent of them.
RATES_EVERY = 2.0


@dataclass
class Since:
    """What was done since rates were last told: seconds, those of them that were waited for data, units of work (of all
    ranks) and steps; `times` are those of the stream's meter then."""

    seconds: float = 0.0
    waited: float = 0.0
    work: int = 0
    steps: int = 0
    times: Times = field(default_factory=Times)


@dataclass
class Reporter:
    """`run` is None where nobody listens; `unit` is what the rate counts: tokens or samples; `steps` is the goal;
    `planned` gives what the batch at a step, counted from 0, is made of, where that changes."""

    run: "Run | None"
    advance: Advance
    unit: str
    steps: int
    reported: int = 0
    """The step of the newest point of the val curve that was told."""
    run_cost: RunCost | None = None
    planned: Callable[[int], dict[str, float]] = lambda step: {}
    since: Since = field(default_factory=Since)
    told: bool = field(default=False, init=False)  # whether rates were

    def step(self, seconds: float, waited: float, work: int) -> None:
        """Count a step: how long it took, how much of that was waiting for data, units of work (of all ranks)."""
        self.since.seconds += seconds
        self.since.waited += waited
        self.since.work += work
        self.since.steps += 1
        self.advance(1)

    def point(self, point: Point, times: Times, gradient_sync: "GradientSync | None" = None) -> None:
        """A point of the train curve; now and then, and at the end, with the rates since they were last told. `times`
        are of the stream's meter."""
        if self.run is None:
            return
        step, values = int(point["step"]), {name: value for name, value in point.items() if name != "step"}
        values |= self.planned(step - 1)
        if self.since.seconds >= RATES_EVERY or not self.told or step == self.steps:
            values |= self._rates(times, gradient_sync)
        self.run.log_metrics(values, step=step)
        self.advance(0, note=f"loss {point['train_loss']:.4f}")

    def _rates(self, times: Times, gradient_sync: "GradientSync | None") -> dict[str, float]:
        done = self.since
        rates = {f"{self.unit}_per_second": done.work / done.seconds, "wait_share": done.waited / done.seconds}
        shares = (times - done.times).shares()
        rates |= {f"stream_{part}_share": shares[part] for part in ("fetch", "plan", "decode", "gather")}
        rates |= {f"{part}_share": share for part, share in (times - done.times).of_documents().items()}
        rates |= gradient_sync.metrics(done.steps, done.seconds) if gradient_sync else {}
        rates |= self.run_cost.note() if self.run_cost else {}
        self.since, self.told = Since(times=times), True
        return rates

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
        if self.run is None or self.run_cost is None:
            return ""
        found = self.run_cost.close()
        self.run.log_metrics(found, step=step)
        return f"; {sentence(found)}"
