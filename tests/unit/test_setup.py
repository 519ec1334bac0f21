"""What `make setup` installs suffices for the package, from where pip would take it, and once."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement

PACKAGES = ("flows", "pipelines", "storage")


def installed_with(name: str, extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """`name` and all that it requires in this environment, with the extras asked for."""
    found: set[tuple[str, frozenset[str]]] = set()
    left = [(name, extras)]
    while left:
        name, extras = one = left.pop()
        if one not in found:
            found.add(one)
            for requirement in map(Requirement, distribution(name).requires or ()):
                marker = requirement.marker
                if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                    left.append((normal(requirement.name), frozenset(requirement.extras)))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """The top-level modules that our packages import, anywhere in their code."""
    names = set()
    for file in (file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES}


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def test_the_base_set_up_has_all_that_the_package_imports_but_ray() -> None:
    base = {name for name, _ in installed_with("shardline")}
    owners = packages_distributions()
    beyond = {name for name in imported() if not base & {normal(owner) for owner in owners.get(name, ())}}
    assert beyond == {"ray"}  # the extra of that name, for those who ask for it


def test_changing_between_the_main_job_and_the_tests_installs_nothing(tmp_path: Path) -> None:
    venv = f"VENV={tmp_path}"
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed", ".installed-dev"):
        (tmp_path / name).touch()
    assert all(" install " not in make("--dry-run", target, venv) for target in ("repro", "test", "ui", "check"))
    (tmp_path / ".installed-dev").unlink()
    assert " install " not in make("--dry-run", "repro", venv)
    assert "[dev]" in make("--dry-run", "test", venv)


def test_uv_looks_where_pip_is_told_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.invalid/simple\nextra-index-url = https://two.invalid/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels here")
    monkeypatch.setenv("PIP_CERT", "/ca.pem")
    printed = make("--eval", f"told: ; @$(call settings,{sys.prefix})", "told").splitlines()
    assert {*printed} >= {
        "UV_INDEX_URL='https://one.invalid/simple'",
        "UV_EXTRA_INDEX_URL='https://two.invalid/simple'",
        "UV_FIND_LINKS='/wheels here'",
        "SSL_CERT_FILE='/ca.pem'",
    }
    monkeypatch.setenv("PIP_INDEX_URL", "https://three.invalid/simple")
    told = make("--eval", f"told: ; @$(call settings,{sys.prefix})", "told").splitlines()
    indexes = [line for line in told if line.startswith("UV_INDEX_URL=")]
    assert indexes[-1] == "UV_INDEX_URL='https://three.invalid/simple'"  # as with pip, the environment's stands
