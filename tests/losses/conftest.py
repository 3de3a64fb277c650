"""The kit takes a loss through twenty checks: by default the first test of each file, every one in the slow tests."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before the marks select
def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        function = getattr(item, "function", None)
        if function is None or not function.__name__.startswith("test_the_kit_accepts"):
            continue
        if item.module in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(item.module)
