"""Clones that share a lake: the checkpoints of equal trainings are each clone's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.servers import S3
from support.training_samples import losses, make_signalling, with_train, without_mlflow
from torch import nn

from pipelines.params import Checkpoints as Rules
from pipelines.training import train
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.place import OWNERS, find_place, newest
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session
from pipelines.workspace import Aside, Workspace
from storage.errors import FormatError, Interrupted, ParamsError
from storage.lake import Zone
from storage.named import NamedFiles

pytestmark = pytest.mark.xdist_group("s3")
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    monkeypatch.setenv("SIGNAL", "SIGTERM")


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for checkpoints that clones share."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://lake/{tmp_path.name}"


def clone(root: Path, url: str, **rules: Any) -> Workspace:
    return make_signalling(root, train={"steps": 12, "checkpoint_every": 2, "checkpoints": {"url": url, **rules}})


def stop_at(ws: Workspace, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, up to a SIGTERM in the step that is the model's so many-th in this start."""
    monkeypatch.chdir(ws.root)
    monkeypatch.setenv("SIGNAL_AT", str(calls))
    with pytest.raises(Interrupted):
        train(ws)


def finish(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.root)
    monkeypatch.setenv("SIGNAL_AT", "0")
    train(ws)


def owned(url: str) -> dict[str, int]:
    """Owner → newest step, of the only key below `url`."""
    paths = NamedFiles(Zone(Path("unused"), url)).paths()
    keys = {path.split("/")[0] for path in paths}
    return newest(Zone(Path("unused"), f"{url}/{keys.pop()}")) if keys else {}


def test_two_clones_with_one_lake_leave_each_others_checkpoints_alone(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (clone(tmp_path / name, url) for name in ("first", "second"))
    stop_at(first, 4, monkeypatch)
    stop_at(second, 9, monkeypatch)  # which saves and prunes again and again
    assert sorted(owned(url).values()) == [4, 9]
    said = capsys.readouterr().out
    assert "(step 4). This one begins anew and leaves them alone." in said
    assert "going on from" not in said
    stop_at(first, 2, monkeypatch)
    assert "going on from step 4 of 12" in capsys.readouterr().out
    assert sorted(owned(url).values()) == [6, 9]
    finish(second, monkeypatch)
    assert "going on from step 9 of 12" in capsys.readouterr().out
    assert list(owned(url).values()) == [6], "a training that is done removes its own"
    finish(first, monkeypatch)
    assert "going on from step 6 of 12" in capsys.readouterr().out
    assert owned(url) == {}
    one, other = (load_file(ws.model / "model.safetensors") for ws in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(first) == losses(second)


def test_a_fresh_machine_finds_the_checkpoints_of_the_owner_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "shared")
    before = clone(tmp_path / "pod-1", url, owner="${JOB}")
    monkeypatch.setenv("JOB", "nightly")
    stop_at(before, 5, monkeypatch)
    assert owned(url) == {"nightly": 5}
    after = clone(tmp_path / "pod-2", url)
    monkeypatch.setenv("SHARDLINE_OWNER", "nightly")
    finish(after, monkeypatch)
    assert "going on from step 5 of 12" in capsys.readouterr().out
    assert not (tmp_path / "pod-2" / ".shardline" / OWNERS).exists()
    monkeypatch.setenv("SHARDLINE_OWNER", "../other")
    with pytest.raises(ParamsError, match=r"SHARDLINE_OWNER='\.\./other': expected"):
        train(after)


def test_checkpoints_of_an_earlier_version_are_gone_on_with(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which lie at the key itself, without an owner."""
    ws = clone(tmp_path / "clone", url)
    stop_at(ws, 3, monkeypatch)
    [(owner, step)] = owned(url).items()
    files = NamedFiles(Zone(Path("unused"), url))
    for path in files.paths():
        files.write(path.replace(f"/{owner}/", "/"), files.read(path))
        files.delete(path)
    assert owned(url) == {"": step}
    [record] = (ws.root / ".shardline" / OWNERS).iterdir()
    record.unlink()
    stop_at(ws, 3, monkeypatch)
    said = capsys.readouterr().out
    assert "checkpoints of an earlier version" in said
    assert "going on from step 3 of 12" in said
    assert owned(url) == {"": 6}
    finish(ws, monkeypatch)
    assert "going on from step 6 of 12" in capsys.readouterr().out
    assert owned(url) == {}


class _Machines(Ranks):
    """Rank 0 of several, each of which remembers another owner."""

    remembered: tuple[str | None, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.remembered]


def test_the_machines_of_a_job_agree_on_who_came_furthest(tmp_path: Path) -> None:
    ws = clone(tmp_path / "clone", str(tmp_path / "shared"))
    for owner, step in (("one", 4), ("two", 8), ("three", 12)):
        file = tmp_path / "shared" / KEY / owner / f"step-{step:08d}" / "manifest.json"
        file.parent.mkdir(parents=True)
        file.touch()
    machines = _Machines()
    for remembered, owner in (((None, "one"), "one"), (("one", "two"), "two"), (("one", "none"), "one")):
        object.__setattr__(machines, "remembered", remembered)
        assert find_place(ws, KEY, machines).owner == owner
    fresh = {find_place(ws, KEY, Ranks()).owner for _ in range(2)}
    assert len(fresh) == 2, "an owner is remembered from the first checkpoint on"
    place = find_place(ws, KEY, Ranks())
    place.remember()
    assert find_place(ws, KEY, Ranks()) == place
    assert place.file is not None
    place.file.write_text("../../elsewhere")
    with pytest.raises(FormatError, match="is no owner of checkpoints"):
        find_place(ws, KEY, Ranks())


def saver(folder: Path, **rules: int) -> tuple[Saver, nn.Module]:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    return Saver(Zone(folder), Rules(**rules), Ranks(), None, model, torch.optim.SGD(model.parameters(), 0.1)), model


def test_two_trainings_in_one_folder_do_not_remove_each_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copied clone, or one owner given to two."""
    (one, weights), (other, others) = saver(tmp_path, keep_last=1), saver(tmp_path, keep_last=1)
    assert (one.restore(), other.restore()) == (None, None)
    for step in range(1, 5):
        for each, model, at in ((one, weights, step), (other, others, 100 + step)):
            nn.init.constant_(model.weight, step if step < 3 else at)  # equal weights are one object
            each.save(at, Extra({}, {}), wait=True)
        assert saver(tmp_path)[0].restore() is not None
    steps = sorted(int(path.parent.name.removeprefix("step-")) for path in tmp_path.glob("step-*/manifest.json"))
    assert steps == [4, 104]
    assert len(list((tmp_path / "objects").iterdir())) == 2, "of its own ones it removes what no checkpoint names"
    said = capsys.readouterr().out
    assert said.count("is another training's, which writes to the same folder") == 2
    assert "damaged" not in said
    assert one.restore() is not None
    assert weights.weight[0, 0].item() == 4, "in the middle of a training it goes back to its own"
    one.clear()
    third, model = saver(tmp_path)
    assert third.restore() is not None
    assert model.weight[0, 0].item() == 104
    for each in (one, other, third):
        each.close()


def test_a_trial_beside_the_trainings_has_nothing_of_their_checkpoints(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    settings = {"steps": 12, "checkpoint_every": 2}
    zones = {name: str(tmp_path / "clone" / "data" / name) for name in ("raw", "curated", "shards")}
    lake = {"url": f"s3://lake/{tmp_path.name}", "zones": zones}
    ws = make_signalling(tmp_path / "clone", train=settings, lake=lake)
    stop_at(ws, 5, monkeypatch)
    assert owned(f"{lake['url']}/{ws.params.recipe}/checkpoints")
    with open_session(ws, Ranks()) as session:
        assert session.state.step == 5
    aside = Aside(tmp_path / "aside", ws.project, ws.params, ws)
    with open_session(aside, Ranks()) as session:
        assert session.state.step == 0
    with open_session(with_train(ws, lr=0.5), Ranks()) as session:
        assert session.state.step == 0
