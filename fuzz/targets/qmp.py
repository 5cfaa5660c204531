"""Streams of QMP from a hostile client to a guest's monitor (QEMU docs/interop/qmp-spec)."""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from casemate.guests.entry import make_image
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.qmp.commands import make_commands
from casemate.qmp.guest_control import GuestControl
from casemate.qmp.protocol import Conversation
from fuzz.edits import EDITS, JSON_WORDS, damaged
from fuzz.target import Target, quick

READY = b'{"execute": "qmp_capabilities"}'
WORDS = (
    *(
        b"'",
        b'"',
        b"\\",
        b"}",
        b"{",
        b"]",
        b"\xfe",
        b"\x00",
        b"\r\n",
        b"\xf0\x9f\x92\xa9",
        b"[" * 200,
        b'{"a":' * 120,
    ),
    *(
        b'"execute"',
        b'"exec-oob"',
        b'"arguments"',
        b'"id"',
        b'"enable"',
        b'"oob"',
        b'"gpa"',
        b"-1",
        b"1.5",
        READY,
    ),
)
UNEXPECTED = re.compile(r"^[A-Z]\w*(Error|Exception|Interrupt|Exit)\b: ")
"""What a command's own failure looks like in an answer."""


@functools.cache
def _control(_process: int) -> GuestControl:
    image = Path(tempfile.mkdtemp(prefix="qmp-"), "image")
    image.write_bytes(make_image(b"\xf4", 32))
    clock, recorder = GuestClock(), Recorder()
    machine = Machine(
        MachineSpec(bios=image, memory=2 << 20), ModelHypervisor(clock), clock, Console(recorder), recorder
    )
    machine.assemble()
    control = GuestControl(lambda _name, _data: None, paused=True, timeout=1)
    control.attach(machine, None)
    control.quit()  # for nobody runs its vCPU, and a client that stops the guest would wait for that
    return control


@functools.cache
def messages() -> tuple[bytes, ...]:
    """A sound message for every command, and some that QEMU's other clients send."""
    secret = {"packet-header": "AAAA", "secret": "AAAA", "gpa": 1}
    names = [
        command.name
        for command in make_commands(GuestControl(lambda _name, _data: None, paused=True, timeout=1))
    ]
    sound = [
        {"execute": name, "id": number}
        for number, name in enumerate((*names, "query-version", "query-commands"))
    ]
    sound += [
        {"execute": "sev-inject-launch-secret", "arguments": secret},
        {"execute": "quit", "arguments": {}},
    ]
    sound += [
        {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}},
        {"exec-oob": "stop", "id": None},
    ]
    return tuple(json.dumps(each).encode() for each in sound)


@quick(200)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=5), EDITS, st.integers(1, 64))
def check(which: Sequence[int], edits: Sequence[int], piece: int) -> None:
    """Every answer is JSON, either a return or an error of the protocol."""
    conversation = Conversation(make_commands(_control(os.getpid())), "fuzzed")
    sent = b"".join(messages()[number % len(messages())] for number in which)
    sent = READY + damaged(sent, edits, (*JSON_WORDS, *WORDS)) + b"\n"
    for start in range(0, len(sent), piece):
        for line in conversation.receive(sent[start : start + piece]):
            answer = json.loads(line)
            assert ("return" in answer) != ("error" in answer), answer
            assert not UNEXPECTED.match(answer.get("error", {}).get("desc", "")), answer


TARGET = Target("qmp", "streams of QMP messages", check, memory=4 << 30)
