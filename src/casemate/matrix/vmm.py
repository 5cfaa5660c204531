"""Another VMM as a cell: run under ``casemate kvm``, or judged by ``casemate conform`` (docs/guide/matrix.md)."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.errors import UnsupportedError
from casemate.matrix.settings import FILES

_ENOUGH_OUTPUT = 4 << 20
"""Bytes of a VMM's output that are kept."""
_ENDING_SECONDS = 10
"""What a VMM gets to end by itself once it was told to."""


def words_of(settings: Mapping[str, Any], name: str) -> list[str]:
    """A command with ``{code}`` and the like replaced by the files of the cell."""
    words: list[str] = settings[name]
    for file in FILES:
        words = [word.replace(f"{{{file}}}", settings.get(file, f"{{{file}}}")) for word in words]
    return words


def run_vmm(
    settings: Mapping[str, Any], folder: Path, result: dict[str, Any], artefacts: dict[str, str]
) -> None:
    """It ends by itself, when ``until`` is in its output, or after its timeout."""
    _run(settings, folder, result, artefacts, ["kvm", "--quiet"])


def judge_vmm(
    settings: Mapping[str, Any], folder: Path, result: dict[str, Any], artefacts: dict[str, str]
) -> None:
    """The same, and which rules of conformance it broke and kept. Raises UnsupportedError if nobody could judge it."""
    said = _run(settings, folder, result, artefacts, ["conform", "--json"])
    try:
        document = last_document(said)
        rules = [rule for vm in document["vms"] for rule in vm["rules"]]
    except (ValueError, KeyError):
        last = (said.strip().splitlines() or ["nothing was said"])[-1]
        raise UnsupportedError(f"the VMM could not be judged: {last}", "see its serial.log") from None
    result["broken_rules"] = sorted({rule["rule"] for rule in rules if rule["verdict"] == "broken"})
    result["kept_rules"] = sorted({rule["rule"] for rule in rules if rule["verdict"] == "kept"})
    result["exit_code"] = 0 if result["outcome"] == "until" else document["exit_code"]


def last_document(said: str) -> dict[str, Any]:
    """The JSON that a command printed last, be it on a line that its guest did not end. Raises ValueError."""
    start = said.rfind('{\n  "')  # what is inside of it stands further to the right
    document: dict[str, Any] = json.JSONDecoder().raw_decode(said[max(start, 0) :])[0]
    return document


def _run(
    settings: Mapping[str, Any],
    folder: Path,
    result: dict[str, Any],
    artefacts: dict[str, str],
    action: list[str],
) -> str:
    """What it said, after ``result`` has how it ended."""
    given = dict(settings)
    if "variables" in given:
        given["variables"] = shutil.copy(given["variables"], folder)
    command = [sys.executable, "-m", "casemate", *action, "--era", settings["era"], "--"]
    until = settings.get("until", "").encode()
    deadline = time.monotonic() + settings["timeout"]
    log = folder / "vmm.log"
    outcome = ""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *words_of(given, "vmm")], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        while not outcome:
            try:
                process.wait(0.05)
                outcome = "ended"
            except subprocess.TimeoutExpired:
                outcome = "timeout" if time.monotonic() > deadline else ""
            if until and until in log.read_bytes()[-_ENOUGH_OUTPUT:]:
                outcome = "until"
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    code = {"until": 0, "timeout": 7}.get(outcome, process.returncode)
    result |= {"outcome": outcome, "exit_code": code, "detail": f"the VMM's exit code is {code}"}
    said = log.read_bytes()[-_ENOUGH_OUTPUT:].decode("utf-8", "replace")
    artefacts["serial.log"] = said
    return said
