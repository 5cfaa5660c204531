"""Every contract test runs on every host (pytest, conftest.py)."""

from __future__ import annotations

import pytest
from contract_hosts import HOSTS, HostName


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> HostName:
    """The host under test."""
    name: HostName = request.param
    return name
