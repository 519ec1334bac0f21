"""What all tests share: a project in a temporary folder, and the `shardline` command run as a person runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings
from support.servers import S3, s3_server

REPOSITORY = Path(__file__).parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Quiet and offline, in this process and in all that it starts.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
)
os.environ.pop("MLFLOW_TRACKING_URI", None)

# A machine that is busy is no failure.
settings.register_profile("shardline", deadline=None)
settings.load_profile("shardline")

#: A recipe so small that the whole job takes seconds: documents of a folder `texts/`, a two-layer transformer.
TINY = {
    "recipe": "tiny",
    "seed": 7,
    "lake": {},
    "ingest": {"sources": ["texts/**/*.txt"]},
    "curate": {"split": {"train": 0.7, "val": 0.15, "test": 0.15}, "max_quarantined": 0, "files_per_object": 8},
    "shard": {"target_mb": 0.01, "shuffle_objects": 8},
    "stream": {"batch_size": 8, "seq_len": 32},
    "model": {"name": "transformer", "args": {"dim": 32, "layers": 1, "heads": 2}},
    "train": {"steps": 12, "eval_every": 6, "checkpoint_every": 4, "log_every": 2, "lr": 0.003, "threads": 1},
    "evaluate": {},
    "package": {},
    "promote": {"gate": {"metric": "bits_per_byte", "mode": "min"}},
}


@pytest.fixture(autouse=True)
def _leaves_tracking_as_it_was() -> Iterator[None]:
    """No test leaves others, in whatever order they run, a run that records nothing (`without_mlflow`): neither in
    `pipelines.tracking` nor in a module that was first imported meanwhile."""
    yield
    real = getattr(sys.modules.get("pipelines.tracking.run"), "open_run", None)
    modules = [(name, module) for name, module in sys.modules.items() if name.startswith("pipelines.")]
    assert [name for name, module in modules if getattr(module, "open_run", real) is not real] == []


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of started commands: this interpreter's scripts first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="session")
def run(environment: dict[str, str]) -> Run:
    """Run a command in a folder; by default it must succeed."""

    def call(*command: str, cwd: Path, code: int | None = 0, env: dict[str, str] | None = None, timeout: float = 120):  # type: ignore[no-untyped-def]
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**environment, **(env or {})},
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if code is not None:
            assert done.returncode == code, f"{command} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server with the bucket `lake`, for the tests of the xdist group `s3`, which share it."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("lake")
        yield server


def write_texts(folder: Path, count: int = 24) -> None:
    """`count` documents of distinct, repeatable text."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        words = [f"def f{index}_{line}(x):\n    return x * {line} + {index}\n" for line in range(20 + index % 7)]
        (folder / f"doc{index:03d}.txt").write_text("".join(words))


def write_params(folder: Path, values: dict[str, object]) -> None:
    """params.yaml of a recipe."""
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A folder with the tiny recipe and its texts; no git, no DVC."""
    write_texts(tmp_path / "texts")
    write_params(tmp_path, TINY)
    return tmp_path


def make_project(folder: Path, run: Run) -> Path:
    """The tiny recipe and its texts in a git and DVC project of its own, committed."""
    write_texts(folder / "texts")
    write_params(folder, TINY)
    shutil.copy(REPOSITORY / "dvc.yaml", folder)
    shutil.copy(REPOSITORY / ".gitignore", folder)
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    run("dvc", "config", "core.analytics", "false", cwd=folder)
    commit(folder, run, "start")
    return folder


def add_own_stage(folder: Path) -> None:
    """One more stage in dvc.yaml, whose command isn't `shardline STAGE`, written before what it depends on."""
    pipeline = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    own = {"cmd": "cat data/shards/manifest.arrow | wc -c > size.txt", "deps": ["data/shards"], "outs": ["size.txt"]}
    pipeline["stages"] = {"own": own, **pipeline["stages"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def commit(folder: Path, run: Run, message: str) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", message, cwd=folder)


@pytest.fixture
def project(tmp_path: Path, run: Run) -> Path:
    return make_project(tmp_path, run)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A project whose job, with a stage of one's own in it, has run once: made by the first process that wants it, for
    all; read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                folder.mkdir()
                make_project(folder, run)
                add_own_stage(folder)
                commit(folder, run, "a stage of one's own")
                assert "is champion" in run("shardline", "repro", cwd=folder).stdout
                commit(folder, run, "first run")
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
