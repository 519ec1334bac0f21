"""What Prefect shows of the flows: forms that offer the recipes and describe each parameter, logs without passwords."""

import json
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run, write_params
from support.prefect_service import Prefect

pytestmark = pytest.mark.xdist_group("prefect")
SECRET = "S3cret"
FLOWS = ["ingest", "curate", "shard", "train", "evaluate", "release", "version", "warm", "pipeline"]
FORM = """
import importlib, json, sys
from prefect.utilities.callables import parameter_schema
names = sys.argv[1:]
print(json.dumps({n: parameter_schema(getattr(importlib.import_module("flows." + n), n)).model_dump() for n in names}))
"""
BROKEN = """
from prefect import flow, get_run_logger, task
from flows.tasks.steps import by_hand, open_recipe

@task
def look():
    get_run_logger().info("looking at %s", "https://" + 'S3cret' + "@host/y")

@flow
def broken(recipe: str = "python_lm"):
    look()
    get_run_logger().info("reading %s", "https://" + 'S3cret' + "@host/x")
    try:
        raise OSError("GET redis://:" + 'S3cret' + "@host failed")
    except OSError as error:
        raise ValueError("no such part") from error

by_hand(broken)
"""


def test_the_form_offers_the_recipes_and_describes_each_parameter(project: Path, run: Run) -> None:
    folder = project / "recipes" / "second"
    folder.mkdir(parents=True)
    write_params(folder, {**TINY, "recipe": "second"})
    done = run(sys.executable, "-c", FORM, *FLOWS, cwd=project)
    forms = json.loads(done.stdout.splitlines()[-1])
    for name, form in forms.items():
        for parameter, schema in form["properties"].items():
            assert len(schema.get("description") or "") > 10, f"{name}: {parameter}"
        known, newer = form["properties"]["recipe"]["anyOf"]
        assert known["enum"] == ["python_lm", "second"]
        assert newer["type"] == "string"  # a recipe that is added later needs no new deployment
        assert form["properties"]["recipe"]["default"] == "python_lm"
    retries = forms["train"]["properties"]["retries"]
    assert (retries["minimum"], retries["maximum"], retries["default"]) == (0, 50, 2)


def test_a_step_whose_parameter_is_a_list_runs_by_hand(run: Run, project: Path) -> None:
    shown = run(sys.executable, "-m", "flows.release", "--help", cwd=project).stdout
    assert "--stages" in shown
    assert "[default: package, promote]" in shown


def test_prefect_s_logs_hold_no_password(run: Run, project: Path, prefect: Prefect) -> None:
    """Neither those that are printed nor those that the server keeps, and not in the traceback of a library's error."""
    (project / "broken.py").write_text(BROKEN)
    done = run(sys.executable, "broken.py", cwd=project, code=1, env=prefect.env)
    kept = prefect.logs(prefect.latest("broken"))
    for text in (done.stderr, kept):
        assert "looking at https://***@host/y" in text
        assert "reading https://***@host/x" in text
        assert "OSError: GET redis://:***@host failed" in text
        assert SECRET not in text.replace("'S3cret'", "")  # the line of code that a traceback shows
