"""A global batch that grows: the same samples for any number of ranks and from any state, through to training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, TINY, write_params
from support.flat_streams import flat_stream
from support.training_samples import make_points, without_mlflow

from pipelines.caching.warm import _ahead
from pipelines.params import load_params
from pipelines.profiling.replay import replay
from pipelines.streaming import Stream
from pipelines.training import train
from pipelines.training.data.loader import Loader
from pipelines.training.parallelism import Layout
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session
from pipelines.training.worker import planned
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError

RAMP = {0: 4, 5: 8, 9: 16}
#: Of 70 rows: the third epoch begins in the middle of the ramp's last size.
SIZES = [4] * 5 + [8] * 4 + [16, 2] + [16, 16, 16, 16, 6] + [16]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


def workspace(folder: Path, **train: Any) -> Workspace:
    settings = {"checkpoint_every": 7, "log_every": 1, "steps": len(SIZES)} | train
    return make_points(folder, train=settings, stream={"batch_size": 16, "batch_ramp": RAMP})


def stream_of(ws: Workspace, **options: Any) -> Stream:
    zone = ws.zone("shards")
    about = {"split": "train", "batch_size": 16, "seed": 3, "batch_ramp": RAMP}
    return flat_stream(zone, zone.manifest(), **about | options)


def test_resumed_at_every_step_by_any_number_of_ranks_the_batches_are_the_same(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    with stream_of(ws) as stream:
        states, whole, places = [], [], []
        for number in range(len(SIZES)):
            states.append(stream.state_dict())
            places.append(stream.place(number))
            batch = next(stream)
            whole.append(batch.ids())
            assert (batch.epoch, batch.step) == places[-1] == (states[-1]["epoch"], states[-1]["step"])
            assert batch.size == len(batch.ids()) == SIZES[number]
            assert stream.batch_size(number) == max(size for step, size in RAMP.items() if step <= number)
        assert [stream.steps_of(epoch) for epoch in range(3)] == [11, 5, 5]
        assert [stream.steps_until(epochs) for epochs in (1, 1.5, 2)] == [11, 14, 16]
        stream.set_epoch(1)
        assert (len(stream), stream.batch(-1).ids()) == (5, whole[15])
    for epoch in (whole[:11], whole[11:16]):
        assert sorted(name for ids in epoch for name in ids) == sorted(f"train:{row}" for row in range(70))
    for world in (1, 3):
        streams = [stream_of(ws, rank=rank, world=world, prefetch=0) for rank in range(world)]
        for number, state in enumerate(states):
            for part in streams:
                part.load_state_dict(state)
            tail = zip(*([next(part).ids() for _ in range(number, len(SIZES))] for part in streams), strict=True)
            assert [[name for part in parts for name in part] for parts in tail] == whole[number:]


def test_a_state_of_another_ramp_is_refused(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    with stream_of(ws) as ramped, stream_of(ws, batch_ramp=None) as plain:
        with pytest.raises(ParamsError, match=r"stream.batch_ramp was None and is {'0': 4, '5': 8, '9': 16}"):
            ramped.load_state_dict(plain.state_dict())
        with pytest.raises(ParamsError, match=r"stream.batch_ramp was {'0': 4, '5': 8, '9': 16} and is None"):
            plain.load_state_dict(ramped.state_dict())


def test_short_batches_are_dropped_padded_and_missed(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    with stream_of(ws, last="drop", epochs=2) as dropped:
        assert [batch.size for batch in dropped] == [size for size in SIZES[:16] if size not in (2, 6)]
    with stream_of(ws, last="pad", epochs=1) as padded:
        *_, last = padded
    assert (last["mask"].tolist(), len(last["x"])) == ([True] * 2 + [False] * 14, 16)
    with pytest.raises(DataError, match="70 samples, fewer than one batch of 80, and last='drop'"):
        stream_of(ws, last="drop", batch_size=80, batch_ramp={0: 4, 5: 80})


def trained(ws: Workspace, monkeypatch: pytest.MonkeyPatch, until: int | None = None) -> list[list[str]]:
    """Train (until step `until` fails); the ids of each step's samples."""
    from pipelines.training import loop

    seen: list[list[str]] = []
    real = loop.forward_backward

    def noting(s: Any, batch: Any) -> Any:
        if s.state.step == until:
            raise RuntimeError("enough")
        seen.append(batch.ids())
        return real(s, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "forward_backward", noting)
        if until is None:
            train(ws)
        else:
            with pytest.raises(RuntimeError, match="enough"):
                train(ws)
    return seen


def test_training_takes_the_ramp_s_batches_resumes_and_replays_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = workspace(tmp_path, accumulate=2)
    whole = trained(ws, monkeypatch)
    assert [len(ids) for ids in whole] == SIZES
    model = (ws.model / "model.safetensors").read_bytes()
    found = json.loads(ws.metrics("train").read_text())
    assert found["epochs"] == pytest.approx(sum(SIZES) / 70, abs=1e-6)
    assert trained(ws, monkeypatch, until=10) == whole[:10]
    assert trained(ws, monkeypatch) == whole[7:]
    assert (ws.model / "model.safetensors").read_bytes() == model
    for step in (5, 6, 11, 16, 17):
        assert sorted(name for name, _ in replay(ws, step).samples) == sorted(whole[step - 1])


def test_epochs_rates_caches_and_other_trainers_know_the_ramp(tmp_path: Path) -> None:
    ws = workspace(tmp_path, steps=None, epochs=1.5)
    with open_session(ws, Ranks()) as session:
        assert session.goal.steps == 14
        assert [planned(session, step) for step in (4, 5)] == [{"batch_size": 4.0}, {"batch_size": 8.0}]
        loader = Loader(session.data.stream, session.goal.task, session.group)
        assert [sum(1 for _ in loader) for _ in range(3)] == [11, 5, 5]
    assert len(list(_ahead(ws, 0, 2))) == 3
    params = ws.params.model_copy(update={"train": ws.params.train.model_copy(update={"ranks": 8})})
    with pytest.raises(ParamsError, match=r"data 8 × shard 1 = 8 > stream.batch_ramp at step 0 = 4"):
        Layout.of(params, 8, 0)


def test_the_page_s_example_is_one(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "optimizers.md").read_text().partition("## A batch that grows")[2]
    sections = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    write_params(tmp_path, {**TINY, **sections})
    assert load_params(tmp_path / "params.yaml").stream.batch_ramp == {0: 16, 500: 32, 2000: 64}


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (
            {"batch_ramp": {0: 4, 5: 16}, "batch_size": 8},
            r"stream: batch_ramp ends at 16, but batch_size = 8: set stream",
        ),
        ({"batch_ramp": {1: 4, 5: 8}, "batch_size": 8}, r"begins at step 1: give the size at step 0"),
        ({"batch_ramp": {0: 4, 5: 6}, "batch_size": 6}, r"6 is no multiple of the first size, 4: set it to 8"),
        ({"batch_ramp": {0: 8, 5: 4}, "batch_size": 4}, r"4 after 8, but each size must be larger"),
        ({"batch_ramp": {0: 4, 5: 8}, "batch_size": 8, "lanes": 8}, r"lanes = 8 does not divide 4, with which"),
        ({"batch_ramp": {"x": 4}}, r"stream.batch_ramp: 'x' is no step"),
        ({"batch_ramp": {0: 2.5}}, r"stream.batch_ramp: 2.5 at step 0 is no batch"),
        ({"batch_ramp": [4, 8]}, r"stream.batch_ramp: must be step: samples"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(tmp_path: Path, stream: dict[str, Any], message: str) -> None:
    write_params(tmp_path, {**TINY, "stream": stream})
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")
