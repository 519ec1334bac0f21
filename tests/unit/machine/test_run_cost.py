"""What a run took: over several starts, and by counters that start again at 0."""

import json
import os
from pathlib import Path

import pytest

from pipelines.machine.energy import Rapl, nvml_indices
from pipelines.machine.run_cost import RunCost, sentence


def package(root: Path, name: str, microjoules: int, most: int = 1000) -> Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "max_energy_range_uj").write_text(str(most))
    (root / name / "energy_uj").write_text(str(microjoules))
    return root / name / "energy_uj"


def test_energy_of_all_packages_across_a_counter_s_return_to_0(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 900), package(tmp_path, "intel-rapl:1", 10)
    package(tmp_path, "intel-rapl:0:0", 5)  # the cores of package 0, which it has counted
    rapl = Rapl(tmp_path)
    first.write_text("950")
    second.write_text("30")
    assert rapl.joules() == pytest.approx(70e-6)
    first.write_text("100")  # after 1000 comes 0
    assert rapl.joules() == pytest.approx(70e-6 + 151e-6)


def test_a_machine_without_counters(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no counters"):
        Rapl(tmp_path)


def test_cost_is_of_all_ranks_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    killed = RunCost.start(tmp_path, "run", 2.0, 4, [])
    killed.began -= 900
    spent = killed.keep()
    assert spent["seconds"] == pytest.approx(900, abs=5)
    assert spent["cost"] == pytest.approx(900 / 3600 * 4 * 2.0, abs=0.02)
    again = RunCost.start(tmp_path, "run", 2.0, 4, [])
    again.began -= 900
    assert again.close()["seconds"] == pytest.approx(1800, abs=10)
    assert list(tmp_path.iterdir()) == []
    assert RunCost.start(tmp_path, "run", 2.0, 4, []).so_far()["seconds"] < 5


def test_energy_goes_on_too_and_counts_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = package(tmp_path / "powercap", "intel-rapl:0", 0, most=10**15)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run_cost = RunCost.start(tmp_path / "spent", "run", None, 4, [])
    assert run_cost.machines == 2
    run_cost.sources = [Rapl(tmp_path / "powercap")]
    counter.write_text(str(36 * 10**11))  # 3.6 MJ: one kWh
    assert run_cost.keep() == {"seconds": pytest.approx(0, abs=5), "energy_kwh": pytest.approx(2.0)}
    again = RunCost.start(tmp_path / "spent", "run", None, 4, [])
    again.sources = [Rapl(tmp_path / "powercap")]
    assert again.so_far()["energy_kwh"] == pytest.approx(2.0)


def test_it_is_kept_now_and_then_only(tmp_path: Path) -> None:
    run_cost = RunCost.start(tmp_path, "run", 1.0, 1, [])
    assert run_cost.note()["cost"] >= 0
    assert run_cost.note() == {}
    file = tmp_path / "run.json"
    assert json.loads(file.read_text()).keys() == {"seconds", "cost"}
    os.truncate(file, 3)  # of no use: it counts from this start on
    assert RunCost.start(tmp_path, "run", 1.0, 1, []).before == {}


def test_a_run_without_mlflow_keeps_nothing(tmp_path: Path) -> None:
    run_cost = RunCost.start(tmp_path, None, 1.0, 1, [])
    run_cost.keep()
    assert run_cost.close().keys() == {"seconds", "cost"}
    assert list(tmp_path.iterdir()) == []


def test_the_closing_line() -> None:
    assert sentence({"seconds": 12.34}) == "took 12.3 s"
    assert sentence({"seconds": 3700.0, "cost": 1.5, "energy_kwh": 0.25}) == "took 1 h 1 min, cost 1.5, 0.25 kWh"


@pytest.mark.parametrize(
    ("visible", "first", "expected"),
    [
        (None, 0, [0, 1]),
        (None, 2, [2, 3]),
        ("4, 6,7", 0, [4, 6]),
        ("4,6,7", 1, [6, 7]),
        ("GPU-8932f937", 0, []),
        ("4", 0, []),
    ],
)
def test_energy_is_that_of_the_devices_in_use(visible: str | None, first: int, expected: list[int]) -> None:
    assert nvml_indices(first, 2, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected
