"""A SEV launch with its owner at the other end of QMP: measured, asked for its secret, let go or not."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from support.confidential_launches import write_guest

pytest.importorskip("qemu.qmp", reason="qemu.qmp is not installed (./dev test says why)")

from qemu.qmp import ExecuteError, QMPClient
from support.qmp_guests import Booted, until_event

from casemate.cli import main
from casemate.errors import FirmwareStatusError
from casemate.host.model.sev.psp import ModelPsp
from casemate.machine.vcpus import VcpuGate
from casemate.testing.images import ImageBuilder

SECRET_AREA = 0x80C000
SECRET = b"*the owner's own"
TELL = (
    b"\xa0" + struct.pack("<I", SECRET_AREA) + b"\xe6\xf4\xeb\xfe"
)  # mov al, [SECRET_AREA]; out 0xf4, al; jmp $


class Owner:
    """A guest's image, session and keys; ``kind`` is sev or sev-es."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.policy = 1 if kind == "sev" else 5
        self.image = write_guest(folder, TELL)
        data = bytearray(self.image.read_bytes())
        data[-0x80:-16] = ImageBuilder(len(data)).secret(SECRET_AREA, 0xC00).build()[-0x80:-16]
        self.image.write_bytes(data)
        (folder / "secret").write_bytes(SECRET)
        platform = str(folder / "platform.cert")
        assert main(["session", "export", "--host", "model", platform]) == 0
        line = ["session", "make", "--platform", platform, "--any-root", "--policy", str(self.policy)]
        assert main([*line, "--name", str(folder / "guest")]) == 0

    def boot(self, *more: str) -> Booted:
        session = ["--session-file", self.path("session.b64"), "--dh-cert-file", self.path("godh.b64")]
        guest = ["--guest", self.kind, "--bios", str(self.image), "--memory", "16M", "--json", "--paused"]
        return Booted(self.folder, *guest, *session, *more, payload=None)

    def path(self, name: str) -> str:
        return str(self.folder / f"guest_{name}")

    def digest(self, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        mode = self.kind.replace("-", "")
        line = f"measure --mode {mode} --vcpus 1 --vcpu-type EPYC-v4 --init legacy --ovmf {self.image}"
        assert main(line.split()) == 0
        return capsys.readouterr().out.strip()

    def packet(self, sev: dict[str, Any], measurement: str, digest: str) -> dict[str, Any]:
        """What `casemate secret` makes of QEMU's answers: arguments of sev-inject-launch-secret."""
        header, payload = str(self.folder / "header"), str(self.folder / "payload")
        shown = [f"--{name}={sev[name]}" for name in ("policy", "api-major", "api-minor", "build-id")]
        keys = ["--tik", self.path("tik.bin"), "--tek", self.path("tek.bin"), "--measurement", measurement]
        files = ["--raw", str(self.folder / "secret"), "--header", header, "--payload", payload]
        assert main(["secret", *shown, *keys, "--expect-digest", digest, *files]) == 0
        return {"packet-header": Path(header).read_text(), "secret": Path(payload).read_text()}


@pytest.fixture(params=["sev", "sev-es"])
def owner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owner:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Owner(tmp_path, str(request.param))


async def ask(client: QMPClient, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await client.execute(command, arguments)
    assert isinstance(answer, dict)
    return answer


async def refused(client: QMPClient, packet: dict[str, Any]) -> str:
    with pytest.raises(ExecuteError) as error:
        await client.execute("sev-inject-launch-secret", packet)
    return str(error.value)


def outcome_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    text = capsys.readouterr().out
    outcome = json.loads(text[text.index("{\n") :])
    assert isinstance(outcome, dict)
    return outcome


def flipped(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return base64.b64encode(data).decode()


def test_guest_gets_its_secret_and_runs(owner: Owner, capsys: pytest.CaptureFixture[str]) -> None:
    digest = owner.digest(capsys)

    async def story(client: QMPClient) -> list[Any]:
        sev = await ask(client, "query-sev")
        assert sev["enabled"]
        assert (sev["state"], sev["policy"], sev["sev-type"]) == ("launch-secret", owner.policy, "sev")
        assert (await ask(client, "query-status"))["status"] == "prelaunch"
        measurement = (await ask(client, "query-sev-launch-measure"))["data"]
        assert len(base64.b64decode(measurement)) == 48
        packet = owner.packet(sev, measurement, digest)
        assert await ask(client, "sev-inject-launch-secret", packet) == {}
        await client.execute("cont")
        return [(await until_event(client, name)).get("data") for name in ("RESUME", "SHUTDOWN")]

    guest = owner.boot("--tik", owner.path("tik.bin"))
    assert guest.tell(story) == [None, {"guest": True, "reason": "guest-shutdown"}]
    assert guest.ended() == 0
    outcome = outcome_of(capsys)
    assert (outcome["outcome"], outcome["exit_port"]) == ("exit-port", SECRET[0])
    commands = [row["command"] for row in outcome["launch"]["commands"]]
    assert commands[-3:] == ["KVM_SEV_LAUNCH_MEASURE", "KVM_SEV_LAUNCH_SECRET", "KVM_SEV_LAUNCH_FINISH"]


def test_wrong_packets_are_refused_and_the_guest_never_runs(
    owner: Owner, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = owner.digest(capsys)

    async def story(client: QMPClient) -> None:
        sev, shown = await ask(client, "query-sev"), await ask(client, "query-sev-launch-measure")
        good = owner.packet(sev, shown["data"], digest)
        for name in good:
            text = await refused(client, good | {name: flipped(good[name])})
            assert text.startswith("SEV: failed to inject secret ret=-5 fw_error=")
        for name, what in (("packet-header", "sequence header"), ("secret", "data")):
            assert await refused(client, good | {name: "no base64!"}) == f"SEV: Failed to decode {what}"
        for gpa in (0x4000_0000, (1 << 64) - 16):
            text = await refused(client, good | {"gpa": gpa})
            assert text.startswith("SEV: Failed to calculate guest address: ")
        assert "fw_error=0" in await refused(client, good | {"secret": ""})
        assert (await ask(client, "query-sev"))["state"] == "launch-secret"
        await client.execute("quit")

    guest = owner.boot()
    guest.tell(story)
    assert guest.ended() == 0
    outcome = outcome_of(capsys)
    assert (outcome["outcome"], outcome["launch"]["state"]) == ("quit", "launch-secret")
    assert outcome["exit_port"] is None
    assert "KVM_SEV_LAUNCH_FINISH" not in [row["command"] for row in outcome["launch"]["commands"]]


def test_secret_needs_a_place_and_the_right_moment(tmp_path: Path) -> None:
    packet = {"packet-header": "", "secret": ""}
    image = write_guest(tmp_path, b"\xeb\xfe")
    line = ["--guest", "sev", "--bios", str(image), "--memory", "16M", "--paused"]

    async def story(client: QMPClient) -> list[str]:
        texts = [await refused(client, packet)]
        await client.execute("system_reset")
        assert (await until_event(client, "RESET"))["data"]["guest"] is False
        measured = await ask(client, "query-sev-launch-measure")
        await client.execute("cont")
        await client.execute("stop")
        assert (await ask(client, "query-sev"))["state"] == "running"
        assert await ask(client, "query-sev-launch-measure") == measured
        texts.append(await refused(client, packet | {"gpa": 0}))
        await client.execute("quit")
        return texts

    guest = Booted(tmp_path, *line, payload=None)
    assert guest.tell(story) == [
        "SEV: no secret area found in OVMF, gpa must be specified.",
        "SEV: Not in correct state. (LSECRET) 3",
    ]
    assert guest.ended() == 0


def test_secret_area_at_address_0_is_not_believed(tmp_path: Path) -> None:
    image = write_guest(tmp_path, b"\xeb\xfe")
    data = bytearray(image.read_bytes())
    data[-0x80:-16] = ImageBuilder(len(data)).secret(0, 0xC00).build()[-0x80:-16]
    image.write_bytes(data)

    async def story(client: QMPClient) -> str:
        text = await refused(client, {"packet-header": "", "secret": ""})
        await client.execute("quit")
        return text

    guest = Booted(tmp_path, "--guest", "sev", "--bios", str(image), "--paused", payload=None)
    assert "the area for a secret is unusable (base 0x0" in guest.tell(story)
    assert guest.ended() == 0


def test_launch_that_nobody_lets_go_is_not_waited_for_without_paused(tmp_path: Path) -> None:
    """Its measurement can be had all the same."""
    image = write_guest(tmp_path, b"\xeb\xfe")

    async def story(client: QMPClient) -> dict[str, Any]:
        assert (await ask(client, "query-status"))["status"] == "running"
        measured = await ask(client, "query-sev-launch-measure")
        await client.execute("quit")
        return measured

    guest = Booted(tmp_path, "--guest", "sev-es", "--bios", str(image), "--memory", "16M", payload=None)
    assert len(base64.b64decode(guest.tell(story)["data"])) == 48
    assert guest.ended() == 0


def test_launch_that_fails_ends_the_conversation(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """LAUNCH_FINISH is refused behind ``cont``, while a ``stop`` waits for vCPUs that never come."""
    stopping, pause = threading.Event(), VcpuGate.pause

    def finish(_: ModelPsp) -> None:
        assert stopping.wait(20)
        raise FirmwareStatusError("LAUNCH_FINISH", 1, "as the test wants it")

    def paused(self: VcpuGate) -> None:
        stopping.set()
        pause(self)

    async def story(client: QMPClient) -> dict[str, Any]:
        await asyncio.gather(client.execute("cont"), client.execute("stop"))
        return await until_event(client, "SHUTDOWN")

    monkeypatch.setattr(ModelPsp, "launch_finish", finish)
    monkeypatch.setattr(VcpuGate, "pause", paused)
    guest = owner.boot()
    assert guest.tell(story)["data"] == {"guest": False, "reason": "host-error"}
    assert guest.ended() == 5


def snp_image(folder: Path) -> Path:
    sections = (
        (0x800000, 0x9000, 1),
        (0x80D000, 0x1000, 2),
        (0x80E000, 0x1000, 3),
        (0x80F000, 0x1000, 0x10),
    )
    path = folder / "snp.fd"
    path.write_bytes(ImageBuilder().reset_block(0x80B004).sev_metadata(*sections).build())
    return path


def test_snp_guest_waits_before_its_first_instruction(tmp_path: Path) -> None:
    async def story(client: QMPClient) -> list[Any]:
        seen: list[Any] = [await ask(client, "query-status"), await ask(client, "query-sev")]
        with pytest.raises(ExecuteError, match="SEV launch measurement is not available"):
            await client.execute("query-sev-launch-measure")
        seen.append(await refused(client, {"packet-header": "", "secret": "", "gpa": 0}))
        await client.execute("quit")
        return seen

    line = ["--guest", "snp", "--bios", str(snp_image(tmp_path)), "--memory", "16M", "--paused"]
    guest = Booted(tmp_path, *line, payload=None)
    status, sev, text = guest.tell(story)
    assert status["status"] == "prelaunch"
    assert (sev["sev-type"], sev["state"], sev["snp-policy"]) == ("sev-snp", "running", 0x30000)
    assert text == "SEV: Not in correct state. (LSECRET) 3"
    assert guest.ended() == 0
