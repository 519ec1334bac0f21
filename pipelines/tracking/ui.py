"""`shardline ui`: MLflow's UI over the project's store. The store's URL reaches it by the environment, never by argv,
where every user of the machine could read its password."""

import errno
import os
import socket
import sys

from pipelines.console.progress import say
from pipelines.tracking.embedded import database_of, embedded_uri, relocate
from pipelines.tracking.pages.links import announce_ui, is_server
from pipelines.workspace import INTO_THE_PROJECT, STATE, project_root, recipes
from storage.errors import ParamsError
from storage.redact import without_login

#: What `mlflow ui` reads: the store, and what it needn't start or tell for one person.
_STORE = "MLFLOW_BACKEND_STORE_URI"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # more processes, for judges of answers
    "PYTHONWARNINGS": "ignore",  # of MLflow's own code about its libraries
}
#: Databases that MLflow takes. Of any other it would print the whole URL in its error.
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def open_ui(host: str, port: int) -> None:
    """Become `mlflow ui` over the project's store. Raises ParamsError for a folder without a project, for a store that
    MLflow doesn't take, and for a port on which something listens."""
    project = project_root()
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or embedded_uri(project / STATE)
    if is_server(uri):
        say(f"The runs are on the server that MLFLOW_TRACKING_URI names: open {without_login(uri)} in a browser.")
        return
    if not (given or recipes(project)):  # a typo's empty store would be left
        raise ParamsError(f"No runs: {project} is no project. {INTO_THE_PROJECT}")
    _check_scheme(uri)
    _ask_for(host, port)
    if (file := database_of(uri)) is not None and file.is_file():
        relocate(file)
    # One worker is up in a fraction of the time of mlflow's four, and a person alone keeps none of them busy.
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    os.environ |= {name: value for name, value in _QUIET.items() if name not in os.environ} | {_STORE: uri}
    say(f"http://{host}:{port} shows the runs of {without_login(uri)}; Ctrl-C ends it.")
    announce_ui(project, f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}")  # noqa: S104
    os.execv(sys.executable, command)


def _check_scheme(uri: str) -> None:
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else "file"
    if scheme in _DATABASES or scheme == "file":
        return
    near = " Write postgresql:// for postgres://." if scheme == "postgres" else ""
    raise ParamsError(
        f"MLFLOW_TRACKING_URI={uri}: MLflow keeps no runs in {scheme}://.{near} It takes a server's http:// or "
        f"https://, or a database's {', '.join(f'{name}://' for name in _DATABASES)}."
    )


def _ask_for(host: str, port: int) -> None:
    """Raises ParamsError where one cannot listen: MLflow's server would say so among its lines, and leave with 0."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a UI that has just ended
            listener.bind(address)
    except OSError as error:
        taken = " Another program (another `make ui`?) listens there." if error.errno == errno.EADDRINUSE else ""
        other = port % 65535 + 1
        raise ParamsError(
            f"The UI cannot listen on {host}, port {port}: {error.strerror or error}.{taken} Choose another place with "
            f"--port or --host: `shardline ui --port {other}`, `make ui ARGS='--port {other}'`."
        ) from error
