"""What the node cache's index.json holds."""

import json
import os
from dataclasses import dataclass, field


@dataclass
class Index:
    """What index.json holds."""

    bytes: int = 0
    counted: float = 0.0  # when the folder was counted
    oldest: float = 0.0  # no pinned shard was last read before then
    ring: dict[str, int] = field(default_factory=dict)  # digest → bytes, the oldest first
    counters: dict[str, int] = field(default_factory=dict)  # of all processes

    @classmethod
    def load(cls, descriptor: int) -> "Index | None":
        """None where there is none, or a crash has torn it: then the folder is counted."""
        try:
            return cls(**json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
        except (ValueError, TypeError):
            return None

    def save(self, descriptor: int) -> None:
        self.bytes = max(0, self.bytes)  # the folder may have been deleted under us
        text = json.dumps(vars(self)).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
