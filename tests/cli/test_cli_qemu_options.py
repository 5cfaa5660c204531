"""Guests as QEMU is told them: what is taken over, and what is refused by its name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from casemate.cli import main
from casemate.cli.qemu_options import apply_qemu_options
from casemate.errors import SpecError

UNSET = ("code", "vars", "bios", "serial", "debugcon", "kernel", "initrd", "append", "qmp")


def taken(line: str) -> dict[str, Any]:
    """What the options set."""
    args = argparse.Namespace(
        machine="q35", memory=1, cpus=1, fw_cfg=[], paused=False, **dict.fromkeys(UNSET)
    )
    before = dict(vars(args))
    apply_qemu_options(args, line.split(), lambda text: int(text.removesuffix("M")))
    return {name: value for name, value in vars(args).items() if value != before[name]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-drive if=pflash,format=raw,unit=0,readonly=on,file=C.fd", {"code": Path("C.fd")}),
        ("-drive file=a,,b.fd,if=pflash,unit=1,format=raw", {"vars": Path("a,b.fd")}),
        ("-bios F.fd -m 512", {"bios": Path("F.fd"), "memory": 512}),
        ("-m size=64M --machine pc,accel=tcg", {"memory": 64, "machine": "pc"}),
        ("-M type=pc,smm=off", {"machine": "pc"}),
        ("-serial mon:stdio", {"serial": "stdio"}),
        ("-nographic", {"serial": "stdio"}),
        ("-serial unix:/run/s,server=on,wait=off", {"serial": "unix:/run/s"}),
        ("-serial file:log", {"serial": "file:log"}),
        ("-debugcon file:d -global isa-debugcon.iobase=0x402", {"debugcon": Path("d")}),
        ("-kernel k -initrd i -append quiet", {"kernel": Path("k"), "initrd": Path("i"), "append": "quiet"}),
        (
            "-fw_cfg name=opt/a,file=f -fw_cfg opt/b,string=text",
            {"fw_cfg": [("opt/a", Path("f")), ("opt/b", b"text")]},
        ),
        ("-nodefaults -display none -accel tcg -vga none -net none", {}),
        ("-smp 2", {"cpus": 2}),
        ("-qmp unix:/run/q,server=on,wait=off -S", {"qmp": "unix:/run/q", "paused": True}),
        ("-qmp unix:q,server,nowait", {"qmp": "unix:q"}),
        ("-smp cpus=4", {"cpus": 4}),
    ],
)
def test_supported_options_are_taken_over(line: str, expected: dict[str, Any]) -> None:
    assert taken(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-cpu host", "the modelled processor is not this computer's"),
        ("-enable-kvm", "-enable-kvm is not supported"),
        ("-smp 2,sockets=2", "-smp sockets=2 is not supported"),
        ("-smp many", "-smp many is not supported"),
        ("-drive file=disk.qcow2,format=qcow2", "format=qcow2 is not supported"),
        ("-drive if=pflash,format=raw", "-drive if=pflash,format=raw is not supported"),
        ("-drive if=pflash,format=raw,unit=0,file=C.fd", "add readonly=on"),
        ("-drive if=pflash,unit=1,readonly=on,file=V.fd", "unit 1 is written to"),
        ("-machine q35,smm=on", "smm=on is not supported"),
        ("-machine microvm", "type=microvm is not supported"),
        ("-serial tcp::4444", "-serial tcp::4444 is not supported"),
        ("-debugcon stdio", "-debugcon stdio is not supported"),
        ("-fw_cfg name=opt/a", "-fw_cfg name=opt/a is not supported"),
        ("-global x.y=z", "-global x.y=z is not supported"),
        ("-m", "-m needs a value"),
        ("-qmp stdio", "-qmp stdio is not supported"),
        ("-qmp tcp:localhost:4444,server=on,wait=off", "-qmp tcp:localhost:4444,server=on,wait=off is not"),
        ("-qmp unix:q,server=on", "-qmp unix:q,server=on is not supported"),
        ("-qmp unix:q,wait=off", "-qmp unix:q,wait=off is not supported"),
        ("-qmp unix:,server=on,wait=off", "-qmp unix:,server=on,wait=off is not supported"),
        ("-qmp unix:q,server=on,wait=off -qmp unix:r,server=on,wait=off", "gives qmp a second time"),
        ("-qmp-pretty unix:q,server=on,wait=off", "-qmp-pretty unix:q,server=on,wait=off is not supported"),
        ("disk.img", "'disk.img' is no option of QEMU"),
        ("-bios a -bios b", "gives bios a second time"),
        ("-object sev-guest,id=s", "-object sev-guest,id=s is not supported"),
    ],
)
def test_other_options_are_refused_by_name(line: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        taken(line)
    assert message in str(caught.value)


def test_command_takes_them_behind_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--json", "--", "-bios", "none.fd", "-m", "64"]) == 4
    assert "none.fd: no such file" in capsys.readouterr().err
    assert main(["boot", "--json", "--", "-bios", "none.fd", "-m", "lots"]) == 4
    assert "QEMU's -m: 'lots' is no size" in capsys.readouterr().err
