"""The build step of prefect.yaml."""

from pathlib import Path

from prefect.client.orchestration import get_client

from flows.tasks.steps import DVC


async def prepare() -> dict[str, str]:
    """Limit DVC's tasks to one at a time on the server, and name the checkout that the worker runs in: the present
    folder."""
    async with get_client() as client:
        await client.create_concurrency_limit(tag=DVC, concurrency_limit=1)
    return {"folder": str(Path.cwd())}
