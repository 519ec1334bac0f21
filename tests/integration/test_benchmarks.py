"""Every benchmark runs on small data without the peers, and says what it must; the harness judges soundly."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Run
from support.servers import s3_server

from benchmarks import results
from benchmarks.catalogue import SENTENCES, question
from benchmarks.contender import check, count, once
from benchmarks.outcome import Bar, Outcome, of_readings
from benchmarks.rounds import Readings
from benchmarks.setting import Setting

ALWAYS = {
    "name", "machine", "versions", "date", "unit", "ours", "peers", "limit", "ratio_to_best_peer", "ratio_to_limit",
    "bars", "columns", "table",
}  # fmt: skip
MORE: dict[str, set[str]] = {
    "egress": {"s3_over_dataset", "hit_ratio"},
    "resume": {"seconds", "peak_mb"},
    "checkpoint": {"pause_share", "sigterm_seconds", "resume_seconds"},
    "step": {"ratio_to_bare", "wait_share"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmarks of this module keep what they make."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def s3(data: Path) -> Iterator[dict[str, str]]:
    """One S3 server for all of them."""
    with s3_server(data / "s3") as server:
        yield server.env


@pytest.mark.long
@pytest.mark.xdist_group("benchmarks")
@pytest.mark.parametrize("name", SENTENCES)
def test_a_benchmark_on_small_data(name: str, data: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in s3.items():
        monkeypatch.setenv(variable, value)
    setting = Setting(data, quick=True, tiny=True, peers=False)
    outcome = question(name)(setting)
    outcome.show()
    result = json.loads(json.dumps(outcome.to_json(setting)))
    assert result.keys() >= ALWAYS | MORE.get(name, set())
    assert result["name"] == name
    assert result["ours"] is None or result["ours"] > 0
    assert all(len(row) == len(result["columns"]) for row in result["table"])
    results.save(result, data / "kept")
    assert (data / "kept" / f"{name}.png").stat().st_size > 1000


@pytest.mark.xdist_group("benchmarks")
def test_the_command_ends_with_one_json_object(data: Path, run: Run) -> None:
    listed = run(sys.executable, "-m", "benchmarks", cwd=REPOSITORY).stdout
    assert all(name in listed and sentence in listed for name, sentence in SENTENCES.items())
    command = ("stream-rows", "--quick", "--tiny", "--no-peers", "--json", "--data", str(data))
    done = run(sys.executable, "-m", "benchmarks", *command, cwd=REPOSITORY)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratio_to_limit"] == pytest.approx(result["ours"] / result["limit"])
    assert result["peers"] == {}
    assert result["ratio_to_best_peer"] is None


def test_counting_leaves_out_each_epochs_first_batch_and_checking_sums_every_byte() -> None:
    batches = [{"blob": [b"ab", b"c"]}, {"blob": [b"\x05"]}]
    asked = 0

    def epoch(workers: int) -> Iterator[dict[str, Any]]:
        nonlocal asked
        asked += 1
        return iter(batches)

    found = count(epoch, workers=0, seconds=0.01)
    assert found["samples"] == asked > 1
    assert found["rate"] == pytest.approx(found["samples"] / found["seconds"])
    assert check(epoch, workers=0) == {"samples": 3, "total": sum(b"abc\x05")}
    assert once(epoch, workers=0)["samples"] == 3
    batches.pop()
    with pytest.raises(RuntimeError, match="one batch"):
        count(epoch, workers=0, seconds=0.01)


def test_bars_and_ratios() -> None:
    bars = [Bar("more", 2, 2.0), Bar("more", 2, 1.9), Bar("less", 2, 2.1, most=True), Bar("less", 2, 2.0, most=True)]
    assert [bar.reached for bar in bars] == [True, False, False, True]
    outcome = Outcome("x", "u", 6.0, {"a": 2.0, "b": 3.0}, 12.0, bars, [""], [["row"]], {"extra": 1})
    result = outcome.to_json(Setting(peers=False))
    assert (result["ratio_to_best_peer"], result["ratio_to_limit"], result["extra"]) == (2.0, 0.5, 1)


def test_the_document_is_made_of_the_kept_results(tmp_path: Path) -> None:
    outcome = Outcome("stream-rows", "samples/s", 6.0, {"a": 2.0}, 12.0, [Bar("× a", 4, 3.0)], ["", "u"], [["a", "2"]])
    results.save(outcome.to_json(Setting(peers=False)), tmp_path)
    document = tmp_path / "page.md"
    document.write_text(f"words\n{results.BEGIN}\nold\n{results.END}\nmore words\n")
    for _ in range(2):  # the second time changes nothing
        results.write_document(tmp_path, document)
        text = document.read_text()
        assert text.startswith("words\n")
        assert text.endswith("more words\n")
        assert "old" not in text
        assert text.count("| [stream-rows](#stream-rows) | × a | ≥ 4 | 3 | **missed** |") == 1
        assert "| a | 2 |" in text


def test_the_page_shows_the_kept_results(tmp_path: Path) -> None:
    page = Path(shutil.copy(results.DOCUMENT, tmp_path))
    results.write_document(document=page)
    assert page.read_text() == results.DOCUMENT.read_text()


def test_contenders_beside_the_peers_are_shown_but_count_in_no_ratio() -> None:
    rates = {"limit": 100.0, "Shardline": 90.0, "peer": 45.0, "peer, our decoder": 89.0}
    readings = {who: Readings(rates=[rate], firsts=[0.1]) for who, rate in rates.items()}
    beside = {"peers_given_our_decoder": ["peer, our decoder"]}
    outcome = of_readings("stream-jpeg", "samples/s", readings, {"the best peer": 1.3}, 0.85, beside)
    assert outcome.peers == {"peer": 45.0}
    assert outcome.more["peers_given_our_decoder"] == {"peer, our decoder": 89.0}
    assert [row[0] for row in outcome.table] == list(rates)
    assert [(bar.what, bar.found) for bar in outcome.bars] == [("× the best peer", 2.0), ("× the limit", 0.9)]
