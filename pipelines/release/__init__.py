"""Release: from a trained model to a registered one. package → promote.

The functions import what they need when they are called: this package is part of every packaged model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.workspace import Workspace

__all__ = ["package", "promote"]


def package(ws: "Workspace") -> dict[str, Any]:
    """Write data/package, an MLflow model folder, and log it to the model's run. See `build_package`."""
    from pipelines.release.build import build_package

    return build_package(ws)


def promote(ws: "Workspace") -> dict[str, Any]:
    """Register data/package, and move the aliases that the gate allows. See `promote_package`."""
    from pipelines.release.promotion import promote_package

    return promote_package(ws)
