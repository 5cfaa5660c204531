"""Guests driven by the QMP client of the QEMU project: paused, let go, stopped, reset and ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient
from qmp_guests import Booted, until_event

from casemate.errors import UnsupportedError
from casemate.host.kvm.hypervisor import KvmHypervisor


@pytest.fixture(params=["model", "kvm"])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "kvm":
        try:
            KvmHypervisor()
        except UnsupportedError as reason:
            pytest.skip(str(reason))
    return str(request.param)


def test_paused_guest_waits_for_cont_and_leaves_by_quit(tmp_path: Path, host: str) -> None:
    async def story(client: QMPClient) -> list[Any]:
        seen = [await client.execute("query-status")]
        await client.execute("cont")
        await until_event(client, "RESUME")
        seen.append(await client.execute("query-status"))
        await client.execute("quit")
        seen.append(await until_event(client, "SHUTDOWN"))
        return seen

    guest = Booted(tmp_path, "--paused", host=("--host", host))
    waiting, running, end = guest.tell(story)
    assert waiting == {"status": "prelaunch", "singlestep": False, "running": False}
    assert running == {"status": "running", "singlestep": False, "running": True}
    assert end["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert guest.ended() == 0
    assert not guest.path.exists()
