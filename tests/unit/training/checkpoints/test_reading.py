"""What a checkpoint says of itself is believed only where all of it fits together, whatever its digests are."""

import json
import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.params.train.checkpoints import Checkpoints as Rules
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.manifest import FILENAME, CheckpointManifest, Damaged, fault
from pipelines.training.checkpoints.tensor_files import parts, split
from pipelines.training.process.process_group import Ranks
from pipelines.training.state import TrainState
from storage.digest import digest_bytes, digest_json
from storage.errors import FormatError
from storage.lake import Zone

Json = dict[str, Any]
Cut = tuple[list[int], list[tuple[list[int], list[int]]]]


# -- chunks cover their tensor -----------------------------------------------------------------------------------------


@st.composite
def tilings(draw: st.DrawFn) -> Cut:
    """A shape, and boxes that fill it: cut again and again along some axis."""
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    boxes = [([0] * len(shape), list(shape))]
    for _ in range(draw(st.integers(0, 5))):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axes = [axis for axis, size in enumerate(sizes) if size > 1]
        if not axes:
            boxes.append((offsets, sizes))
            continue
        axis = draw(st.sampled_from(axes))
        at = draw(st.integers(1, sizes[axis] - 1))
        low, high, moved = list(sizes), list(sizes), list(offsets)
        low[axis], high[axis], moved[axis] = at, sizes[axis] - at, offsets[axis] + at
        boxes += [(offsets, low), (moved, high)]
    return shape, draw(st.permutations(boxes))


@given(tilings())
def test_boxes_that_fill_a_tensor_are_sound(cut: Cut) -> None:
    assert fault(*cut) is None


@given(tilings(), st.data())
def test_boxes_are_sound_just_where_each_element_is_in_one(cut: Cut, data: st.DataObject) -> None:
    shape, boxes = cut
    changed = [(list(offsets), list(sizes)) for offsets, sizes in boxes]
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["drop", "double", "move"]))
        if kind == "drop" and changed:
            changed.pop(data.draw(st.integers(0, len(changed) - 1)))
        elif changed:
            box = changed[data.draw(st.integers(0, len(changed) - 1))]
            if kind == "double":
                changed.append((list(box[0]), list(box[1])))
            elif shape:
                side = box[data.draw(st.integers(0, 1))]
                side[data.draw(st.integers(0, len(shape) - 1))] += data.draw(st.sampled_from([-1, 1]))
    inside = all(
        at >= 0 and size > 0 and at + size <= whole
        for offsets, sizes in changed
        for at, size, whole in zip(offsets, sizes, shape, strict=True)
    )
    found = np.zeros(shape, int)
    if inside:
        for offsets, sizes in changed:
            found[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] += 1
    wrong = fault(shape, changed)
    assert (wrong is None) == bool(inside and (found == 1).all())
    if inside and wrong is not None:
        place = next(at for at in product(*map(range, shape)) if found[at] != 1)
        assert wrong.endswith(f"{'overlap' if found[place] > 1 else 'leave a gap'} at {list(place)}")


def test_a_tensor_without_elements_has_no_chunks() -> None:
    assert fault([0, 3], []) is None
    assert fault([0, 3], [([0, 0], [0, 3])]) is not None
    assert fault([3], []) == "its chunks leave a gap at [0]"
    assert fault([], []) == "its chunks leave a gap at []"


def test_many_chunks_are_looked_through_in_linear_time() -> None:
    boxes = [([at, 0], [1, 7]) for at in range(50_000)]
    assert fault([50_000, 7], boxes) is None
    assert fault([50_000, 7], boxes[:-1]) == "its chunks leave a gap at [49999, 0]"
    axes = 30
    corner = fault([2] * axes, [([0] * axes, [1] * axes)])
    assert corner == "it is cut along 30 axes, and may be along 8"


# -- manifests with the right digest -----------------------------------------------------------------------------------


class Twice:
    """A model, trained for a step and another one, with a checkpoint of each in `folder`."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.model = folder, nn.Linear(6, 4)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.saver = Saver(Zone(folder), Rules(), Ranks(), None, self.model, self.optimizer)
        for step in (1, 2):
            self.model(torch.ones(2, 6)).sum().backward()
            self.optimizer.step()
            self.saver.save(step, Extra({}, {"train": {"step": step}}), wait=True)
            if step == 1:
                self.first = self.model.weight.detach().clone()
        self.manifest = folder / "step-00000002" / FILENAME

    def rewrite(self, change: Callable[[Json], Any]) -> None:
        """Change the newest manifest, and give it the digest of what it is then."""
        body = json.loads(self.manifest.read_text())
        del body["digest"]
        change(body)
        version = body.pop("format")
        self.manifest.write_text(json.dumps({"format": version, "digest": digest_json(body), **body}))

    def passed_over(self) -> bool:
        """Whether the first checkpoint is what a restart takes."""
        with torch.no_grad():
            self.model.weight.fill_(7.0)
        found = self.saver.restore()
        assert found is not None
        return found.values["train"]["step"] == 1 and torch.equal(self.model.weight, self.first)


@pytest.fixture
def twice(tmp_path: Path) -> Any:
    made = Twice(tmp_path / "key")
    yield made
    made.saver.close()


WEIGHT = "model/weight"


def weight(body: Json) -> Json:
    about: Json = body["tensors"][WEIGHT]
    return about


def renamed(body: Json, path: str) -> None:
    """The manifest's one file, under another name."""
    [(old, about)] = body["files"].items()
    body["files"] = {path: about}
    for tensor in body["tensors"].values():
        for chunk in tensor["chunks"]:
            assert chunk[2] == old
            chunk[2] = path


BROKEN: dict[str, tuple[Callable[[Json], Any], str]] = {
    "a chunk is missing": (lambda b: weight(b)["chunks"].clear(), r"'model/weight' .* leave a gap at \[0, 0]"),
    "a chunk is too small": (
        lambda b: weight(b)["chunks"][0].__setitem__(1, [3, 6]), r"'model/weight' .* leave a gap at \[3, 0]",
    ),
    "a chunk is there twice": (
        lambda b: weight(b)["chunks"].append(weight(b)["chunks"][0]), r"'model/weight' .* overlap at \[0, 0]",
    ),
    "a chunk is outside": (
        lambda b: weight(b)["chunks"][0].__setitem__(0, [1, 0]), "'model/weight' .* not inside it",
    ),
    "a chunk has too few axes": (
        lambda b: weight(b)["chunks"][0].__setitem__(0, [0]), "'model/weight' .* not inside it",
    ),
    "a tensor has a negative size": (lambda b: weight(b).update(shape=[-4, 6]), "tensors.model/weight.shape.0"),
    "a size is a fraction": (lambda b: weight(b).update(shape=[4.0, 6]), "tensors.model/weight.shape.0"),
    "a size is a text": (lambda b: weight(b).update(shape=["4", 6]), "tensors.model/weight.shape.0"),
    "a type is none": (lambda b: weight(b).update(dtype="load"), "'model/weight' has the unknown type 'load'"),
    "a tensor is larger than its file": (
        lambda b: weight(b).update(shape=[4000, 6], chunks=[[[0, 0], [4000, 6], weight(b)["chunks"][0][2]]]),
        "is to hold .* bytes of tensors",
    ),
    "a tensor has a field too many": (lambda b: weight(b).update(device="cuda"), "tensors.model/weight.device"),
    "the manifest has a field too many": (lambda b: b.update(code="x"), "code: Unexpected keyword"),
    "a field is missing": (lambda b: b.pop("ranks"), "ranks: "),
    "files are a list": (lambda b: b.update(files=[]), "files: "),
    "tensors are a text": (lambda b: b.update(tensors="all"), "tensors: "),
    "values are a number": (lambda b: b.update(values=7), "values: "),
    "the step is a text": (lambda b: b.update(step="2"), "step: "),
    "the step is another one": (lambda b: b.update(step=3), "is of step 3"),
    "a file lies elsewhere": (lambda b: renamed(b, "../../x.safetensors"), r"'\.\./\.\./x\.safetensors' is not the"),
    "a file is absolute": (lambda b: renamed(b, "/etc/passwd"), "'/etc/passwd' is not the object"),
    "a file is named by chunks only": (lambda b: b["files"].clear(), "is named by files or by chunks only"),
    "a file has another size": (lambda b: [f.__setitem__(0, 10**6) for f in b["files"].values()], "1000000 bytes"),
    "an optimiser's state is a text": (lambda b: b["values"].update({"optimizer/weight": "x"}), "no optimiser's state"),
    "an optimiser's tensor is unknown": (
        lambda b: b["values"]["optimizer/weight"]["slots"].update(exp_avg={"tensor": "gone"}), "'exp_avg': .*gone",
    ),
    "an optimiser's slot is malformed": (
        lambda b: b["values"]["optimizer/weight"]["slots"].update(exp_avg={"list": 5}), "'exp_avg': .*5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_manifest_that_does_not_fit_together_is_passed_over(
    twice: Twice, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = BROKEN[name]
    twice.rewrite(change)
    assert twice.passed_over()
    said = capsys.readouterr().out
    assert f"{twice.manifest}: damaged, passed over" in said
    assert re.search(why, said)


def test_a_rewritten_manifest_that_fits_together_is_read(twice: Twice) -> None:
    twice.rewrite(lambda body: body.update(score=0.5))
    assert not twice.passed_over()


@pytest.mark.parametrize("text", ["[]", "7", "null", '"text"', "{}", '{"format": 2}', "[" * 100_000, "\ud800"])
def test_json_that_is_no_manifest_is_passed_over(twice: Twice, text: str) -> None:
    twice.manifest.write_bytes(text.encode(errors="surrogatepass"))
    assert twice.passed_over()


def test_no_flipped_bit_of_a_manifest_goes_unseen(twice: Twice) -> None:
    data = twice.manifest.read_bytes()
    whole = CheckpointManifest.decode(data, "it")
    unseen = []
    for bit in range(0, 8 * len(data), 3):  # 3 and 8 have no common factor
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            unseen.append(CheckpointManifest.decode(bytes(changed), "it"))
        except (Damaged, FormatError):
            continue
    assert all(found == whole for found in unseen), "a space that became a tab changes nothing"


# -- files with the right digest ---------------------------------------------------------------------------------------


HEADERS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "transposed": (lambda h: h[f"{WEIGHT}@0,0"].update(shape=[6, 4]), "'model/weight@0,0' is {"),
    "another type": (lambda h: h[f"{WEIGHT}@0,0"].update(dtype="I32"), "'model/weight@0,0' is {"),
    "other bytes": (lambda h: h[f"{WEIGHT}@0,0"].update(data_offsets=[96, 192]), "don't lie end to end"),
    "before the first byte": (lambda h: h[f"{WEIGHT}@0,0"].update(data_offsets=[-96, 0]), "don't lie end to end"),
    "no place": (lambda h: h[f"{WEIGHT}@0,0"].update(data_offsets=["0", 96]), "has no place"),
    "no object": (lambda h: h.update({f"{WEIGHT}@0,0": 7}), "has no place"),
    "gone": (lambda h: h.pop(f"{WEIGHT}@0,0"), "'model/weight@0,0' is not in the file"),
    "one too many": (lambda h: h.update(more=h[f"{WEIGHT}@0,0"]), "'more' is in the file"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_file_that_is_not_what_the_manifest_says_is_passed_over(
    twice: Twice, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = HEADERS[name]
    [path] = json.loads(twice.manifest.read_text())["files"]
    data = (twice.folder / path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header[f"{WEIGHT}@0,0"]["data_offsets"] == [0, 96]
    change(header)
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
    digest = digest_bytes(changed)
    (twice.folder / f"objects/{digest}.safetensors").write_bytes(changed)

    def pointed(body: Json) -> None:
        renamed(body, f"objects/{digest}.safetensors")
        body["files"] = {f"objects/{digest}.safetensors": [len(changed), digest]}

    twice.rewrite(pointed)
    assert twice.passed_over()
    said = capsys.readouterr().out
    assert f"{digest}.safetensors: " in said
    assert why in said


@given(st.integers(0), st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), min_size=1, max_size=3))
def test_no_flipped_bit_of_a_header_gives_other_bytes(bit: int, dtypes: list[torch.dtype]) -> None:
    tensors: list[tuple[str, Tensor]] = [
        (f"t{place}@0", torch.arange(place + 2).to(dtype)) for place, dtype in enumerate(dtypes)
    ]
    data = b"".join(bytes(part) for part in parts(tensors))
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
    whole = {name: bytes(part) for name, part in split(memoryview(data), entries).items()}
    assert {name: len(part) for name, part in whole.items()} == {name: tensor.nbytes for name, tensor in tensors}
    header = 8 + int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    changed[bit // 8 % header] ^= 1 << bit % 8
    try:
        found = split(memoryview(bytes(changed)), entries)
    except ValueError:
        return
    assert {name: bytes(part) for name, part in found.items()} == whole


# -- what it says of the training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(step="2"),
        lambda v: v.update(step=1.5),
        lambda v: v.update(train_curve=[1]),
        lambda v: v.update(train_curve=[{"step": "x"}]),
        lambda v: v.update(best_loss=[]),
        lambda v: v.update(unknown=1),
        lambda v: v.pop("best_loss"),
    ],
)
def test_a_trainings_state_of_other_types_is_refused(change: Callable[[Json], Any]) -> None:
    values = TrainState(step=2, train_curve=[{"step": 2, "train_loss": math.nan}]).to_json()
    again = TrainState.from_json(json.loads(json.dumps(values)))
    assert again.step == 2
    assert type(again.train_curve[0]["step"]) is int
    change(values)
    with pytest.raises((ValueError, KeyError, TypeError)):
        TrainState.from_json(values)
