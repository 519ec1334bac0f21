"""torch's planners, for chunks instead of tensors and JSON instead of pickle."""

import io
import json
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem


class ChunkSavePlanner(DefaultSavePlanner):
    """Saves {name: Chunk or JSON value}. What several ranks hold is written by one, so that all write about as much."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The data of a chunk, or a value."""
        found = self.state_dict[index.fqn]
        return found if index.offset is None else found.data

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """Values become JSON; torch's planner would pickle them."""
        return object if isinstance(object, Tensor) else io.BytesIO(json.dumps(object).encode())


class ChunkLoadPlanner(DefaultLoadPlanner):
    """Fills the chunks of {name: Chunk} from those that were saved, whatever boxes these are."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found: Tensor = self.state_dict[index.fqn].data
        return found
