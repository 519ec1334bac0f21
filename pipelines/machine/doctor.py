"""`shardline doctor`: what this machine is, what it reaches, what is wrong with it and what to do about that."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.console.progress import progress, say
from pipelines.machine.collective import all_reduce
from pipelines.machine.hardware import describe, machine_key
from pipelines.machine.places import disks, reached
from pipelines.machine.problems import Problem, find_problems
from pipelines.params import FILENAME
from pipelines.workspace import STATE, Workspace, project_root
from storage.atomic import write_atomically

_RATES = "machines"  # folder of the project's state: measured rates, a file a machine


def doctor(recipe: Path | None = None, *, as_json: bool = False) -> list[Problem]:
    """Examine the machine as the recipe in folder `recipe` (the current one) would use it, and print what was found;
    without a params.yaml, the machine alone. The rates are kept for the runs to come. Under 30 s."""
    root = (recipe or Path.cwd()).resolve()
    ws = Workspace.open(root) if (root / FILENAME).is_file() else None
    facts = examine(ws, root)
    keep_rates(project_root(root), facts)
    problems = find_problems(facts)
    if as_json:
        say(json.dumps(facts | {"problems": [{"what": one.what, "do": one.do} for one in problems]}))
    else:
        say("\n".join([*_lines(facts), *_problem_lines(problems)]))
    return problems


def examine(ws: Workspace | None, root: Path) -> dict[str, Any]:
    """All facts, measured rates among them."""
    from pipelines.machine.rates import loopback_rate

    facts: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    with _checklist(8) as doing:
        doing("hardware")
        facts |= describe()
        facts["settings"] = settings(ws)
        doing("matrix products")
        rates["matmul"] = _matmul(facts["accelerators"])
        doing("memory")
        rates["memory"] = _memory(facts["accelerators"])
        doing("disks")
        facts["disks"] = disks(ws, root, measure=True)
        doing("loopback")
        rates["loopback"] = loopback_rate()
        doing("gloo")
        rates["gloo"] = all_reduce("gloo", 2)
        doing("nccl")
        gpus = sum(one["kind"] == "cuda" for one in facts["accelerators"])
        if gpus:
            rates["nccl"] = all_reduce("nccl", gpus)
        doing("places")
        facts["reached"] = reached(ws) if ws is not None else {}
    return facts | {"rates": rates, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def short_form(ws: Workspace) -> dict[str, Any]:
    """What is logged with every run: the facts, and the rates that `doctor` once measured on this machine, if it did.
    Measures nothing."""
    facts = describe() | {"settings": settings(ws)}
    file = _rates_file(ws.project, facts)
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        kept = {"rates": {}, "measured_at": None}
    facts |= kept
    return facts | {"problems": [str(problem) for problem in find_problems(facts)]}


def keep_rates(project: Path, facts: dict[str, Any]) -> None:
    """So that later runs on this machine carry them; where the project cannot be written, they don't."""
    values = {name: facts[name] for name in ("rates", "measured_at")}
    if project.joinpath(STATE).is_dir():
        write_atomically(_rates_file(project, facts), json.dumps(values, indent=2).encode())


def settings(ws: Workspace | None) -> dict[str, Any]:
    """Settings that the hardware limits."""
    found: dict[str, Any] = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES") if os.environ.get(name)
    }
    if ws is not None:
        found |= {"threads": ws.params.train.threads, "ranks": ws.params.train.ranks}
    return found


def _rates_file(project: Path, facts: dict[str, Any]) -> Path:
    return project / STATE / _RATES / f"{machine_key(facts)}.json"


def _devices(accelerators: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The CPU, and the first accelerator of each kind."""
    import torch

    yield "cpu", torch.device("cpu")
    for kind in dict.fromkeys(one["kind"] for one in accelerators):
        yield kind, torch.device(kind)


def _matmul(accelerators: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """FLOP/s by device and precision, on as many threads as there are cores."""
    from pipelines.machine.rates import DTYPES, matmul_rate

    return {
        name: {str(dtype).removeprefix("torch."): matmul_rate(device, dtype) for dtype in DTYPES}
        for name, device in _devices(accelerators)
    }


def _memory(accelerators: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes/s by device."""
    from pipelines.machine.rates import memory_rate

    return {name: memory_rate(device) for name, device in _devices(accelerators)}


@contextmanager
def _checklist(total: int) -> Iterator[Callable[[str], None]]:
    """A bar that says what is being looked at."""
    with progress("doctor", total, "checks") as advance:
        begun = False

        def doing(what: str) -> None:
            nonlocal begun
            advance(int(begun), note=what)
            begun = True

        yield doing


# -- for people --------------------------------------------------------------------------------------------------------


def _lines(facts: dict[str, Any]) -> list[str]:
    cpu, memory, rates = facts["processor"], facts["memory"], facts["rates"]
    quota = f", {cpu['quota']:g} cores' time by the container's limit" if cpu["quota"] is not None else ""
    limit = f", {memory['limit_gib']:g} GiB by the container's limit" if memory["limit_gib"] is not None else ""
    lines = [
        f"processor    {cpu['model']}: {cpu['usable']} of {cpu['logical']} cores{quota}; {' '.join(cpu['features'])}",
        f"memory       {memory['total_gib']:g} GiB, {memory['available_gib']:g} free{limit}",
        *(f"accelerator  {_device(one)}" for one in facts["accelerators"]),
        *([] if facts["accelerators"] else ["accelerator  none: training runs on the CPU"]),
    ]
    for device, by_type in rates["matmul"].items():
        shown = ", ".join(f"{name} {rate / 1e9:,.3g}" for name, rate in by_type.items())
        lines.append(f"products     {device}: {shown} GFLOP/s; memory {rates['memory'][device] / 1e9:,.1f} GB/s copied")
    for disk in facts["disks"]:
        speed = (
            f", writes {disk['write'] / 1e6:,.0f} and reads {disk['read'] / 1e6:,.0f} MB/s" if "read" in disk else ""
        )
        kind = disk["file_system"] or "unknown type"
        lines.append(f"disk         {disk['what']} ({kind}): {disk['free_gib']:,.0f} GiB free{speed}")
    lines.append(f"loopback     {rates['loopback'] / 1e9:.1f} GB/s")
    for backend in ("gloo", "nccl"):
        if (found := rates.get(backend)) and "error" not in found:
            lines.append(
                f"{backend:<12} all-reduce over {found['ranks']} ranks: {found['bytes_per_second'] / 1e6:,.0f} MB/s, "
                f"{found['latency_us']:,.0f} µs for a small one"
            )
    for name, place in facts["reached"].items():
        if "seconds" in place:
            lines.append(f"reached      {name} ({place['url']}) in {place['seconds'] * 1000:.0f} ms")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [*lines, f"versions     python {facts['system']['python']}, {versions}; {facts['system']['os']}"]


def _device(one: dict[str, Any]) -> str:
    memory = f", {one['memory_gib']:g} GiB" if one["memory_gib"] else ""
    driver = f", driver {one['driver']}, {one['watts']:.0f} of {one['watts_limit']:.0f} W" if "driver" in one else ""
    return f"{one['kind']}:{one.get('index', 0)} {one['name']}{memory}{driver}"


def _problem_lines(problems: list[Problem]) -> list[str]:
    if not problems:
        return ["problems     none found"]
    return ["problems", *(f"  - {problem}" for problem in problems)]
