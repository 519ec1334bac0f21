"""How many ranks run where, out of parameters and environment; and which launcher that is."""

from typing import Any

import pytest
from support.training_samples import make_points

from pipelines.experiments.comparison.communication import on_this_machine
from pipelines.params import Params
from pipelines.training.launchers import Job
from pipelines.training.launchers.external import External
from pipelines.training.launchers.in_process import InProcess
from pipelines.training.launchers.placement import place, split
from pipelines.training.launchers.select import choose
from pipelines.training.launchers.torchrun import Torchrun
from storage.errors import ParamsError


def params(**compute: Any) -> Params:
    sections: dict[str, Any] = {n: {} for n in ("lake", "curate", "shard", "stream", "model", "evaluate", "package")}
    sections |= {"ingest": {"sources": ["x"]}, "train": {"steps": 1}, "promote": {"gate": {"metric": "loss"}}}
    return Params.model_validate({"recipe": "test", "seed": 1, "compute": compute, **sections})


@pytest.mark.parametrize(
    ("compute", "per_node", "nodes"),
    [
        ({}, 4, (1, 1)),
        ({"nodes": 3}, 2, (3, 3)),
        ({"nodes": 4, "min_ranks": 2}, 2, (1, 4)),
        ({"nodes": 4, "min_ranks": 3}, 2, (2, 4)),  # three ranks need two machines
        ({"min_ranks": 1, "max_ranks": 5}, 2, (1, 2)),  # a third machine would make six
    ],
)
def test_ranks_become_machines(compute: dict[str, Any], per_node: int, nodes: tuple[int, int]) -> None:
    placed = place(params(rendezvous="127.0.0.1:5000", **compute), per_node, {})
    assert (placed.min_nodes, placed.max_nodes) == nodes
    assert placed.per_node == per_node
    assert (placed.meeting is None) == (nodes[1] == 1)


def test_a_comparison_takes_place_on_this_machine() -> None:
    """Also for the recipe of an elastic job, which would wait for other machines."""
    cluster = params(nodes=4, min_ranks=2, max_ranks=8, rendezvous="127.0.0.1:5000", launcher="ray")
    placed = place(cluster.model_copy(update={"compute": on_this_machine(cluster.compute)}), 2, {})
    assert (placed.ranks, placed.max_nodes, placed.restarts, placed.meeting) == (2, 1, 0, None)


def test_an_elastic_job_restarts_by_itself_and_others_do_not() -> None:
    assert place(params(), 2, {}).restarts == 0
    assert place(params(min_ranks=1, rendezvous="localhost"), 2, {}).restarts == 10
    assert place(params(max_restarts=3), 2, {}).restarts == 3


def test_impossible_numbers_show_the_equation() -> None:
    with pytest.raises(ParamsError, match=r"⌈3 / 2⌉ = 2 machines.*⌊3 / 2⌋ = 1"):
        place(params(min_ranks=3, max_ranks=3), 2, {})
    with pytest.raises(ValueError, match="min_ranks = 4 > max_ranks = 2"):
        params(min_ranks=4, max_ranks=2)


def test_the_environment_of_a_cluster_wins() -> None:
    environment = {
        "PET_NNODES": "2:5",
        "PET_NPROC_PER_NODE": "8",
        "PET_RDZV_ENDPOINT": "127.0.0.1",
        "PET_MAX_RESTARTS": "7",
    }
    placed = place(params(nodes=1), 1, environment)
    assert (placed.per_node, placed.min_nodes, placed.max_nodes, placed.restarts) == (8, 2, 5, 7)
    assert placed.meeting is not None
    assert placed.meeting.endpoint == "127.0.0.1:29400"
    with pytest.raises(ParamsError, match="PET_NNODES='many'"):
        place(params(), 1, {"PET_NNODES": "many"})


def test_where_machines_meet() -> None:
    with pytest.raises(ParamsError, match=r"set compute\.rendezvous"):
        place(params(nodes=2), 1, {})
    with pytest.raises(ParamsError, match="the environment has no HEAD"):
        place(params(nodes=2, rendezvous="${HEAD}:29400"), 1, {})
    with pytest.raises(ParamsError, match=r"no-such-host\.invalid has no address"):
        place(params(nodes=2, rendezvous="no-such-host.invalid"), 1, {})
    meeting = place(params(nodes=2, rendezvous="${HEAD}:4321"), 1, {"HEAD": "127.0.0.1"}).meeting
    assert meeting is not None
    assert (meeting.endpoint, meeting.address) == ("127.0.0.1:4321", "127.0.0.1")


def test_endpoints() -> None:
    assert split("node0") == ("node0", 29400)
    assert split("[fe80::1]:80") == ("fe80::1", 80)
    for wrong in ("", "host:port", "host:99999", "http://host"):
        with pytest.raises(ParamsError, match="expected HOST:PORT"):
            split(wrong)


@pytest.mark.parametrize(
    ("compute", "ranks", "environment", "expected"),
    [
        ({}, 1, {}, InProcess),
        ({}, 2, {}, Torchrun),
        ({"nodes": 2}, 1, {}, Torchrun),
        ({"max_restarts": 2}, 1, {}, Torchrun),  # somebody has to start it again
        ({}, 1, {"PET_NNODES": "2"}, Torchrun),
        ({}, 1, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, External),
        ({}, 1, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "PET_NNODES": "2"}, Torchrun),
        ({"launcher": "external"}, 4, {}, External),
    ],
)
def test_the_fitting_launcher(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, compute: dict[str, Any], ranks: int, environment: dict[str, str],
    expected: type,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ws = make_points(tmp_path, train={"ranks": ranks}, compute=compute)
    assert isinstance(choose(Job(ws, ranks)), expected)


def test_a_job_has_the_same_id_on_machines_with_the_same_work_only(tmp_path: Any) -> None:
    def id_of(name: str, **changes: Any) -> str:
        return Job(make_points(tmp_path / name, **changes), 1).id

    first = id_of("a")
    assert first == id_of("b", compute={"nodes": 2})
    assert first != id_of("c", train={"lr": 0.5})
    assert first != id_of("d", rows=(71, 24, 24))
