"""A Ray cluster for a command: one that is there (compute.ray), or one of this machine that ends with the command.

It sends no usage statistics, opens no dashboard, listens on the loopback address only, and has a token of its own.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from pipelines.runtime.loopback import LOOPBACK, require_loopback
from pipelines.runtime.process_sweep import swept
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
AUTH = "RAY_AUTH_MODE"
TRIES = 3  # Ray gives its processes 30 s to start, which a busy machine may exceed
OBJECT_STORE = 128 << 20  # bytes; what travels is small


@contextmanager
def ray_cluster(address: str | None, cpus: int, setting: str) -> Iterator[ModuleType]:
    """Inside, `ray` is connected; with address None, to a new cluster of this machine with `cpus` slots. `setting`
    asked for it. Raises ParamsError where Ray isn't installed, or the cluster isn't there."""
    with _environment(QUIET | (_inherited() if address is None else {})):
        try:
            import ray
        except ImportError as error:
            raise ParamsError(f"{setting}=ray needs Ray: pip install 'shardline[ray]'.") from error
        with _own(ray, cpus) if address is None else _connected(ray, address):
            try:
                yield ray
            finally:
                ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, this process and those that it starts have these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own(ray: ModuleType, cpus: int) -> Iterator[None]:
    require_loopback("A Ray cluster of this machine speaks through it; compute.ray names another one.")
    folder = Path(tempfile.mkdtemp(prefix=f"shardline-ray-{os.getpid()}-"))
    with swept(folder):
        for left in reversed(range(TRIES)):
            try:
                ray.init(
                    num_cpus=cpus, include_dashboard=False, _node_ip_address=LOOPBACK, _temp_dir=str(folder),
                    object_store_memory=OBJECT_STORE, log_to_driver=False, logging_level="ERROR",
                    configure_logging=False,
                )  # fmt: skip
                break
            except Exception as error:  # Ray raises no class of its own here
                ray.shutdown()
                if left == 0 or "timed out" not in str(error):
                    raise
        yield


def _inherited() -> dict[str, str]:
    """For the processes of a cluster: they import what this one imports, a recipe's own modules, too; and only who
    knows its token may run code there. (Ray's own token would lie in the user's home, for others to read.)"""
    values = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    if AUTH not in os.environ and (_token.cache_info().currsize or "ray" not in sys.modules):  # read at its import
        values |= {AUTH: "token", "RAY_AUTH_TOKEN": _token()}
    return values


@cache
def _token() -> str:
    """One for each process: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ParamsError(f"compute.ray={address!r}: no Ray cluster answers there ({error}).") from error
    yield
