"""Where the modelled CPU cannot run: guests are refused in one line, and what runs none works (docs/guide/boot.md)."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.host.model.cpu import native


@pytest.fixture(params=["another processor", "another build"])
def _without_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "another processor":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    else:
        monkeypatch.setitem(native._PROLOGUES, "tlb_flush_x86_64", "cc")
        monkeypatch.setattr(native, "_installed", [])


@pytest.mark.usefixtures("_without_model")
def test_guest_on_the_model_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "bios.bin"
    image.write_bytes(make_image(tell(7), 64))
    assert main(["boot", "--host", "model", "--bios", str(image), "--json"]) == 5
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "the modelled host cannot run a guest here" in said[0]
    assert "--host kvm" in said[0]


@pytest.mark.usefixtures("_without_model")
def test_commands_that_run_no_guest_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "bios.bin"
    image.write_bytes(make_image(tell(7), 64))
    assert main(["measure", "--mode", "sev", "--ovmf", str(image)]) == 0
    assert main(["inspect", str(image)]) == 0
    assert main(["caps"]) in (0, 5)
