"""``casemate vars`` as users meet it: what it prints, what it refuses, and that files change wholly or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.firmware.variables import VENDORS, Variable
from casemate.firmware.varstore import StoreLayout
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    "action", ["set {} word --text x", "delete {} word", "compact {}", "migrate {} --to 4M"]
)
def test_in_place_keeps_owner_mode_and_links(action: str, store: Path) -> None:
    os.chmod(store, 0o600)
    os.chown(store, 1234, 4321)
    link = store.with_name("link")
    link.symlink_to(store)
    before = store.stat()
    assert main(["vars", *action.format(link).split(), "--in-place"]) == 0
    after = store.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (1234, 4321, before.st_mode)
    assert link.is_symlink()
    assert after.st_ino != before.st_ino


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


FORGED = Path(__file__).parents[1] / "data" / "cases" / "vars" / "forged-db-record.bin"
EVIL = "11223344-5566-7788-99aa-bbccddeeff00"


def names(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["vars", "list", str(path), "--json"]) == 0
    return [row["name"] for row in json.loads(capsys.readouterr().out)["variables"]]


def test_forged_record_in_a_value_stays_a_value(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["set", str(store), "evil", "--guid", EVIL, "--attributes", "3", "--data", str(FORGED)]
    assert main(["vars", *words, "--in-place"]) == 0
    before = store.read_bytes()
    assert main(["vars", "fsck", str(store)]) == 0
    assert main(["vars", "repair", str(store), "--in-place"]) == 0
    assert "nothing to repair" in capsys.readouterr().err
    assert store.read_bytes() == before
    assert names(store, capsys) == ["Timeout", "evil", "word"]
    assert main(["vars", "set", str(store), "evil", "--text", "x", "--in-place"]) == 0


def test_repair_says_what_it_left_and_keeps_the_store_as_it_was(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, guid in (("db", "security-database"), ("late", "shell")):
        assert main(["vars", "set", str(store), name, "--text", "x", "--guid", guid, "--in-place"]) == 0
    broken = bytearray(store.read_bytes())
    second = broken.index(b"\xaa\x55", 0x68)
    broken[second] = 0
    store.write_bytes(broken)
    capsys.readouterr()
    assert main(["vars", "fsck", str(store)]) == 4
    assert "left: at" in capsys.readouterr().out
    salvaged = store.with_name("salvaged.fd")
    assert main(["vars", "repair", str(store), "--salvage", "-o", str(salvaged)]) == 0
    assert main(["vars", "repair", str(store), "--in-place"]) == 0
    said = capsys.readouterr().err
    assert "salvaged late of shell" in said
    assert said.count("left db of security-database") == 2
    assert names(store, capsys) == ["Timeout"]
    assert names(salvaged, capsys) == ["Timeout", "late"]
    assert store.with_name("VARS.fd.damaged").read_bytes() == broken


def test_list_shows_what_firmware_sees_of_a_damaged_store(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = bytearray(store.read_bytes())
    broken[0x32] ^= 1
    store.write_bytes(broken)
    assert names(store, capsys) == []
    assert main(["vars", "list", str(store)]) == 0
    assert "this is what firmware sees of it" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0x20000, 0x84000])
def test_store_full_of_deleted_generations_is_noted_and_compacted(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "VARS.fd"
    path.write_bytes(aged_store(size))
    assert main(["vars", "fsck", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is True
    assert document["live"] + document["reclaimable"] + document["free"] == document["capacity"]
    assert document["reclaimable"] > 0.9 * document["capacity"]
    assert "next boot, which takes many seconds" in document["findings"][0]["effect"]
    assert document["largest_variable"] == {0x20000: 0x2000, 0x84000: 0x8400}[size]
    before = names(path, capsys)
    assert main(["vars", "compact", str(path), "--in-place"]) == 0
    assert names(path, capsys) == before
    assert main(["vars", "fsck", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["reclaimable"], document["findings"]) == (0, [])


def aged_store(size: int) -> bytes:
    """A store that is full of deleted generations of boot entries."""
    data = bytearray(variable_store(size))
    end = StoreLayout(size).end
    at, generation = 0x64, 0
    while True:
        name, vendor = f"Boot{generation % 14:04X}", VENDORS["global"]
        record = bytearray(Variable(name, vendor, 7, bytes(90)).encode(authenticated=True))
        if at + len(record) > end:
            return bytes(data)
        record[2] = 0x3C if at + 20 * len(record) < end else 0x3F if at + 14 * len(record) > end else 0x3D
        data[at : at + len(record)] = record
        at, generation = at + len(record), generation + 1


@pytest.mark.parametrize("form", ["2M", "4M", "json"])
@pytest.mark.parametrize("to", ["2M", "4M", "json"])
def test_variables_survive_every_conversion(
    form: str, to: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["vars", "migrate", str(store), "--to", form, "-o", str(first)]) == 0
    assert main(["vars", "migrate", str(first), "--to", to, "-o", str(second)]) == 0
    assert main(["vars", "diff", str(store), str(second)]) == 0
    assert main(["vars", "fsck", str(second)]) == 0
    assert second.stat().st_size == {"2M": 0x20000, "4M": 0x84000}.get(to, second.stat().st_size)


def test_document_of_qemus_device_is_edited_as_a_store_is(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vars.json"
    signed = {"name": "PK", "guid": GLOBAL, "attr": 39, "data": "00ff", "time": "e8070101" + "00" * 12}
    private = {"name": "own", "guid": EVIL, "attr": 39, "data": "01", "digest": "5a" * 32}
    path.write_text(json.dumps({"version": 2, "variables": [signed, private]}))
    assert main(["vars", "set", str(path), "Timeout", "--hex", "05", "--guid", "global", "--in-place"]) == 0
    assert main(["vars", "fsck", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["variables"][:2] == [signed, private]
    assert names(path, capsys) == ["PK", "Timeout", "own"]
    assert main(["vars", "migrate", str(path), "--to", "4M", "-o", str(tmp_path / "VARS.fd")]) == 0
    assert "digests of signers" in capsys.readouterr().err
    assert names(tmp_path / "VARS.fd", capsys) == ["PK", "Timeout", "own"]
    other = tmp_path / "other.json"
    other.write_text('{"version": 2, "variables": []}')
    assert main(["vars", "import", str(other), str(path), "--in-place"]) == 0
    assert main(["vars", "set", str(other), "own", "--hex", "02", "--in-place"]) == 0
    assert json.loads(other.read_text())["variables"][1] == private | {"data": "02"}
    assert main(["vars", "delete", str(path), "own", "--in-place"]) == 0
    assert names(path, capsys) == ["PK", "Timeout"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no document of variables"),
        ("{}", "'variables' is missing"),
        ('{"version": 3, "variables": []}', "its version is 3"),
        ('{"version": 2, "variables": 5}', "no document of variables"),
        (
            '{"version": 2, "variables": [{"name": "", "guid": "' + GLOBAL + '", "attr": 7, "data": ""}]}',
            "name",
        ),
        ('{"version": 2, "variables": [{"name": "x", "guid": "12", "attr": 7, "data": ""}]}', "GUID"),
        (
            '{"version": 2, "variables": [{"name": "x", "guid": "' + GLOBAL + '", "attr": "7", "data": ""}]}',
            "attributes",
        ),
        (
            '{"version": 2, "variables": [{"name": "x", "guid": "' + GLOBAL + '", "attr": 7, "data": "0"}]}',
            "hex",
        ),
        ("{" * 100000, "no document of variables"),
    ],
)
def test_broken_document_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vars.json"
    path.write_text(text)
    assert main(["vars", "list", str(path)]) == 4
    assert message in capsys.readouterr().err


def test_store_of_a_larger_build_is_not_pressed_into_a_smaller_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big.fd"
    big.write_bytes(variable_store(0x84000))
    (tmp_path / "value").write_bytes(bytes(0x3000))
    words = ["set", str(big), "v", "--guid", "shell", "--data", str(tmp_path / "value"), "--in-place"]
    assert main(["vars", *words]) == 0
    assert main(["vars", "migrate", str(big), "--to", "2M", "-o", str(tmp_path / "small.fd")]) == 4
    assert "2M builds take 8192" in capsys.readouterr().err
    assert not (tmp_path / "small.fd").exists()


def test_value_that_firmware_would_refuse_is_written_with_a_warning(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "value").write_bytes(bytes(0x2000))
    words = ["set", str(store), "v", "--guid", "shell", "--data", str(tmp_path / "value"), "--in-place"]
    assert main(["vars", *words]) == 0
    assert "2M builds take 8192" in capsys.readouterr().err


def test_combined_image_is_not_converted_to_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(variable_store(0x20000) + b"code" * 0x1000)
    assert main(["vars", "migrate", str(path), "--to", "4M", "-o", str(tmp_path / "x")]) == 4
    assert "firmware code of a 2M build" in capsys.readouterr().err


def test_other_disk_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "VARS.qcow2"
    path.write_bytes(b"QFI\xfb" + bytes(0x30000))
    assert main(["vars", "list", str(path)]) == 4
    assert "qemu-img convert -O raw" in capsys.readouterr().err
