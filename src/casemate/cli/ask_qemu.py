"""What a QEMU binary says of itself: options, objects, machines (QEMU docs/interop/qmp-spec, qapi/introspect.json)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from typing import IO, Any

from casemate.errors import UnsupportedError
from casemate.qemu.releases import QemuRelease, version_of

_SECONDS = 60
_OPTION = re.compile(r"^(-[\w-]+(?:(?:/| or )-[\w-]+)*)( ?)(.*)$")
_SHOWN_WITHOUT_VALUE = ("-dtb", "-M")
"""A value follows these, though the help does not look like it."""
_REMEDY = "name a qemu-system-x86_64 that runs here, or a release with --qemu"


def ask_qemu(command: Sequence[str]) -> QemuRelease:
    """Ask the binary that ``command`` starts, by help and QMP. Raises UnsupportedError if it does not answer."""
    try:
        text = subprocess.run(
            [*command, "-help"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=True,
        ).stdout
        words = [*command, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as qemu:
            try:
                assert qemu.stdin
                assert qemu.stdout
                return _ask(qemu.stdin, qemu.stdout, _options(text))
            finally:
                qemu.kill()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, StopIteration) as error:
        cause = f"{command[0]} does not answer as QEMU does: {error or type(error).__name__}"
        raise UnsupportedError(cause, _REMEDY) from None


def _ask(stdin: IO[bytes], stdout: IO[bytes], options: dict[str, bool]) -> QemuRelease:
    greeting = json.loads(stdout.readline())
    numbers = greeting["QMP"]["version"]["qemu"]
    _call(stdin, stdout, "qmp_capabilities")
    schema = {entry["name"]: entry for entry in _call(stdin, stdout, "query-qmp-schema")}
    objects = schema[schema["object-add"]["arg-type"]]
    machines = _call(stdin, stdout, "query-machines")
    q35 = next(machine["name"] for machine in machines if machine.get("alias") == "q35")
    properties = _call(stdin, stdout, "qom-list-properties", typename=f"{q35}-machine")
    names = {name for machine in machines for name in (machine["name"], machine.get("alias")) if name}
    return QemuRelease(
        version=version_of(f"{numbers['major']}.{numbers['minor']}"),
        options=options,
        objects={
            variant["case"]: frozenset(
                member["name"] for member in (*objects["members"], *schema[variant["type"]]["members"])
            )
            for variant in objects["variants"]
        },
        machine_properties=frozenset(entry["name"] for entry in properties),
        machines=frozenset(names),
    )


def _call(stdin: IO[bytes], stdout: IO[bytes], command: str, **arguments: str) -> Any:
    stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stdin.flush()
    for line in stdout:
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{command}: {answer['error'].get('desc')}")
        if "return" in answer:
            return answer["return"]
    raise ValueError(f"{command}: no answer")


def _options(text: str) -> dict[str, bool]:
    """Each option of ``-help`` and whether a value follows: what the value is called stands one space behind it."""
    options: dict[str, bool] = {}
    for line in text.splitlines():
        if match := _OPTION.match(line):
            has_value = bool(match[2]) and bool(match[3]) and not match[3].startswith(" ")
            names = (name.replace("--", "-", 1) for name in re.split(r"/| or ", match[1]))
            options.update((name, has_value or name in _SHOWN_WITHOUT_VALUE) for name in names)
    return options
