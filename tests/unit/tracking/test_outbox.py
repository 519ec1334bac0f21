"""What is on its way to MLflow when the store of its files fails, and MLflow doesn't."""

from typing import Any

import pytest

from pipelines.tracking import outbox
from pipelines.tracking.outbox import Call, Outbox

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


class Bucket:
    """A store of files that fails so many times."""

    def __init__(self, failures: int, error: type[Exception] = OSError) -> None:
        self.failures, self.error, self.got = failures, error, 0

    def put(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error("of the bucket")
        self.got += 1


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(outbox, "PAUSE", 0.01)


@pytest.mark.parametrize(("failures", "error"), [(10**9, OSError), (10**9, ImportError), (2, OSError)])
def test_a_file_that_does_not_get_through_keeps_nothing_else_back(
    failures: int, error: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    points: list[Any] = []
    ended: list[str] = []
    bucket, box = Bucket(failures, error), Outbox(points.extend, "here")
    box.put(Call("artifact doctor.json", bucket.put, file=True))
    for point in range(20):
        box.put(point)  # type: ignore[arg-type]
        assert box.flush(10.0)
    box.put(Call("the run's end", lambda: ended.append("FINISHED")))
    box.close()
    assert (points, ended) == (list(range(20)), ["FINISHED"])
    said = capfd.readouterr().err
    assert bucket.got == (failures == 2)
    assert said.count("refused artifact doctor.json") == (failures != 2)
    assert "cannot be reached" not in said


def test_a_file_that_fails_first_at_the_end_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[str] = []
    box = Outbox(lambda _: None, "here")
    with box._changed:  # so that both wait when it closes
        box._items.extend([Call("artifact a.png", Bucket(9).put, file=True), Call("end", lambda: ended.append("x"))])
        box._closing = True
    box.close()
    assert ended == ["x"]
    assert "refused artifact a.png" in capfd.readouterr().err


def test_during_an_outage_files_wait_with_the_rest() -> None:
    away, points = [True], list[Any]()

    def send(batch: list[Any]) -> None:
        if away[0]:
            raise ConnectionError
        points.extend(batch)

    bucket, box = Bucket(10), Outbox(send, "here")
    box.put(1, Call("artifact", bucket.put, file=True), 2)  # type: ignore[arg-type]
    assert not box.flush(0.2)
    away[0] = False
    box.put(3)  # type: ignore[arg-type]
    bucket.failures = 0
    with box._changed:
        assert box._changed.wait_for(lambda: bucket.got == 1 and points == [1, 2, 3] and not box._busy, 10)
    box.close()
