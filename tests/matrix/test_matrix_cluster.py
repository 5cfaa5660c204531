"""``casemate matrix --on``: Dask workers that come, die and are of other versions."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from support.booting import TinyGuest
from support.matrix_runs import RunMatrix, children

import casemate

pytest.importorskip("distributed", reason="Dask is not installed (pip install 'casemate[matrix]')")

CELLS = 24
MATRIX = """
[settings]
machine = "bare"
memory = "4M"
timeout = 60
[axes]
vcpus = [1]
policy = [{numbers}]
[axes.image]
counts = {{ bios = "guest.bin" }}
[[expect]]
outcome = "exit-port"
"""
COUNTS = "mov ecx, 30000000; l: dec ecx; jnz l; mov al, 7; out 0xf4, al; hlt"


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Dask sets variables for the processes that it starts, and leaves them: other tests start processes, too."""
    with patch.dict(os.environ):
        yield


def workers(pid: int) -> list[int]:
    """Those of them that are Dask's workers: they started a cell server."""
    found = []
    for child in children(pid):
        try:
            servers = [Path(f"/proc/{each}/cmdline").read_bytes() for each in children(child)]
        except FileNotFoundError:
            continue
        own = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in own and any(b"cell_server" in server for server in servers):
            found.append(child)
    return found


@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_in_the_middle_loses_no_cell_and_doubles_none(
    tiny_guest: TinyGuest, tmp_path: Path
) -> None:
    tiny_guest(COUNTS)
    numbers = ", ".join(map(str, range(CELLS)))
    (tmp_path / "m.toml").write_text(MATRIX.format(numbers=numbers))
    command = [sys.executable, "-m", "casemate", "matrix", "m.toml", "--on", "local:2", "--json"]
    running = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = tmp_path / "m.matrix" / "results.jsonl"
    while not lines.exists() or len(lines.read_text().splitlines()) < 3:
        assert running.poll() is None, running.communicate()
        os.sched_yield()
    victim = workers(running.pid)[0]
    os.kill(victim, signal.SIGKILL)
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert json.loads(out)["counts"]["good"] == CELLS
    keys = Counter(json.loads(line)["key"] for line in lines.read_text().splitlines())
    assert len(keys) == CELLS
    assert set(keys.values()) == {1}


def test_a_cell_that_hangs_on_a_worker_ends_by_its_own_timeout(
    run_matrix: RunMatrix, tiny_guest: TinyGuest
) -> None:
    tiny_guest("jmp $")
    text = MATRIX.format(numbers="1").replace("timeout = 60", "timeout = 0.3").replace("exit-port", "timeout")
    ran = run_matrix(text, "--on", "local:1")
    assert ran.document["counts"]["good"] == 1


def test_the_results_are_those_of_processes_here(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    assert run_matrix(two_guests, "--on", "local:2").document["ran"] == 4
    assert run_matrix(two_guests).document["ran"] == 0


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("local:0", 4, "use local:N"),
        ("ssh://host", 4, "use local:N"),
        ("tcp://127.0.0.1:1", 5, "whoever reaches this port runs code on its workers"),
    ],
)
def test_a_cluster_that_is_none_is_refused(
    where: str, code: int, says: str, run_matrix: RunMatrix, two_guests: str
) -> None:
    ran = run_matrix(two_guests, "--on", where)
    assert ran.code == code
    assert says in ran.err


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a Dask scheduler that was started by somebody else."""
    with scheduler_at(tmp_path / "scheduler.json") as address:
        yield address


@contextlib.contextmanager
def scheduler_at(file: Path, *options: str) -> Iterator[str]:
    """A scheduler that writes its address to ``file``."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            address = ""
            while not address:
                assert process.poll() is None
                with contextlib.suppress(OSError, ValueError):  # not written, or not to its end
                    address = json.loads(file.read_text())["address"]
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def worker_at(address: str, folder: Path, path: str = "") -> Iterator[None]:
    """A worker with a nanny, as ``dask worker`` starts it, that may find another casemate in ``path``."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def test_a_cluster_that_runs_already_is_used_with_a_warning(
    run_matrix: RunMatrix, two_guests: str, scheduler: str, tmp_path: Path
) -> None:
    with worker_at(scheduler, tmp_path):
        ran = run_matrix(two_guests, "--on", scheduler)
    assert ran.document["counts"]["good"] == 4
    assert "whoever reaches this port runs code on its workers" in ran.err


def certificates(folder: Path) -> dict[str, str]:
    """An authority of one's own with a certificate for all, as variables of Dask's configuration name them."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "laboratory")
    ]
    now = datetime.now(UTC)
    for number, file in enumerate(("ca", "all")):
        builder = x509.CertificateBuilder().subject_name(names[number]).issuer_name(names[0])
        builder = builder.public_key(keys[number].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(number == 0, None), critical=True)
        made = builder.sign(keys[0], hashes.SHA256())
        (folder / f"{file}.pem").write_bytes(made.public_bytes(Encoding.PEM))
    form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    (folder / "all.key").write_bytes(keys[1].private_bytes(*form))
    found = {"CA_FILE": f"{folder}/ca.pem"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found |= {f"{role}__CERT": f"{folder}/all.pem", f"{role}__KEY": f"{folder}/all.key"}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in found.items()}


def test_a_cluster_behind_tls_is_used_without_a_warning_and_by_those_who_have_its_certificates(
    two_guests: str, tmp_path: Path
) -> None:
    (tmp_path / "m.toml").write_text(two_guests)
    secrets = os.environ | certificates(tmp_path)
    with patch.dict(os.environ, secrets), scheduler_at(tmp_path / "s.json", "--protocol", "tls") as address:
        assert address.startswith("tls://")
        with worker_at(address, tmp_path):
            command = [sys.executable, "-m", "casemate", "matrix", "m.toml", "--json", "--on", address]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            (tmp_path / "other").mkdir()
            others = os.environ | certificates(tmp_path / "other")
            refused = subprocess.run(
                [*command, "--out", "other"],
                cwd=tmp_path,
                env=others,
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["good"] == 4
    assert done.stderr == ""
    assert refused.returncode == 5
    assert "Traceback" not in refused.stderr


def test_a_worker_with_another_casemate_is_refused(
    run_matrix: RunMatrix, two_guests: str, scheduler: str, tmp_path: Path
) -> None:
    other = shutil.copytree(Path(casemate.__file__).parent, tmp_path / "other" / "casemate")
    with (other / "version.py").open("a") as file:
        file.write("# another one\n")
    with worker_at(scheduler, tmp_path, str(tmp_path / "other")):
        ran = run_matrix(two_guests, "--on", scheduler)
    assert ran.code == 5
    assert "has another casemate" in ran.err
