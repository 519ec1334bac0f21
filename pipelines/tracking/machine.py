"""A run starts: its machine is noted, and its cost is counted."""

import json
import os
from typing import TYPE_CHECKING, Any

from pipelines.console.progress import say
from pipelines.machine.doctor import short_form
from pipelines.machine.energy import nvml_indices
from pipelines.machine.run_cost import RunCost
from pipelines.workspace import Workspace
from storage.atomic import write_atomically

if TYPE_CHECKING:
    import torch

    from pipelines.tracking import Run

DOCTOR = "doctor.json"


def attend(ws: Workspace, run: "Run", device: "torch.device", ranks: int) -> RunCost:
    """Note the machine in the run, and start to count what `ranks` ranks take. Nothing is measured."""
    if run.id is not None:
        try:
            _note_machine(ws, run)
        except Exception as error:  # an odd machine or a full disk: no reason not to train
            say(f"The machine is not noted in the run: {type(error).__name__}: {error}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    devices = nvml_indices(device.index or 0, local) if device.type == "cuda" else []
    return RunCost.start(ws.state / "spent", run.id, ws.params.train.price_per_hour, ranks, devices)


def _note_machine(ws: Workspace, run: "Run") -> None:
    facts = short_form(ws)
    file = ws.state / DOCTOR
    write_atomically(file, (json.dumps(facts, indent=2) + "\n").encode())
    run.log_artifact(file)
    run.set_tags(machine_tags(facts))


def machine_tags(facts: dict[str, Any]) -> dict[str, str]:
    """The machine in a few words, to filter and compare runs by."""
    cpu = facts["processor"]
    names = [one["name"] for one in facts["accelerators"]]
    tags = {
        "machine.host": facts["system"]["host"],
        "machine.processor": cpu["model"],
        "machine.cores": f"{cpu['quota'] or cpu['usable']:g}",
        "machine.memory_gib": f"{facts['memory']['limit_gib'] or facts['memory']['total_gib']:g}",
        "machine.accelerators": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none",
    }
    for device, rates in facts["rates"].get("matmul", {}).items():
        tags |= {f"machine.{device}.gflops_{name}": f"{rate / 1e9:.0f}" for name, rate in rates.items()}
    if facts["problems"]:
        tags["machine.problems"] = "\n".join(facts["problems"])
    return tags
