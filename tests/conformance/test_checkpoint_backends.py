"""One suite over every place for checkpoints: saved, kept by rule, damaged and restored alike."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from support.servers import S3, wait_for
from torch import nn

from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.process.process_group import Ranks
from storage.errors import LakeError
from storage.lake import Zone
from storage.named import NamedFiles

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture(params=["folder", "file", "s3"])
def zone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zone:
    """A local folder, a file:// URL, and a real S3 server."""
    if request.param == "folder":
        return Zone(tmp_path / "key")
    if request.param == "file":
        return Zone(tmp_path / "unused", f"file://{tmp_path}/lake/key")
    server: S3 = request.getfixturevalue("s3")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return Zone(tmp_path / "unused", f"s3://lake/checkpoints/{tmp_path.name}")


Open = Callable[..., Saver]


@pytest.fixture
def opened(zone: Zone) -> Iterator[Open]:
    savers: list[Saver] = []

    def open_saver(seed: int, rules: Rules | None = None) -> Saver:
        torch.manual_seed(seed)
        model = nn.Linear(64, 64)
        optimizer = torch.optim.AdamW(model.parameters())
        savers.append(Saver(zone, rules or Rules(), Ranks(), None, model, optimizer))
        return savers[-1]

    yield open_saver
    for saver in savers:
        saver.close()


def step(saver: Saver, number: int, **more: bool) -> torch.Tensor:
    """Train a step, save it, and return the weights that it led to."""
    for parameter in saver.model.parameters():
        parameter.grad = torch.full_like(parameter, float(number))
    saver.optimizer.step()
    saver.save(number, Extra({}, {"train": number}), **more)
    return weight(saver).clone()


def weight(saver: Saver) -> torch.Tensor:
    found = saver.model.get_parameter("weight")
    return found.detach()


def restored(saver: Saver) -> int | None:
    found = saver.restore()
    return None if found is None else found.values["train"]


def put(zone: Zone, path: str, data: bytes | None) -> None:
    """Other bytes in the place of a file, or none, behind everyone's back."""
    fs, root = fsspec.core.url_to_fs(zone.url or str(zone.folder), skip_instance_cache=True)
    if data is None:
        fs.rm_file(f"{root}/{path}")
    else:
        fs.pipe_file(f"{root}/{path}", data)


def steps(zone: Zone) -> list[str]:
    return sorted(path for path in NamedFiles(zone).paths() if path.endswith("manifest.json"))


def test_saved_in_the_background_and_restored(opened: Open, zone: Zone) -> None:
    saver = opened(0)
    for number in (1, 2, 3):
        last = step(saver, number)
    saver.wait()
    assert steps(zone) == ["step-00000002/manifest.json", "step-00000003/manifest.json"]
    assert len(zone.sizes()) == 2
    again = opened(1)
    assert restored(again) == 3
    assert torch.equal(weight(again), last)
    saver.clear()
    assert NamedFiles(zone).paths() == {}


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "manifest"])
def test_a_damaged_one_is_passed_over(
    opened: Open, zone: Zone, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saver, files = opened(0), NamedFiles(zone)
    first = step(saver, 1, wait=True)
    step(saver, 2, wait=True)
    newest = "step-00000002/manifest.json"
    [victim] = json.loads(files.read(newest))["files"]
    whole = files.read(newest if damage == "manifest" else victim)
    flipped = whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]
    put(zone, newest if damage == "manifest" else victim, {"gone": None, "cut": whole[:-1]}.get(damage, flipped))
    again = opened(1)
    assert restored(again) == 1
    assert torch.equal(weight(again), first)
    assert f"{newest}: damaged, passed over" in capsys.readouterr().out


def test_a_place_that_cannot_be_reached_is_told_and_passes(
    opened: Open, zone: Zone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the background training goes on; where it is waited for, there is one clear error."""
    if zone.root is not None:
        zone.root.parent.mkdir(parents=True, exist_ok=True)
        zone.root.write_text("a file where the folder should be")
        heal: Callable[[], None] = zone.root.unlink
    else:
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        object.__setattr__(zone, "timeout", 0.5)
        heal = partial(monkeypatch.setenv, "AWS_ENDPOINT_URL", endpoint)
    saver = opened(0)
    step(saver, 1)
    wait_for(lambda: not saver.busy, "the save in the background")
    assert "The checkpoint of step 1 was not written (there is none yet)" in capsys.readouterr().out
    with pytest.raises(LakeError, match="step 2 was not written"):
        step(saver, 2, wait=True)
    heal()
    step(saver, 3, wait=True)
    assert steps(zone) == ["step-00000003/manifest.json"]
