"""Tests that look at what a group of ranks did are long: the group starts once for all of them."""

import pytest

GROUPS = {"two", "four", "found"}  # fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GROUPS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.long)
