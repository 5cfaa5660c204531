"""Settings of all tests; lying here it also lets them import ``support`` (pytest, conftest.py)."""

from __future__ import annotations

import pytest
from hypothesis import settings

pytest_plugins = ["support.vmm_programs"]

settings.register_profile("casemate", derandomize=True, deadline=None)
settings.load_profile("casemate")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--record-golden``: write the documents that tests/golden compares with."""
    parser.addoption("--record-golden", action="store_true", help="write the documents of tests/golden anew")
