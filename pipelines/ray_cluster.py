"""A Ray cluster for a command: one that is there (compute.ray), or one of this machine that ends with the command.

It sends no usage statistics, opens no dashboard, and listens on the loopback address only.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pipelines.leftovers import swept
from storage.errors import ParamsError

QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name, on Linux too: nodes have the loopback address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
TRIES = 3  # Ray gives its processes 30 s to start, which a busy machine may exceed
OBJECT_STORE = 128 << 20  # bytes; what travels is small


@contextmanager
def ray_cluster(address: str | None, cpus: int, setting: str) -> Iterator[ModuleType]:
    """Inside, `ray` is connected; with address None, to a new cluster of this machine with `cpus` slots. `setting`
    asked for it. Raises ParamsError where Ray isn't installed, or the cluster isn't there."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    try:
        import ray
    except ImportError as error:
        raise ParamsError(f"{setting}=ray needs Ray: pip install 'shardline[ray]'.") from error
    try:
        with _own(ray, cpus) if address is None else _connected(ray, address):
            try:
                yield ray
            finally:
                ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own(ray: ModuleType, cpus: int) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix=f"shardline-ray-{os.getpid()}-"))
    with swept(folder), _modules_of_this_process():
        for left in reversed(range(TRIES)):
            try:
                ray.init(
                    num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(folder),
                    object_store_memory=OBJECT_STORE, log_to_driver=False, logging_level="ERROR",
                    configure_logging=False,
                )  # fmt: skip
                break
            except Exception as error:  # Ray raises no class of its own here
                ray.shutdown()
                if left == 0 or "timed out" not in str(error):
                    raise
        yield


@contextmanager
def _modules_of_this_process() -> Iterator[None]:
    """Inside, processes that are started import what this one imports: a recipe's own modules, too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH")
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ParamsError(f"compute.ray={address!r}: no Ray cluster answers there ({error}).") from error
    yield
