"""How a rank tells its launcher why it stopped: one JSON file a rank of this machine, written before it leaves."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from storage import errors
from storage.atomic import write_atomically
from storage.errors import Interrupted, ShardlineError
from storage.redact import mask, masked_traceback


@dataclass(frozen=True)
class Report:
    """`kind`: the exception's class; `lines`: the end of its traceback; `at`: seconds since the epoch. Masked."""

    rank: int
    kind: str
    message: str
    lines: list[str]
    at: float
    signum: int | None = None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Report":
        lines = masked_traceback(error).splitlines()[-25:]
        return cls(rank, type(error).__name__, mask(str(error)), lines, time.time(), getattr(error, "signum", None))

    def save(self, folder: Path, local_rank: int | None = None) -> None:
        """`local_rank`, on this machine, stays when an elastic job counts its ranks anew."""
        write_atomically(report_file(folder, self.rank if local_rank is None else local_rank), self._json())

    def _json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def ours(self) -> bool:
        """Whether it is an error that is meant for people."""
        return isinstance(getattr(errors, self.kind, None), type)

    def error(self) -> ShardlineError:
        """The exception again; its class may take other arguments than its text."""
        cls: type[ShardlineError] = getattr(errors, self.kind)
        if issubclass(cls, Interrupted):
            return Interrupted(self.message, self.signum or 15)
        again = cls.__new__(cls)
        Exception.__init__(again, self.message)
        return again


def report_file(folder: Path, local_rank: int) -> Path:
    return folder / f"report-{local_rank}.json"


def read_reports(folder: Path) -> list[Report]:
    """The reports in `folder`, the earliest first."""
    reports = [Report(**json.loads(file.read_text())) for file in folder.glob("report-*.json")]
    return sorted(reports, key=lambda report: report.at)
