"""System metrics of a run: CPU, memory, disk, network and GPU, under the names that MLflow's UI groups."""

import os
import threading
from collections.abc import Callable
from typing import Any

FIRST, LAST, GROWTH = (
    1.0,
    10.0,
    1.1,
)  # seconds between samples: short runs have points, long ones not too many


class SystemMetrics:
    """Calls `record({"system/…": value}, step)` from a background thread until `stop()`."""

    def __init__(self, run_id: str, uri: str, record: Callable[[dict[str, float], int], None]) -> None:
        from mlflow.system_metrics import system_metrics_monitor

        monitors: Any = system_metrics_monitor  # untyped
        self._monitor = monitors.SystemMetricsMonitor(run_id, tracking_uri=uri)
        self._record = record
        self._stop = threading.Event()
        node = self._monitor.node_id
        self._prefix = f"system/{node}/" if node else "system/"
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        fixed = os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL")
        interval, step = float(fixed) if fixed else FIRST, 0
        self._monitor.collect_metrics()  # psutil's first reading of the CPU is 0: it sets the start
        self._clear()
        stopped = False
        while not stopped:
            stopped = self._stop.wait(interval)
            self._monitor.collect_metrics()
            values = self._monitor.aggregate_metrics()
            self._clear()
            self._record({self._prefix + name: float(value) for name, value in values.items()}, step)
            step += 1
            interval = interval if fixed else min(interval * GROWTH, LAST)

    def _clear(self) -> None:
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()

    def stop(self) -> None:
        """Take a last sample and end."""
        self._stop.set()
        self._thread.join()
