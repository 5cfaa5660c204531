"""``casemate vars`` as users meet it: what it prints, what it refuses, and that files change wholly or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.testing.images import variable_store

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two variables."""
    path = tmp_path / "VARS.fd"
    path.write_bytes(variable_store(0x20000))
    assert main(["vars", "set", str(path), "Timeout", "--hex", "0500", "--guid", "global", "--in-place"]) == 0
    assert main(["vars", "set", str(path), "word", "--utf16", "hi", "--guid", "shell", "--in-place"]) == 0
    return path


def test_list_names_every_variable(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", str(store)]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows == [["2", "NV+BS+RT", "Timeout", "global"], ["6", "NV+BS+RT", "word", "shell"]]


def test_get_shows_bytes_or_writes_them(store: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["vars", "get", str(store), "word"]) == 0
    assert main(["vars", "get", str(store), "word", "--raw"]) == 0
    out = capfdbinary.readouterr().out
    assert out.startswith(b"00000000  68 00 69 00 00 00")
    assert out.endswith(b"h\0i\0\0\0")


def test_set_keeps_attributes_and_the_other_file(store: Path, tmp_path: Path) -> None:
    before, new = store.read_bytes(), tmp_path / "new.fd"
    assert (
        main(["vars", "set", str(store), "Timeout", "--text", "x", "--attributes", "3", "-o", str(new)]) == 0
    )
    assert store.read_bytes() == before
    assert main(["vars", "set", str(new), "Timeout", "--text", "y", "--in-place"]) == 0
    assert b"\x03\0\0\0" in new.read_bytes()[0x64:0x70]


def test_delete_and_diff(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(tmp_path / "new.fd")
    assert main(["vars", "delete", str(store), "word", "-o", new]) == 0
    assert main(["vars", "set", new, "Timeout", "--hex", "06", "--in-place"]) == 0
    assert main(["vars", "set", new, "new", "--text", "", "--guid", GLOBAL, "--in-place"]) == 0
    assert main(["vars", "diff", str(store), new]) == 1
    assert sorted(line[0] for line in capsys.readouterr().out.splitlines()) == ["+", "-", "~"]
    assert main(["vars", "diff", new, new]) == 0


def test_export_and_import_carry_everything(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vars", "export", str(store)]) == 0
    document = tmp_path / "vars.json"
    document.write_text(capsys.readouterr().out)
    assert json.loads(document.read_text())["variables"][0]["guid"] == GLOBAL
    empty = tmp_path / "empty.fd"
    empty.write_bytes(variable_store(0x20000))
    assert main(["vars", "import", str(empty), str(document), "--in-place"]) == 0
    assert empty.read_bytes() == store.read_bytes()


def test_fsck_and_repair(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = store.read_bytes()
    store.write_bytes(sound[:0x22] + b"\0" + sound[0x23:])
    assert main(["vars", "fsck", str(store)]) == 4
    assert "error: at 0x0: the header of the volume is damaged" in capsys.readouterr().out
    assert main(["vars", "fsck", str(store), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert (document["healthy"], document["variables"], len(document["findings"])) == (False, 2, 1)
    assert main(["vars", "set", str(store), "Timeout", "--text", "x", "--in-place"]) == 4
    assert "run casemate vars fsck, then repair" in capsys.readouterr().err
    assert main(["vars", "repair", str(store), "--in-place"]) == 0
    assert store.read_bytes() == sound
    assert main(["vars", "fsck", str(store)]) == 0


def test_in_place_keeps_the_permissions(store: Path) -> None:
    os.chmod(store, 0o640)
    assert main(["vars", "delete", str(store), "word", "--in-place"]) == 0
    assert store.stat().st_mode & 0o777 == 0o640


def test_store_of_a_running_guest_is_not_changed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with store.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["vars", "delete", str(store), "word", "--in-place"]) == 4
    assert "in use by another guest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("get {} nothing", "there is no variable 'nothing'"),
        ("set {} new --text x --in-place", "name its vendor with --guid"),
        ("set {} new --text x --guid 12 --in-place", "'12' is no GUID"),
        ("set {} Timeout --hex 5 --in-place", "no row of hex digits"),
        ("set {} Timeout --data none --in-place", "No such file"),
        ("import {} {} --in-place", "no document of variables"),
        ("list none.fd", "no such file"),
        ("set {} Timeout --data {} --in-place", "delete some"),
    ],
)
def test_request_that_cannot_be_is_refused_and_changes_nothing(
    line: str, message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = store.read_bytes()
    assert main(["vars", *(word.format(store) for word in line.split())]) == 4
    assert message in capsys.readouterr().err
    assert store.read_bytes() == before


@pytest.mark.parametrize("action", ["set {} Timeout --text x", "delete {} word", "repair {}"])
def test_nothing_is_written_unless_it_is_said_where(action: str, store: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["vars", *action.format(store).split()])
    assert caught.value.code == 2
