"""torch's planners, for chunks instead of tensors and JSON instead of pickle."""

import io
import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem


class ChunkSavePlanner(DefaultSavePlanner):
    """Saves {name: Chunk or JSON value}. What several ranks hold is written by one, so that all write about as much; of
    `moving`, in which they may differ, by the first."""

    def __init__(self, moving: Collection[str] = ()) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.moving = moving

    def create_local_plan(self) -> SavePlan:
        return replace(super().create_local_plan(), planner_data=list(self.moving))

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        moving = {name for plan in all_plans for name in plan.planner_data}
        seen: set[MetadataIndex] = set()
        plans = []
        for plan in all_plans:
            plans.append(replace(plan, items=[item for item in plan.items if item.index not in seen]))
            seen |= {item.index for item in plan.items if item.index.fqn in moving}
        return super().create_global_plan(plans)

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
