"""torch.distributed.checkpoint's storage interface over a lake's zone: safetensors files and a JSON manifest.

Each rank writes one file, an object of the zone (`objects/<digest>.safetensors`), with a tensor for each of its chunks:
`name@offsets`.
torch's own file storage pickles its metadata and all values that aren't tensors, and so runs code when it loads.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from pipelines.training.checkpoints.chunks import raw, raw_type
from pipelines.training.checkpoints.manifest import CheckpointManifest, Damaged, Tensors
from pipelines.training.checkpoints.tensor_files import SUFFIX, chunk_key, parts, split
from storage.digest import digest_bytes
from storage.errors import DigestError
from storage.lake import StoredObject, Zone
from storage.mapped import map_file

#: Called on rank 0 with all that a manifest holds: files, tensors, values.
Commit = Callable[[dict[str, tuple[int, str]], dict[str, Tensors], dict[str, Any]], None]


@dataclass(frozen=True)
class _Written:
    """Of a chunk: its sizes, and the file that has it."""

    sizes: tuple[int, ...]
    file: StoredObject


class ZoneWriter(StorageWriter):
    """Each rank's part becomes one object of the zone; on rank 0 `commit` then makes the checkpoint complete."""

    def __init__(self, zone: Zone, commit: Commit) -> None:
        self.zone, self.commit = zone, commit

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        values = [item for item in plan.items if item.type is WriteItemType.BYTE_IO]
        results = [WriteResult(item.index, 0, _value(planner.resolve_data(item))) for item in values]
        chunks = [(item, _tensor(planner.resolve_data(item))) for item in plan.items if item.tensor_data is not None]
        if chunks:
            chunks.sort(key=lambda pair: -pair[1].element_size())  # so that each starts at a multiple of its width
            named = [(chunk_key(item.index.fqn, item.index.offset), tensor) for item, tensor in chunks]
            stored = self.zone.publish_parts(parts(named), SUFFIX)
            results += [
                WriteResult(item.index, tensor.nbytes, _Written(tuple(tensor.shape), stored)) for item, tensor in chunks
            ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files: dict[str, tuple[int, str]] = {}
        tensors: dict[str, Tensors] = {}
        values: dict[str, Any] = {}
        for result in (result for of_rank in results for result in of_rank):
            name, written = result.index.fqn, result.storage_data
            if not isinstance(written, _Written):
                values[name] = written
                continue
            files[written.file.path] = (written.file.bytes, written.file.digest)
            about: Any = metadata.state_dict_metadata[name]
            dtype = str(about.properties.dtype).removeprefix("torch.")
            tensor = tensors.setdefault(name, Tensors(dtype, list(about.size), []))
            tensor.chunks.append((list(result.index.offset or ()), list(written.sizes), written.file.path))
        self.commit(files, tensors, values)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _value(found: Any) -> Any:
    return json.loads(found.getvalue())


def _tensor(found: Any) -> Tensor:
    assert isinstance(found, Tensor)
    return found


class ZoneReader(StorageReader):
    """Reads what a manifest names; each file that is read is verified in whole first, and its header compared with the
    manifest. Raises Damaged."""

    def __init__(self, zone: Zone, manifest: CheckpointManifest) -> None:
        self.zone, self.manifest, self.contents = zone, manifest, manifest.contents()

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Of the tensors; the values are in the manifest already."""
        about: dict[str, Any] = {}
        files: dict[MetadataIndex, str] = {}
        for name, tensor in self.manifest.tensors.items():
            boxes = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes, _ in tensor.chunks]
            properties = TensorProperties(dtype=tensor.torch_dtype)
            about[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), boxes)
            files |= {MetadataIndex(name, torch.Size(at)): file for at, _, file in tensor.chunks}
        return Metadata(about, storage_data=files)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        self.files: dict[MetadataIndex, str] = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.files[item.storage_index], []).append(item)
        for path, items in by_file.items():
            contents = self.contents[path]
            try:
                found = split(self._verified(path), contents)
            except ValueError as error:
                raise Damaged(f"{self.zone.describe(path)}: {error}") from error
            for item in items:
                target = planner.resolve_tensor(item)
                key = chunk_key(item.storage_index.fqn, item.storage_index.offset)
                whole = np.frombuffer(found[key], raw_type(target.dtype)).reshape(contents[key][1])
                box = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
                np.copyto(raw(target), whole[box])
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _verified(self, path: str) -> memoryview:
        """The bytes of a file, mapped where it is local."""
        size, digest = self.manifest.files[path]
        what = self.zone.describe(path)
        if not self.zone.exists(path, size):
            raise Damaged(f"{what} is missing, or has not the {size} bytes that it should have")
        local = self.zone.local_path(path)
        if local is not None:
            data = memoryview(map_file(local)).cast("B")
            if digest_bytes(data) != digest:
                raise Damaged(f"{what} has another digest than the manifest says")
            return data
        try:
            return self.zone.read(path, digest, size)
        except DigestError as error:
            raise Damaged(str(error)) from error

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False
