"""The owner's side by command: session, launch, measurement, secret; and what a flipped bit comes to."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.confidential_launches import write_guest

from casemate.cli import main
from casemate.digest.measurement import PlatformVersion, predict_measurement
from casemate.host.model.sev.platform import ModelPlatform
from casemate.testing.images import ImageBuilder

NEEDS_LIBVIRT = "needs virt-qemu-sev-validate (libvirt-clients-qemu) and python3-lxml"
SECRET_AREA = 0x80C000
PASSPHRASE = b"correct horse battery staple"


class Guest:
    """A tiny SEV-ES guest, its session made for the model's platform, and the owner's command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.firmware = write_guest(folder, b"\xf4")
        image = bytearray(self.firmware.read_bytes())
        table = ImageBuilder(len(image)).reset_block(0x80B004).secret(SECRET_AREA, 0xC00).build()
        image[-0x80:-16] = table[-0x80:-16]
        self.firmware.write_bytes(image)
        (folder / "key").write_bytes(PASSPHRASE)
        assert main(["session", "export", "--host", "model", str(folder / "platform.cert")]) == 0
        platform = ["--platform", str(folder / "platform.cert"), "--any-root"]
        assert main(["session", "make", *platform, "--policy", "5", "--name", str(folder / "guest")]) == 0

    def path(self, name: str) -> str:
        return str(self.folder / f"guest_{name}")

    def digest(self, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        line = f"measure --mode seves --vcpus 1 --vcpu-type EPYC-v4 --init legacy --ovmf {self.firmware}"
        assert main(line.split()) == 0
        return capsys.readouterr().out.strip()

    def owner(self, digest: str, more: str = "") -> str:
        keys = f"--tik {self.path('tik.bin')} --tek {self.path('tek.bin')}"
        command = f"{sys.executable} -m casemate secret {keys} --policy 5 --expect-digest {digest}"
        return f"{command} {more or f'--passphrase {self.folder}/key'}"

    def boot(self, *more: str) -> int:
        session = ["--session-file", self.path("session.b64"), "--dh-cert-file", self.path("godh.b64")]
        line = ["boot", "--host", "model", "--guest", "sev-es", "--bios", str(self.firmware), "--launch-only"]
        return main([*line, *session, "--tik", self.path("tik.bin"), "--json", *more])


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Guest:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Guest(tmp_path)
    capsys.readouterr()
    return made


def test_owner_lets_the_guest_start_with_its_secret(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    digest = guest.digest(capsys)
    assert guest.boot("--attest-cmd", guest.owner(digest)) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["measurement"]["verified"] is True
    commands = [row["command"] for row in outcome["launch"]["commands"]]
    assert commands[-3:] == ["KVM_SEV_LAUNCH_MEASURE", "KVM_SEV_LAUNCH_SECRET", "KVM_SEV_LAUNCH_FINISH"]


def test_owner_refuses_a_guest_that_measured_otherwise(
    guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guest.boot("--attest-cmd", guest.owner("00" * 32)) == 3
    error = capsys.readouterr().err
    assert "--attest-cmd refused, exit code 3" in error
    assert "not that of digest 0000" in error


def test_owner_without_a_secret_only_looks(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    digest = guest.digest(capsys)
    assert guest.boot("--attest-cmd", guest.owner(digest, "--gpa 0")) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert "KVM_SEV_LAUNCH_SECRET" not in [row["command"] for row in outcome["launch"]["commands"]]


def test_owner_by_socket(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    digest, path, questions = guest.digest(capsys), guest.folder / "owner.sock", []

    def answer() -> None:
        while True:
            with socket.socket(socket.AF_UNIX) as owner:
                try:
                    owner.connect(str(path))
                except OSError:
                    continue
                with owner.makefile("rw") as stream:
                    questions.append(json.loads(stream.readline()))
                    stream.write("{}\n")
                return

    peer = threading.Thread(target=answer, daemon=True)
    peer.start()
    assert guest.boot("--attest-socket", str(path)) == 0
    peer.join(10)
    assert questions[0]["digest"] == digest
    assert questions[0]["secret-area"] == {"gpa": SECRET_AREA, "size": 0xC00}
    assert not path.exists()


def flip(path: str, bit: int) -> None:
    data = bytearray(base64.b64decode(Path(path).read_bytes()))
    data[bit // 8] ^= 1 << bit % 8
    Path(path).write_bytes(base64.b64encode(data))


@pytest.mark.parametrize(
    ("name", "at", "status"),
    [
        ("session.b64", 0, "BAD_MEASUREMENT"),  # nonce
        ("session.b64", 16, "BAD_MEASUREMENT"),  # wrapped keys
        ("session.b64", 48, "BAD_MEASUREMENT"),  # their initialization vector
        ("session.b64", 64, "BAD_MEASUREMENT"),  # their MAC
        ("session.b64", 96, "BAD_MEASUREMENT"),  # the policy's MAC
        ("godh.b64", 0, "INVALID_CERTIFICATE"),  # version
        ("godh.b64", 20, "INVALID_CERTIFICATE"),  # a coordinate
        ("godh.b64", 16, "INVALID_CERTIFICATE"),  # the curve
    ],
)
def test_flipped_bit_of_the_session_is_refused_by_the_firmware(
    guest: Guest, capsys: pytest.CaptureFixture[str], name: str, at: int, status: str
) -> None:
    flip(guest.path(name), at * 8)
    assert guest.boot() == 5
    error = capsys.readouterr().err
    assert "KVM_SEV_LAUNCH_START (modelled): firmware status" in error
    assert status in error


def tampering(guest: Guest, digest: str, change: str) -> str:
    """An owner whose question (``q``) or answer (``a``) somebody changes on the way."""
    script = guest.folder / "tamper.py"
    script.write_text(
        "import base64, json, shlex, subprocess, sys\n"
        "def flip(text):\n"
        "    data = bytearray(base64.b64decode(text)); data[-1] ^= 1\n"
        "    return base64.b64encode(data).decode()\n"
        "q = json.load(sys.stdin)\n"
        f"{change if change.startswith('q') else 'pass'}\n"
        f"done = subprocess.run(shlex.split({guest.owner(digest)!r}), input=json.dumps(q), text=True,\n"
        "    capture_output=True)\n"
        "sys.stderr.write(done.stderr)\n"
        "if done.returncode: sys.exit(done.returncode)\n"
        "a = json.loads(done.stdout)\n"
        f"{'pass' if change.startswith('q') else change}\n"
        "print(json.dumps(a))\n"
    )
    return f"{sys.executable} {script}"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("q['measurement'] = flip(q['measurement'])", 3, "the measurement is not that of digest"),
        ("a['packet-header'] = flip(a['packet-header'])", 5, "BAD_MEASUREMENT"),
        ("a['secret'] = flip(a['secret'])", 5, "BAD_MEASUREMENT"),
        ("a['secret'] = 'AAA'", 4, "answered what is no answer"),
        ("a['packet-header'] = a['packet-header'][4:]", 5, "INVALID_LEN"),
        ("del a['packet-header']", 4, "belong together"),
        ("a['gpa'] = 0xFFFF0000_0000", 4, "where this guest has no"),
        ("a['gpa'] = 8", 5, "INVALID_ADDRESS"),
    ],
)
def test_flipped_bit_on_the_way_is_refused(
    guest: Guest, capsys: pytest.CaptureFixture[str], change: str, code: int, message: str
) -> None:
    command = tampering(guest, guest.digest(capsys), change)
    assert guest.boot("--attest-cmd", command) == code
    assert message in capsys.readouterr().err


def test_secret_of_17_bytes_is_refused_at_the_owners(
    guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    (guest.folder / "raw").write_bytes(bytes(17))
    owner = guest.owner(guest.digest(capsys), f"--raw {guest.folder}/raw")
    assert guest.boot("--attest-cmd", owner) == 3
    error = capsys.readouterr().err
    assert "exit code 4" in error
    assert "multiple of 16 bytes" in error
    assert "has 17" in error


def test_area_with_base_0_is_refused_by_name(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    image = bytearray(guest.firmware.read_bytes())
    table = ImageBuilder(len(image)).reset_block(0x80B004).secret(0, 0).build()
    image[-0x80:-16] = table[-0x80:-16]
    guest.firmware.write_bytes(image)
    assert guest.boot("--attest-cmd", guest.owner(guest.digest(capsys))) == 4
    assert "area for a secret is unusable (base 0x0, size 0x0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--session-file session.b64", 4, "--dh-cert-file is missing"),
        ("--dh-cert-file godh.b64", 4, "--session-file is missing"),
        ("--dh-cert-file session.b64 --session-file session.b64", 4, "has 2084 bytes"),
        ("--dh-cert-file nowhere --session-file session.b64", 4, "cannot be read"),
        ("--attest-cmd true --attest-socket x", 4, "one owner is asked"),
        ("--attest-cmd /nowhere", 4, "cannot be run"),
        ("--attest-cmd 'echo no'", 4, "answered what is no answer"),
        ("--attest-cmd 'sleep 9' --attest-timeout 0.1", 3, "no answer within 0.1 s"),
        ("--attest-socket owner.sock --attest-timeout 0.1", 3, "no answer within 0.1 s"),
        ("--attest-socket /nowhere/x", 5, "name a path that is free"),
    ],
)
def test_what_does_not_fit_is_refused(
    guest: Guest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(guest.folder)
    for name in ("session.b64", "godh.b64"):
        shutil.copy(guest.path(name), name)
    base = [
        "boot",
        "--host",
        "model",
        "--guest",
        "sev-es",
        "--bios",
        str(guest.firmware),
        "--launch-only",
        "--json",
    ]
    assert main([*base, *shlex.split(line)]) == code
    assert message in capsys.readouterr().err


@pytest.mark.skipif(Path("/dev/sev").exists(), reason="this machine has a secure processor")
@pytest.mark.parametrize(
    "line", ["session export --host kvm out.cert", "boot --host kvm --guest sev --bios {}"]
)
def test_without_a_secure_processor_the_device_is_named(
    guest: Guest, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    if "boot" in line and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/kvm, which is looked at first")
    assert main(line.format(guest.firmware).split()) == 5
    error = capsys.readouterr().err
    assert "/dev/sev cannot be opened" in error
    assert "ccp" in error


def test_session_is_not_made_for_a_platform_nobody_vouches_for(
    guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = str(guest.folder / "platform.cert")
    assert main(["session", "check", "--platform", platform, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [row["claim"] for row in checks if not row["holds"]] == ["the ARK is one of AMD's"]
    assert main(["session", "make", "--platform", platform, "--policy", "5"]) == 3
    assert "the ARK is one of AMD's" in capsys.readouterr().err


def test_session_for_another_platform_is_refused(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    other = guest.folder / "other.cert"
    other.write_bytes(ModelPlatform().certificates.to_bytes())
    line = ["--platform", str(other), "--any-root", "--policy", "5", "--name", str(guest.folder / "guest")]
    assert main(["session", "make", *line]) == 0
    assert guest.boot() == 5
    assert "not wrapped for this PDH" in capsys.readouterr().err


def test_keys_are_readable_by_their_owner_alone(guest: Guest) -> None:
    assert [Path(guest.path(name)).stat().st_mode & 0o777 for name in ("tek.bin", "tik.bin")] == [0o600] * 2


def shapes(secret: bytes) -> Iterator[str]:
    """The texts by which a secret would be known."""
    yield secret.decode("latin-1")
    yield secret.hex()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]


@pytest.mark.parametrize("is_expected", [True, False])
def test_no_output_shows_a_secret(
    guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_expected: bool
) -> None:
    digest = guest.digest(capsys) if is_expected else "00" * 32
    reports = [tmp_path / name for name in ("report.html", "report.json")]
    wanted = [word for path in reports for word in ("--report", str(path))]
    assert guest.boot("--attest-cmd", guest.owner(digest), *wanted) == (0 if is_expected else 3)
    shown = "".join(capsys.readouterr())
    shown += "".join(path.read_text("utf-8") for path in reports if path.exists())
    keys = [Path(guest.path(name)).read_bytes() for name in ("tik.bin", "tek.bin")]
    private = [path.read_bytes() for path in (tmp_path / "state").rglob("*.pem")]
    assert digest in shown
    for secret in (PASSPHRASE, *keys, *private):
        assert not [shape for shape in shapes(secret) if shape in shown]


@pytest.mark.parametrize("before", ["readable", "linked", "dangling"])
def test_keys_that_replace_others_are_readable_by_their_owner_alone(
    guest: Guest, tmp_path: Path, before: str
) -> None:
    keys = [tmp_path / f"g_{word}.bin" for word in ("tek", "tik")]
    elsewhere = tmp_path / "elsewhere"
    for key in keys:
        if before == "readable":
            key.write_bytes(b"old")
            key.chmod(0o644)
        else:
            key.symlink_to(elsewhere)
    if before == "linked":
        elsewhere.write_bytes(b"readable")
    platform = str(guest.folder / "platform.cert")
    line = ["--platform", platform, "--any-root", "--policy", "5", "--name", str(tmp_path / "g")]
    assert main(["session", "make", *line]) == 0
    for key in keys:
        assert (key.is_symlink(), key.stat().st_mode & 0o777, key.stat().st_size) == (False, 0o600, 16)
    assert elsewhere.exists() is (before == "linked")
    assert before != "linked" or elsewhere.read_bytes() == b"readable"


@pytest.fixture
def validate(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """libvirt's own tool, as a program."""
    program = shutil.which("virt-qemu-sev-validate")
    python = "/usr/bin/python3"
    if (
        program is None
        or subprocess.run([python, "-c", "import lxml, libvirt, cryptography"], check=False).returncode
    ):
        pytest.skip(NEEDS_LIBVIRT)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, program, *options], capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(("kind", "policy"), [("sev", 1), ("sev-es", 5)])
def test_libvirts_tool_accepts_the_measurement_and_makes_a_packet_that_is_taken(
    kind: str,
    policy: int,
    monkeypatch: pytest.MonkeyPatch,
    guest: Guest,
    capsys: pytest.CaptureFixture[str],
    validate: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = guest.folder / "owner.py"
    header, payload = (guest.folder / name for name in ("header", "payload"))
    monkeypatch.chdir(guest.folder)
    measure = "measure --mode seves --vcpus 1 --vcpu-type EPYC-v4 --init legacy --dump-vmsa --ovmf"
    assert main([*measure.split(), str(guest.firmware)]) == 0
    page = str(guest.folder / "vmsa0.bin")
    # The tool wants a second page even for one vCPU, and then measures none of it.
    vcpus = ["--num-cpus", "1", "--vmsa-cpu0", page, "--vmsa-cpu1", page] if policy & 4 else []
    script.write_text(
        "import json, subprocess, sys\n"
        "q = json.load(sys.stdin)\n"
        "line = ['/usr/bin/python3', '/usr/bin/virt-qemu-sev-validate', '--measurement', q['measurement'],\n"
        "  '--api-major', str(q['api-major']), '--api-minor', str(q['api-minor']), '--build-id', str(q['build-id']),\n"
        f"  '--policy', str(q['policy']), '--firmware', {str(guest.firmware)!r},\n"
        f"  '--tik', {guest.path('tik.bin')!r}, '--tek', {guest.path('tek.bin')!r},\n"
        f"  '--inject-secret', 'luks-key:{guest.folder}/key', *{vcpus!r},\n"
        f"  '--secret-header', {str(header)!r}, '--secret-payload', {str(payload)!r}]\n"
        "subprocess.run(line, check=True, stdout=sys.stderr)\n"
        f"header, payload = open({str(header)!r}).read(), open({str(payload)!r}).read()\n"
        "print(json.dumps({'packet-header': header, 'secret': payload}))\n"
    )
    platform = ["--platform", str(guest.folder / "platform.cert"), "--any-root"]
    assert (
        main(["session", "make", *platform, "--policy", str(policy), "--name", str(guest.folder / "guest")])
        == 0
    )
    session = ["--session-file", guest.path("session.b64"), "--dh-cert-file", guest.path("godh.b64")]
    line = [
        "boot",
        "--host",
        "model",
        "--guest",
        kind,
        "--bios",
        str(guest.firmware),
        "--launch-only",
        "--json",
    ]
    assert main([*line, *session, "--attest-cmd", f"{sys.executable} {script}"]) == 0, capsys.readouterr().err
    assert '"KVM_SEV_LAUNCH_SECRET"' in capsys.readouterr().out


def test_our_packet_holds_the_table_that_libvirts_tool_makes(
    guest: Guest,
    validate: Callable[..., subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    digest = hashlib.sha256(guest.firmware.read_bytes()).digest()
    tik, tek = (Path(guest.path(f"{name}.bin")).read_bytes() for name in ("tik", "tek"))
    nonce = bytes(range(16))
    mac = predict_measurement(digest, tik, nonce, 1, PlatformVersion(1, 55, 21))
    measurement = base64.b64encode(mac + nonce).decode()
    version = ["--api-major", "1", "--api-minor", "55", "--build-id", "21", "--policy", "1"]
    keys = ["--tik", guest.path("tik.bin"), "--tek", guest.path("tek.bin"), "--measurement", measurement]
    theirs, ours = (
        [str(guest.folder / f"{who}_{name}") for name in ("header", "payload")] for who in ("t", "o")
    )
    secret = ["--inject-secret", f"luks-key:{guest.folder}/key"]
    files = ["--secret-header", theirs[0], "--secret-payload", theirs[1]]
    done = validate(*version, *keys, "--firmware", str(guest.firmware), *secret, *files)
    assert done.returncode == 0, done.stderr
    line = ["--expect-digest", digest.hex(), "--passphrase", f"{guest.folder}/key", "--header", ours[0]]
    assert main(["secret", *version, *keys, *line, "--payload", ours[1]]) == 0

    def opened(header: str, payload: str) -> bytes:
        iv = base64.b64decode(Path(header).read_text())[4:20]
        data = base64.b64decode(Path(payload).read_text())
        return Cipher(algorithms.AES(tek), modes.CTR(iv)).decryptor().update(data)

    assert opened(*ours) == opened(*theirs)
    assert PASSPHRASE in opened(*ours)
