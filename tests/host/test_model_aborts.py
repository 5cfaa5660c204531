"""Code that would end this process in the engine's own hands (Intel SDM volume 2; docs/design/model.md)."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.guest_rig import ModelRig

from casemate.guests.actions import tell
from casemate.guests.entry import CODE64, make_image
from casemate.host.exits import Hlt

HALTED = Hlt(interrupts_enabled=False)
IDT, HANDLER, COUNT = 0x200000, 0x201000, 0x2000
LOAD_IDT = "0f011c25 00100000"
SKIP = "48ff0425 00200000 48830424"  # inc qword [COUNT]; add qword [rsp], (bytes to step over)

GIVE_UP = """
import ctypes, sys
from unicorn import unicorn_const
from casemate.host.model.cpu import unicorn_api
from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.host.model.cpu.engine import Engine
from casemate.machine.boot import boot
from casemate.machine.spec import MachineSpec
start = Engine.start

def with_hook(engine, rip):
    # The engine's own function that aborts is called at each instruction, in place of one that finds a reason to.
    aborts = ctypes.cast(unicorn_api.library.cpu_abort_x86_64, ctypes.c_void_p).value
    unicorn_api.hook_add(engine.handle, unicorn_const.UC_HOOK_CODE, aborts)
    return start(engine, rip)

open(sys.argv[1], "wb").write(make_image(tell(7), 64))
spec = MachineSpec(bios=sys.argv[1], memory=16 << 20)
Engine.start = with_hook
outcome = boot(spec, timeout=20)
print(outcome.ending.word, outcome.exit_code, outcome.detail)
Engine.start = start
print(boot(spec, timeout=20).report["exit_port"])
"""


WHILE_TRANSLATING = """
from unicorn import unicorn_const
from casemate.host.model.cpu.engine import Engine
from support.guest_rig import PROTECTED
from test_model_sev_es import HANDLER, LOAD_IDT, SevRig, put_gate
start = Engine.start

def with_hook(engine, rip):
    # The engine fetches the second half of an instruction while it translates it: there its abort is called.
    engine.hook(unicorn_const.UC_HOOK_MEM_FETCH_UNMAPPED, "hooks_abort")
    return start(engine, rip)

Engine.start = with_hook
with SevRig(LOAD_IDT + f"mov eax, {PROTECTED + 0xFFB}; jmp eax") as rig:
    rig.catch_vc()
    put_gate(rig, 6, HANDLER, 0x8E)
    code = bytes.fromhex("909090 66b8")  # nop; nop; nop; mov ax, what no slot backs
    rig.ram.writable.view[PROTECTED + 0xFFB : PROTECTED + 0x1000] = code
    print(rig.run(), int.from_bytes(rig.ram_at(0x2000, 4), "little") - PROTECTED)
"""


def with_handler(code: str, step: int) -> ModelRig:
    """A guest whose handler of #UD counts, and goes on ``step`` bytes behind."""
    rig = ModelRig(bytes.fromhex(LOAD_IDT + code), 64)
    view = rig.ram.writable.view
    view[0x1000:0x100A] = struct.pack("<HQ", 256 * 16 - 1, IDT)
    gate = struct.pack("<HHBBHQ", HANDLER & 0xFFFF, CODE64, 0, 0x8E, HANDLER >> 16, 0)
    view[IDT + 6 * 16 : IDT + 7 * 16] = gate
    handler = bytes.fromhex(f"{SKIP} {step:02x} 48cf")
    view[HANDLER : HANDLER + len(handler)] = handler
    return rig


@pytest.mark.parametrize(
    "before",
    ["eb00", "eb00 90 ffc1 ffc1", "31c9 e300 909090", "eb00 8b042530200000 ffc1", "ff0425 30200000"],
    ids=["block-start", "in-block", "two-blocks", "behind-a-load", "behind-a-store"],
)
@pytest.mark.parametrize(
    "code", ["f00fa3c0", "f00fa30b", "f0480fa3c0", "f00fbae005", "f00fba2305", "f3f00fa3c0", "66f00fa3c0"]
)
def test_lock_bt_is_undefined(before: str, code: str) -> None:
    with with_handler(f"bb 40200000 {before} {code} {code} ff0425 20200000 f4", len(code) // 2) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(COUNT, 1) == b"\x02"
        assert rig.ram_at(0x2020, 1) == b"\x01"


@pytest.mark.parametrize("code", ["0fa3c0 90", "0fbae005", "f00fab03", "f00fb303", "f00fbb03"])
def test_other_bit_instructions_are_executed(code: str) -> None:
    with with_handler(f"bb 40200000 31c0 eb00 {code} f4", 4) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(COUNT, 1) == b"\x00"


def test_engine_that_gives_up_ends_the_guest_and_not_the_process(tmp_path: Path) -> None:
    line = [sys.executable, "-c", GIVE_UP, f"{tmp_path}/bios.bin"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("host-limit 5 the CPU model gave up on the guest's code at ")
    assert second == "7"


def test_engine_without_memory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from casemate.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = (
        ["measure", "--help"],
        ["boot", "--host", "model", "--bios", f"{tmp_path}/bios.bin", "--serial", "none"],
    )
    (tmp_path / "bios.bin").write_bytes(make_image(tell(7), 64))
    codes = []
    for line in words:
        done = subprocess.run(
            [sys.executable, "-c", program, *line], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
    assert codes == [0, 5]
    assert "raise the limit of address space" in done.stderr.splitlines()[-1]


def test_translation_that_is_given_up_is_undefined() -> None:
    """The handler of #VC pops what is uppermost; of #UD that is where the instruction was."""
    tests = Path(__file__).parents[1]
    paths = (str(tests), str(tests / "host"), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    line = [sys.executable, "-c", WHILE_TRANSLATING]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == f"Hlt(interrupts_enabled=False) {0xFFE}\n", done.stderr
