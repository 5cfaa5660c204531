"""Guests booted by command on a thread, and a QMP client that other people wrote (qemu.qmp)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qemu.qmp", reason="qemu.qmp is not installed (./dev test says why)")

from qemu.qmp import ConnectError, QMPClient

from casemate.cli import main
from casemate.guests.entry import make_image

MIB = 1 << 20
COUNTER = 0x9000
COUNT = b"\xff\x05" + COUNTER.to_bytes(4, "little") + b"\xeb\xf8"  # 1: inc dword [COUNTER]; jmp 1b
HALT = b"\xf4"

Story = Callable[[QMPClient], Awaitable[Any]]


class Booted(threading.Thread):
    """``casemate boot`` of tiny 32-bit code, with its socket at ``path``; ``code`` of its end is the exit code."""

    def __init__(
        self,
        folder: Path,
        *more: str,
        payload: bytes | None = COUNT,
        host: Sequence[str] = ("--host", "model"),
    ) -> None:
        super().__init__(daemon=True)
        self.path = folder / "qmp.sock"
        self.code: int | None = None
        image = []
        if payload is not None:
            (folder / "guest.bin").write_bytes(make_image(payload, 32))
            image = ["--bios", str(folder / "guest.bin"), "--machine", "bare", "--memory", "4M"]
        self._line = ["boot", *host, *image, "--serial", "none", "--qmp", f"unix:{self.path}", *more]
        self.start()

    def run(self) -> None:
        self.code = main(self._line)

    def tell(self, story: Story) -> Any:
        """What the story comes to, told with a client of this guest."""

        async def told() -> Any:
            async with connected(self.path) as client:
                return await story(client)

        return asyncio.run(told())

    def ended(self) -> int | None:
        """The exit code, when the boot has ended."""
        self.join(20)
        assert not self.is_alive()
        return self.code


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[QMPClient]:
    """A client, as soon as somebody listens."""
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    client = QMPClient("tests")
    while True:
        try:
            await client.connect(str(path))
            break
        except ConnectError:
            await asyncio.sleep(0)
    try:
        yield client
    finally:
        with suppress(EOFError):
            await client.disconnect()


async def until_event(client: QMPClient, name: str) -> dict[str, Any]:
    """The next event of this name; others before it are dropped."""
    while (event := await client.events.get())["event"] != name:
        pass
    return dict(event)
