"""What copies send each other: compressed, in buckets, or only when they meet. Two ranks, started once."""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.late_rank import LATE
from support.layout_ranks import STOPPED, run_groups, run_layouts
from support.training_samples import make_text
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Communication
from pipelines.training.communication import GradientSync, Sampler, Traffic, sampling
from pipelines.training.communication.local_sgd import Meetings
from pipelines.training.communication.sampling import FIRST, under_way
from pipelines.training.parallelism import Group, Layout, SharedScaler
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.step import _once

pytestmark = pytest.mark.xdist_group("communication")
STEPS = 12
LOCAL = {"eval_every": 4}
#: Small buckets: there are several, and others from the second step of a process on.
POWERSGD = {"compression": "powersgd", "powersgd_after": 2, "bucket_mb": 0.01}
COMMUNICATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "one bucket": {"communication": {"overlap": False}},
    "small buckets": {"communication": {"bucket_mb": 0.001}},
    "fp16": {"communication": {"compression": "fp16"}},
    "bf16": {"communication": {"compression": "bf16"}},
    "powersgd": {"communication": POWERSGD},
    "local": {"communication": {"local_steps": 4}, **LOCAL},
    "post-local": {"communication": {"local_steps": 4, "local_after": 8}, **LOCAL},
    "diloco": {"communication": {"local_steps": 4, "outer_lr": 0.7, "outer_momentum": 0.9}, **LOCAL},
    "sharded": {"parallel": {"shard": 2}},
}
LATE_RANK = {"model": {"name": "late_rank:Model", "args": {}}}
#: Of a model with batch norm.
MOVING: dict[str, dict[str, Any]] = {"moving, DDP": {}, "moving, sharded": {"parallel": {"shard": 2}, "lr": 0.02}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("communication")
    ws = make_text(folder / "ws", train={"steps": STEPS, "log_every": 4, "checkpoint_every": 1000})
    cases: dict[str, Any] = {name: {"train": {"ranks": 2, **train}} for name, train in COMMUNICATIONS.items()}
    cases["powersgd resumed"] = {"train": {"ranks": 2, "communication": POWERSGD}, STOPPED: {"steps": 7}}
    late = {"ranks": 2, "steps": 4, "eval_every": 4}
    cases["late, copies"] = LATE_RANK | {"train": late}
    cases["late, sharded"] = LATE_RANK | {"train": late | {"parallel": {"shard": 2}}}
    for name, train in MOVING.items():
        cases[name] = {"model": {"name": "moving_buffers:Model", "args": {}}, "train": {"ranks": 2, **LOCAL, **train}}
        cases[f"{name} resumed"] = {**cases[name], STOPPED: {"steps": 7}}
    return run_layouts(ws, cases, 2, folder / "job")


def test_buckets_change_nothing(found: dict[str, dict[str, Any]]) -> None:
    for name in ("one bucket", "small buckets"):
        assert found[name]["loss"] == pytest.approx(found["whole"]["loss"], rel=1e-5)
        assert found[name]["sent"] == found["whole"]["sent"]


def test_each_way_learns_and_sends_what_it_says(found: dict[str, dict[str, Any]]) -> None:
    whole = found["whole"]
    for name in COMMUNICATIONS:
        result = found[name]
        assert "error" not in result, name
        assert result["loss"][-1] < result["loss"][0] * 0.95, name
    for name in ("fp16", "bf16"):
        assert found[name]["loss"] == pytest.approx(whole["loss"], rel=1e-2)
        assert found[name]["loss"] != whole["loss"]
        assert found[name]["sent"] == whole["sent"] / 2
    assert found["powersgd"]["sent"] < whole["sent"] * 0.8
    # AdamW has two numbers beside each weight, and copies meet three times instead of at each of twelve steps.
    assert found["local"]["sent"] == pytest.approx(whole["sent"] * 3 * 3 / STEPS, rel=0.01)
    assert found["diloco"]["sent"] == found["local"]["sent"]
    assert found["post-local"]["sent"] == pytest.approx(whole["sent"] * (8 + 3) / STEPS, rel=0.01)
    assert found["post-local"]["loss"][:2] == pytest.approx(whole["loss"][:2], rel=1e-6)
    assert found["post-local"]["loss"][2] != whole["loss"][2]


def test_powersgd_stopped_and_resumed_is_powersgd_undisturbed(found: dict[str, dict[str, Any]]) -> None:
    """Its memory of errors, which each rank has for itself, and its factors are in the checkpoint."""
    assert found["powersgd resumed"]["digest"] == found["powersgd"]["digest"]
    assert found["powersgd resumed"]["loss"] == found["powersgd"]["loss"]


@pytest.mark.parametrize("name", MOVING)
def test_averages_of_the_first_rank_are_measured_and_saved(found: dict[str, dict[str, Any]], name: str) -> None:
    """So stopped and resumed is undisturbed, although each rank makes its own."""
    for what in ("loss", "val", "digest"):
        assert found[f"{name} resumed"][what] == found[name][what]


@pytest.mark.soak
def test_powersgds_errors_go_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """What the algorithm sees, the mean of the errors, stays: without it the losses differ in the third digit."""
    ws = make_text(tmp_path / "ws", train={"steps": 24, "log_every": 1, "checkpoint_every": 1000})
    communication = {"communication": POWERSGD | {"powersgd_rank": 1}}
    two, three = ({"train": {"ranks": ranks, **communication}} for ranks in (2, 3))
    undisturbed = run_layouts(ws, {"two": two}, 2, tmp_path / "undisturbed")["two"]
    found = run_groups(ws, {2: {"stopped": two | {STOPPED: {"steps": 12}}}, 3: {"resumed": three}}, tmp_path / "both")
    assert found[3]["resumed"]["loss"] == pytest.approx(undisturbed["loss"], abs=1e-5)


def test_whole_weights_are_gathered_twice_and_gradients_scattered_once(found: dict[str, dict[str, Any]]) -> None:
    """ZeRO-3 sends (n-1)/n of the weights thrice a step (Rajbhandari et al. 2020, section 7), DDP 2(n-1)/n."""
    share = found["sharded"]["sent"] / found["whole"]["sent"]
    assert share == pytest.approx(1.5, rel=0.01)


def test_waiting_for_a_late_rank_is_seen_in_every_step_or_in_a_sample(found: dict[str, dict[str, Any]]) -> None:
    copies, sharded = found["late, copies"], found["late, sharded"]
    assert copies["busy"] > 4 * LATE / 2  # all four steps are timed
    assert copies["communication_share"] is None  # so none is sampled
    assert sharded["busy"] == 0
    assert sharded["sampled"] > LATE / 2  # of one step at least


def test_a_share_is_told_once() -> None:
    sampler = Sampler(torch.device("cpu"))
    gradient_sync = GradientSync(Traffic(2), None, None, counted=True, sampler=sampler)
    for _ in range(FIRST):
        assert gradient_sync.metrics(1, 1.0).keys() == {"sent_mb_per_step"}
        with gradient_sync.timing(0):
            torch.ones(8).sum()
    assert gradient_sync.metrics(1, 1.0)["communication_share"] == 0.0
    assert gradient_sync.metrics(1, 1.0).keys() == {"sent_mb_per_step"}


def test_where_copies_step_by_themselves_only_their_meetings_are_timed() -> None:
    """As on an accelerator, whose gradients' transfers are only seen in a sample."""
    model = nn.Linear(4, 4)
    traffic, communication = Traffic(2), Communication(local_steps=2, local_after=FIRST)
    group: Any = SimpleNamespace(size=lambda: 2)
    meetings = Meetings(communication, model, torch.optim.SGD(model.parameters()), group, traffic)
    gradient_sync = GradientSync(traffic, meetings, None, counted=True, sampler=Sampler(torch.device("cpu")))
    for step in range(FIRST):
        with gradient_sync.timing(step):
            torch.ones(8).sum()
    traffic.seconds = 0.5  # in which calls were enqueued
    assert gradient_sync.metrics(FIRST, 1.0)["communication_share"] == 0.0
    with gradient_sync.timing(FIRST):
        assert not sampling.profiler._is_profiler_enabled
    traffic.seconds = 0.25
    assert gradient_sync.metrics(1, 1.0)["communication_share"] == 0.25


def test_what_sampling_costs_is_paid_off_before_the_next_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: a sample costs one second here, the steps between take 0.1 each."""
    now, watched = 0.0, []
    sampler = Sampler(torch.device("cpu"))
    monkeypatch.setattr(sampling, "perf_counter", lambda: now)

    class Watch:
        kineto_results = SimpleNamespace(events=list)

        def __enter__(self) -> "Watch":
            watched.append(now)
            return self

        def __exit__(self, *_: object) -> None:
            nonlocal now
            now += 1.0

    monkeypatch.setattr(sampling.profiler, "profile", lambda **_: Watch())
    for _ in range(4100):
        with sampler.step():
            now += 0.1
    assert len(watched) == 3
    assert [later - sooner for sooner, later in pairwise(watched)] == pytest.approx([201.1, 201.1], abs=0.2)


@pytest.mark.parametrize("waits", [0, 1])
def test_a_profiler_of_somebody_else_is_left_alone(waits: int) -> None:
    """Also one that has not begun yet, whose session a second one would use up."""
    sampler = Sampler(torch.device("cpu"))
    schedule = torch.profiler.schedule(wait=waits, warmup=FIRST, active=2, repeat=1)
    seen: list[str] = []

    def note(profiler: torch.profiler.profile) -> None:
        seen.extend(event.name for event in profiler.events())

    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, schedule=schedule, on_trace_ready=note) as profiler:
        for _ in range(waits + FIRST + 2):
            with sampler.step():
                torch.ones(8).sum()
            profiler.step()
    assert sampler.share() is None
    assert "aten::sum" in seen
    with sampler.step():
        torch.ones(8).sum()
    assert sampler.share() == 0.0  # it is over


def test_what_ends_a_watched_step_ends_it_as_it_is() -> None:
    sampler = Sampler(torch.device("cpu"))
    for _ in range(FIRST):
        with suppress(KeyboardInterrupt), sampler.step():
            raise KeyboardInterrupt
    assert not sampling.profiler._is_profiler_enabled
    assert sampler.share() is None
    with sampler.step():
        torch.ones(8).sum()
    assert sampler.share() == 0.0


def event(name: str, start: int, end: int, device: str = "CPU") -> Any:
    kind = getattr(torch.autograd.DeviceType, device)
    return SimpleNamespace(name=lambda: name, start_ns=lambda: start, end_ns=lambda: end, device_type=lambda: kind)


HOST = [
    event("c10d::allreduce_", 0, 10), event("gloo:all_reduce", 5, 40), event("gloo:send", 60, 70),
    event("aten::mm", 0, 100),
]  # fmt: skip
KERNEL = event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 20, 90, "CUDA")


def test_transfers_that_overlap_count_once() -> None:
    assert under_way(HOST) == pytest.approx(50e-9)
    assert under_way([event("aten::mm", 0, 100)]) == 0.0


def test_on_an_accelerator_its_kernels_count_not_the_calls_that_enqueue_them() -> None:
    assert under_way([*HOST, KERNEL], on_device=True) == pytest.approx(70e-9)
    assert under_way(HOST, on_device=True) == 0.0


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_an_accelerators_kernels_are_asked_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what torch makes of the arguments; there is no such device here, so it doesn't begin."""
    made: list[Any] = []

    class Watch(sampling.profiler.profile):
        def __enter__(self) -> "Watch":
            made.append(self)
            raise KeyboardInterrupt

    activity = getattr(torch.profiler.ProfilerActivity, kind.upper())
    device = torch.device(kind)
    assert Sampler.of(device) is None  # nor does torch see one
    monkeypatch.setattr(sampling, "supported_activities", lambda: {activity})
    monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: True)
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda: None)
    monkeypatch.setattr(sampling.profiler, "kineto_available", lambda: True)
    monkeypatch.setattr(sampling.profiler, "_supported_activities", lambda: {activity}, raising=False)
    monkeypatch.setattr(sampling.profiler, "profile", Watch)
    sampler = Sampler.of(device)
    assert sampler is not None
    for _ in range(FIRST):
        with suppress(KeyboardInterrupt), sampler.step():
            pass
    assert activity in made[0].kineto_activities


def unscaled_gradients(steps: int, growth_interval: int) -> list[torch.Tensor]:
    """What an optimiser gets of PowerSGD's averages, in a group of one, where the loss's scale doubles so often."""
    torch.manual_seed(0)
    model, samples = nn.Linear(24, 24, bias=False), torch.randn(steps, 4, 24)
    module, optimizer = DistributedDataParallel(model), torch.optim.SGD(model.parameters(), lr=0.0)
    communication = Communication.model_validate(POWERSGD | {"powersgd_rank": 1})
    gradient_sync = GradientSync.of(communication, module, optimizer, None, Traffic(1))
    scaler, seen = SharedScaler("cpu", enabled=True), []
    scaler.set_growth_interval(growth_interval)

    def forward_backward() -> tuple[torch.Tensor, int]:
        loss = module(samples[session.state.step]).square().sum()
        scaler.scale(loss).backward()
        return loss.detach(), 1

    def clip() -> torch.Tensor:
        assert model.weight.grad is not None
        seen.append(model.weight.grad.clone())
        return model.weight.grad.norm()

    session: Any = SimpleNamespace(
        params=SimpleNamespace(seed=0), state=SimpleNamespace(step=0), clip=clip,
        group=Group(ranks=Ranks(), layout=Layout(), device=torch.device("cpu")),
        learner=SimpleNamespace(gradient_sync=gradient_sync, scaler=scaler, optimizer=optimizer),
    )  # fmt: skip
    for session.state.step in range(steps):
        _once(session, forward_backward, StopRequest(), 0.0)
        optimizer.zero_grad()
    assert scaler.get_scale() == 65536 * 2 ** (steps // growth_interval)
    return seen


def test_powersgds_errors_follow_the_scale_of_the_loss() -> None:
    """In fp16 it doubles and halves, and gradients with it; what was not sent yet must not weigh half or double."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        constant, growing = unscaled_gradients(8, 100), unscaled_gradients(8, 3)
    finally:
        dist.destroy_process_group()
    assert not torch.equal(constant[3], constant[4])
    assert all(torch.equal(one, other) for one, other in zip(constant, growing, strict=True))


class Alone(Meetings):
    """Of one copy."""

    def _average(self, tensors: list[torch.Tensor]) -> None:
        pass


def test_the_outer_step_begins_where_the_copies_parted() -> None:
    """Not at the weights that the training began with: that would take back a part of all steps before."""
    communication = Communication(local_steps=2, local_after=4, outer_lr=0.5)
    model = nn.Linear(1, 1, bias=False)
    meetings = Alone(communication, model, torch.optim.SGD(model.parameters(), lr=1.0), None, Traffic(1))  # type: ignore[arg-type]
    with torch.no_grad():
        for done in range(1, 7):
            model.weight.fill_(float(done))  # 4 when they part, 6 when they meet
            meetings.after(done, 8)
    assert model.weight.item() == 4 + 0.5 * (6 - 4)


def test_a_meeting_of_one_is_a_step_of_nesterov() -> None:
    """Alone, the outer optimiser is torch's SGD with Nesterov momentum on the move since the last meeting."""
    communication = Communication(local_steps=2, outer_lr=0.7, outer_momentum=0.9)
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    outer = torch.optim.SGD(twin.parameters(), lr=0.7, momentum=0.9, nesterov=True)

    meetings = Alone(communication, model, torch.optim.SGD(model.parameters(), lr=1.0), None, Traffic(1))  # type: ignore[arg-type]
    for _ in range(3):
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
                move = torch.randn_like(ours)
                ours.add_(move)
                theirs.grad = -(ours - theirs)
        meetings.meet()
        outer.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_counts_steps_is_not_averaged() -> None:
    """torch keeps it on the host, where a GPU's ranks do not speak."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.NAdam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    meetings = Alone(Communication(local_steps=2), model, optimizer, None, Traffic(1))  # type: ignore[arg-type]
    assert [tuple(slot.shape) for slot in meetings._states()] == [(2, 3), (2, 3), (2,), (2,)]


def test_copies_meet_at_the_end_and_are_the_same_before_they_part() -> None:
    communication = Communication(local_steps=4, local_after=8)
    meetings = Meetings(communication, nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)]), None, Traffic(2))  # type: ignore[arg-type]
    assert [step for step in range(14) if meetings.is_local(step)] == [8, 9, 10, 11, 12, 13]
    assert [done for done in range(15) if meetings.due(done, 14)] == [12, 14]
    assert [done for done in range(15) if meetings.together(done, 14)] == [*range(9), 12, 14]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"communication": {"local_steps": 3}}, "eval_every = 4 is no multiple of communication.local_steps = 3"),
        ({"communication": {"outer_lr": 0.7}}, "local_steps = 1"),
        ({"communication": {"local_steps": 4, "compression": "powersgd"}}, "compresses gradients"),
        ({"ranks": 2, "parallel": {"shard": 2}, "communication": {"compression": "bf16"}}, "'shard': 2"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, train: dict[str, Any], message: str) -> None:
    from storage.errors import ParamsError

    with pytest.raises(ParamsError, match=message):
        make_text(tmp_path, train={"eval_every": 4, "checkpoint_every": 4, **train})
