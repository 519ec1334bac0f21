"""Checkpoints: whole or absent, never unpickled.

    <folder>/step-00000100/tensors.safetensors    weights, optimiser state, best weights
                           state.json             format version, digest of the tensors, JSON state

A checkpoint is written into a temporary folder, synced, then renamed; the last two are kept.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.params import Params
from pipelines.progress import say
from storage.atomic import storage_errors, sync_folder
from storage.digest import digest_file, digest_json
from storage.errors import FormatError

FORMAT = 1
TENSORS = "tensors.safetensors"
STATE = "state.json"
#: Parameters that change how a result is computed, not (but for rounding) which one: a resumed run may change them.
NEUTRAL = {"train": {"checkpoint_every", "log_every", "device", "ranks", "threads", "accumulate", "parallel"}}


def checkpoint_key(manifest: str, params: Params) -> str:
    """Digest of all that decides a training's result: only a training with the same one is gone on with."""
    sections = {
        name: getattr(params, name).model_dump(exclude=NEUTRAL.get(name)) for name in ("stream", "model", "train")
    }
    return digest_json({"manifest": manifest, "seed": params.seed, **sections})


@dataclass
class Checkpoint:
    """Named groups of tensors ("model", "optimizer", "best"), and JSON values."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in `folder`."""

    folder: Path
    keep: int = 2

    def save(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write the checkpoint of `step`, then remove all but the last `keep`. Raises LakeError for a full disk."""
        target = self.folder / f"step-{step:08d}"
        flat = {f"{group}/{name}": t for group, named in checkpoint.tensors.items() for name, t in named.items()}
        with storage_errors(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=self.folder))
            try:
                save_file({name: tensor.contiguous() for name, tensor in flat.items()}, temporary / TENSORS)
                state = {"format": FORMAT, "digest": digest_file(temporary / TENSORS), **checkpoint.state}
                (temporary / STATE).write_text(json.dumps(state))
                _sync(temporary)
                shutil.rmtree(target, ignore_errors=True)  # of the same step, before an interruption
                temporary.rename(target)
                sync_folder(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in list(self._newest_first())[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self, before: int | None = None) -> Path | None:
        """The newest whole checkpoint (of a step before `before`); damaged ones are passed over, with a word. Raises
        FormatError (see `load`)."""
        for folder in self._newest_first():
            if before is not None and int(folder.name.removeprefix("step-")) >= before:
                continue
            state = _read_state(folder)
            tensors = folder / TENSORS
            if state and tensors.is_file() and digest_file(tensors) == state["digest"]:
                return folder
            say(f"{folder}: damaged, passed over; going on from the checkpoint before it, if there is one.")
        return None

    def load(self, folder: Path) -> Checkpoint:
        """The checkpoint in `folder`, on the CPU. Raises FormatError for an unknown format version."""
        tensors: dict[str, dict[str, Tensor]] = {}
        with safe_open(folder / TENSORS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = key.partition("/")
                tensors.setdefault(group, {})[name] = file.get_tensor(key)
        return Checkpoint(tensors, _read_state(folder) or {})

    def clear(self) -> None:
        """Remove all of them: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed save left behind."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("step-*"), reverse=True))


def _read_state(folder: Path) -> dict[str, Any] | None:
    """The JSON values of a checkpoint; None when it is damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        found = state.pop("format")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if found != FORMAT:
        raise FormatError(
            f"{folder}: checkpoint format {found!r}, but this Shardline reads format {FORMAT} only. Finish the "
            f"training with the Shardline that wrote it, or delete {folder.parent} to start it again."
        )
    return state if "digest" in state else None


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
