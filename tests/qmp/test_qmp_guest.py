"""Guests driven by the QMP client of the QEMU project: paused, let go, stopped, reset and ended."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qemu.qmp", reason="qemu.qmp is not installed (./dev test says why)")

from qemu.qmp import ExecuteError, QMPClient
from support.hosts import kvm_or_skip
from support.qmp_guests import COUNT, HALT, Booted, until_event

POWER_OFF = b"\xb0\x07\xe6\xf4\xeb\xfe"  # mov al, 7; out 0xf4, al; jmp $
RESET_ONCE = (
    b"\x80\x3d\x00\x90\x00\x00\x00\x75\x10"  # cmp byte [0x9000], 0; jne over
    b"\xfe\x05\x00\x90\x00\x00\x66\xba\xf9\x0c\xb0\x06\xee\xf4\xeb\xfd"  # inc it; dx = 0xcf9; out dx, 6; hlt
)


@pytest.fixture(params=["model", "kvm"])
def host(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "kvm":
        kvm_or_skip()
    return "--host", str(request.param)


async def status(client: QMPClient) -> Any:
    answer = await client.execute("query-status")
    assert isinstance(answer, dict)
    return answer["status"]


def test_paused_guest_waits_for_cont_and_leaves_by_quit(tmp_path: Path, host: tuple[str, str]) -> None:
    async def story(client: QMPClient) -> list[Any]:
        seen: list[Any] = [await client.execute("query-status")]
        await client.execute("cont")
        await until_event(client, "RESUME")
        seen.append(await client.execute("query-status"))
        await client.execute("quit")
        seen.append(await until_event(client, "SHUTDOWN"))
        return seen

    guest = Booted(tmp_path, "--paused", host=host)
    waiting, running, end = guest.tell(story)
    assert waiting == {"status": "prelaunch", "singlestep": False, "running": False}
    assert running == {"status": "running", "singlestep": False, "running": True}
    assert end["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert guest.ended() == 0
    assert not guest.path.exists()


def test_stop_and_cont_of_a_running_guest(tmp_path: Path, host: tuple[str, str]) -> None:
    async def story(client: QMPClient) -> list[str]:
        seen = []
        for command in ("cont", "stop", "stop", "system_reset"):
            await client.execute(command)
            seen.append(await status(client))
        assert (await until_event(client, "RESET"))["data"] == {
            "guest": False,
            "reason": "host-qmp-system-reset",
        }
        seen.append(await status(client))
        await client.execute("cont")
        seen.append(await status(client))
        await client.execute("quit")
        return seen

    guest = Booted(tmp_path, host=host)
    told = guest.tell(story)
    assert told[:3] == ["running", "paused", "paused"]
    assert told[-2:] == ["prelaunch", "running"]
    assert guest.ended() == 0


def test_reset_of_a_halted_guest(tmp_path: Path) -> None:
    async def story(client: QMPClient) -> dict[str, Any]:
        await client.execute("system_reset")
        reset = await until_event(client, "RESET")
        await client.execute("quit")
        return reset

    guest = Booted(tmp_path, payload=HALT)
    assert guest.tell(story)["data"]["guest"] is False
    assert guest.ended() == 0


def test_guest_tells_of_its_own_reset_and_end(tmp_path: Path) -> None:
    async def story(client: QMPClient) -> list[Any]:
        await client.execute("cont")
        return [(await until_event(client, name))["data"] for name in ("RESET", "SHUTDOWN")]

    guest = Booted(tmp_path, "--paused", "--machine", "q35", payload=RESET_ONCE + POWER_OFF)
    reset, shutdown = guest.tell(story)
    assert reset == {"guest": True, "reason": "guest-reset"}
    assert shutdown == {"guest": True, "reason": "guest-shutdown"}
    assert guest.ended() == 0


def test_kernel_that_panics_is_told(tmp_path: Path) -> None:
    said = b"Kernel panic - not syncing: no\n---[ end Kernel panic\n"
    code = b"\x66\xba\xf8\x03" + b"".join(b"\xb0" + bytes((letter,)) + b"\xee" for letter in said) + HALT

    async def story(client: QMPClient) -> list[Any]:
        await client.execute("cont")
        return [(await until_event(client, name))["data"] for name in ("GUEST_PANICKED", "SHUTDOWN")]

    guest = Booted(tmp_path, "--paused", payload=code)
    panic, shutdown = guest.tell(story)
    assert panic == {"action": "poweroff"}
    assert shutdown == {"guest": True, "reason": "guest-panic"}
    assert guest.ended() == 1


def test_who_answers_and_what_runs_the_guest(tmp_path: Path, host: tuple[str, str]) -> None:
    async def story(client: QMPClient) -> list[Any]:
        names = ("query-version", "query-kvm", "query-cpus-fast", "query-sev", "query-commands")
        seen: list[Any] = [await client.execute(name) for name in names]
        await client.execute("cont")
        await client.execute("stop")  # answered when the vCPU stands still, on its thread
        seen.append(await client.execute("query-cpus-fast"))
        await client.execute("quit")
        return seen

    guest = Booted(tmp_path, "--paused", host=host)
    version, kvm, vcpus, sev, commands, running = guest.tell(story)
    assert ("modelled" in version["package"]) is (host[1] == "model")
    assert kvm == {"enabled": host[1] == "kvm", "present": True}
    assert [vcpu["cpu-index"] for vcpu in vcpus] == [0]
    assert ("modelled" in vcpus[0]["qom-path"]) is (host[1] == "model")
    assert running[0]["thread-id"] != os.getpid()
    assert sev["enabled"] is False
    assert {"name": "sev-inject-launch-secret"} in commands
    assert guest.ended() == 0


def test_sev_commands_without_sev_are_refused_as_qemu_does(tmp_path: Path) -> None:
    packet = {"packet-header": "eA==", "secret": "eA=="}

    async def story(client: QMPClient) -> list[str]:
        texts = []
        for name, arguments in (
            ("query-sev-launch-measure", {}),
            ("query-sev-capabilities", {}),
            ("sev-inject-launch-secret", packet),
        ):
            with pytest.raises(ExecuteError) as refused:
                await client.execute(name, arguments)
            texts.append(str(refused.value))
        await client.execute("quit")
        return texts

    assert Booted(tmp_path).tell(story) == [
        "SEV launch measurement is not available",
        "KVM not enabled",
        "SEV not enabled for guest",
    ]


def test_clients_come_and_go_and_the_guest_runs_on(tmp_path: Path) -> None:
    guest = Booted(tmp_path)

    async def look(client: QMPClient) -> str:
        return str(await status(client))

    for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b'{"execute": "qmp_capabilities"}[['):
        assert guest.tell(look) == "running"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.path))
            client.sendall(sent)

    async def leave(client: QMPClient) -> None:
        await client.execute("quit")

    guest.tell(leave)
    assert guest.ended() == 0


def test_many_guests_leave_nothing_behind(tmp_path: Path) -> None:
    async def leave(client: QMPClient) -> None:
        await client.execute("quit")

    def one() -> tuple[int, int]:
        guest = Booted(tmp_path, "--paused", payload=COUNT)
        guest.tell(leave)
        assert guest.ended() == 0
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    one()
    before = one()
    for _ in range(20):
        last = one()
    assert last == before
