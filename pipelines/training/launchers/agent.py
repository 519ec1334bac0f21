"""The process between a launcher and its ranks: torchrun's agent, which doesn't outlive the launcher.

python -m pipelines.training.launchers.agent FOLDER RANKS LAUNCHER_PID
"""

import json
import os
import sys
from pathlib import Path

from pipelines.training.launchers.lifeline import die_with_parent

AGENT_PID = "SHARDLINE_AGENT_PID"
FAILURE = "failure.json"


def main(folder: str, ranks: str, launcher: str) -> int:
    """Run the ranks; the first failure goes to failure.json. Returns the exit code."""
    die_with_parent(int(launcher))
    os.environ[AGENT_PID] = str(os.getpid())
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # the launcher reports failures, and shorter
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    quiet = ",".join(f"{rank}:3" for rank in range(1, int(ranks)))  # rank 0 speaks to the terminal
    arguments = ["--standalone", "--nproc-per-node", ranks, "--log-dir", f"{folder}/logs", "--redirects", quiet]
    try:
        torchrun([*arguments, "-m", "pipelines.training.main", folder])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        about = {"rank": rank, "exit_code": first.exitcode, "log": str(first.error_file)}
        (Path(folder) / FAILURE).write_text(json.dumps(about))
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
