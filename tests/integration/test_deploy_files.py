"""The examples in deploy/: well-formed, and with commands that exist."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.params import Launching
from storage.errors import Hung, OutOfMemory, ParamsError

DEPLOY = Path(__file__).parents[2] / "deploy"


def accepts(command: list[str]) -> None:
    """Whether the command line parses; `--help` keeps it from running."""
    assert command[0] == "shardline"
    done = CliRunner().invoke(app, [*command[1:], "--help"])
    assert done.exit_code == 0, done.output


def test_the_kubernetes_job_is_consistent_with_itself_and_with_us() -> None:
    service, policy, job = yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text())
    assert (service["kind"], policy["kind"], job["kind"]) == ("Service", "NetworkPolicy", "Job")
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    accepts(container["command"])
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod["subdomain"] == service["spec"]["selector"]["job-name"] == name
    assert service["spec"]["clusterIP"] == "None"
    pods = {"matchLabels": service["spec"]["selector"]}
    closed = {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]}
    assert policy["spec"] == closed, "the job's pods are reached by themselves only, at every port"
    assert environment["PET_RDZV_ENDPOINT"] == f"{name}-0.{name}:{service['spec']['ports'][0]['port']}"
    assert int(environment["PET_NNODES"].split(":")[-1]) == spec["completions"] == spec["parallelism"]
    assert pod["terminationGracePeriodSeconds"] > Launching().grace_s
    codes = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert codes["values"] == [ParamsError.exit_code, OutOfMemory.exit_code]
    assert codes["containerName"] == container["name"]


def test_the_slurm_script_is_shell_and_starts_our_command() -> None:
    file = DEPLOY / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("srun"))
    words = shlex.split(line.replace('"$recipe"', "python_lm"))
    accepts(words[words.index("shardline") :])
    seconds = re.search(r"--signal=TERM@(\d+)", text)
    assert seconds is not None
    assert int(seconds[1]) > Launching().grace_s
    assert f"-eq {128 + 15}" in text
    assert f"-eq {Hung.exit_code}" in text
