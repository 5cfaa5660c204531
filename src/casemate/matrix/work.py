"""What is done for one cell, in a process of its own: boot, measure, lint, conform (docs/guide/matrix.md).

The answer is plain data: ``result``, small enough for a line, and ``artefacts``, the contents of files by their names.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice
from casemate.advise.conformance import Verdict, judge
from casemate.api.advise import lint
from casemate.api.boot import boot
from casemate.api.measure import measure
from casemate.confidential.preparation import LaunchOptions
from casemate.digest.cpu_models import DEFAULT_VCPU_TYPE, model_signature
from casemate.errors import CasemateError
from casemate.evidence.report_html import render_html
from casemate.evidence.traced_host import HostTracer
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.machine.boot import Attachments
from casemate.machine.host_choice import choose_host
from casemate.machine.outcome import Outcome
from casemate.machine.spec import MachineSpec
from casemate.matrix.settings import FILES, bytes_of

Settings = Mapping[str, Any]

_ENOUGH_OUTPUT = 4 << 20
"""Bytes of a VMM's output that are kept."""


def run_cell(settings: Settings) -> dict[str, Any]:
    """Do all the work of one cell. Nothing that goes wrong is an exception: it is the cell's outcome."""
    started = time.monotonic()
    result: dict[str, Any] = {"outcome": "done", "detail": "", "exit_code": 0}
    artefacts: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="casemate-cell-") as folder:
            for work in settings["work"]:
                _WORKS[work](settings, Path(folder), result, artefacts)
    except CasemateError as error:
        result |= {"outcome": "refused", "detail": str(error), "exit_code": error.exit_code}
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        result |= {"outcome": "internal-error", "detail": detail, "exit_code": 6}
    result["seconds"] = round(time.monotonic() - started, 3)
    return {"result": result, "artefacts": artefacts}


def _firmware(settings: Settings) -> dict[str, Any]:
    """Of a code image and a whole one that are both given, what this kind of guest can have."""
    if not GuestKind(settings["kind"]).takes_flash and "bios" in settings:
        return {"bios": settings["bios"]}
    if "code" in settings:
        return {name: settings[name] for name in ("code", "variables") if name in settings}
    return {"bios": settings["bios"]} if "bios" in settings else {}


def _boot(settings: Settings, folder: Path, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    if "vmm" in settings:
        _run_vmm(settings, folder, result, artefacts)
    else:
        _tell(_outcome(settings, folder, lambda host: host), result, artefacts)


def _conform(settings: Settings, folder: Path, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    tracer = HostTracer()
    _tell(_outcome(settings, folder, tracer.around), result, artefacts)
    is_bios = "bios" in _firmware(settings)
    judged = [each for trace in tracer.traces for each in judge(trace.steps, is_bios=is_bios)]
    result["broken_rules"] = sorted({each.rule.id for each in judged if each.verdict is Verdict.BROKEN})
    result["kept_rules"] = sorted({each.rule.id for each in judged if each.verdict is Verdict.KEPT})


def _outcome(settings: Settings, folder: Path, around: Any) -> Outcome:
    spec = _spec(settings, folder)
    chosen = choose_host(f"model:{settings['era']}", spec)

    def make(clock: GuestClock) -> Hypervisor:
        host: Hypervisor = around(chosen.make(clock))
        return host

    return boot(
        spec,
        _launch(settings) if spec.kind.is_confidential else None,
        host=replace(chosen, make=make),
        until=settings.get("until"),
        timeout=settings["timeout"],
        watchdog=settings.get("watchdog"),
        typed=settings.get("typed", ()),
        prompt=settings.get("prompt", "Shell> "),
        attachments=Attachments(ends_at_prompt=True),
    )


def _spec(settings: Settings, folder: Path) -> MachineSpec:
    files = _firmware(settings)
    if "variables" in files:  # which the guest changes
        files["variables"] = shutil.copy(files["variables"], folder)
    files |= {name: settings[name] for name in ("kernel", "initrd") if name in settings}
    words: dict[str, Any] = {name: Path(path) for name, path in files.items()}
    words |= {
        name: settings[name] for name in ("append", "protection", "vcpus", "machine") if name in settings
    }
    if "memory" in settings:
        words["memory"] = bytes_of(settings["memory"])
    if "cpu" in settings:
        words["cpu"] = CpuChoice.parse(settings["cpu"])
    return MachineSpec(kind=GuestKind(settings["kind"]), **words)


def _launch(settings: Settings) -> LaunchOptions:
    return LaunchOptions(
        policy=settings.get("policy"),
        features=tuple(settings.get("features", ())),
        init=settings.get("init", "auto"),
        kernel_hashes=settings.get("kernel-hashes", False),
        vcpus=settings.get("vcpus", 1),
        signature=model_signature(settings.get("vcpu-type", DEFAULT_VCPU_TYPE)),
        launch_only=settings.get("launch-only", False),
    )


def _tell(outcome: Outcome, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    document = outcome.to_report(f"a cell of a matrix: {outcome.report['guest']['kind']} guest")
    result |= {name: document[name] for name in ("outcome", "detail", "exit_code", "warnings")}
    firmware = document["flash"] or [each for each in (document["bios"],) if each]
    result["protection"] = firmware[0].get("protection") if firmware else None
    result["violations"] = document["writes"]["violations"]
    if document["measurement"]:
        result["digest"] = document["measurement"].get("digest")
    artefacts["report.json"] = json.dumps(document, indent=2)
    artefacts["report.html"] = render_html(document)
    artefacts["serial.log"] = outcome.serial


def _measure(settings: Settings, _folder: Path, result: dict[str, Any], _artefacts: dict[str, str]) -> None:
    given = _firmware(settings)
    kernel = {name: settings[name] for name in ("kernel", "initrd", "append") if name in settings}
    options: dict[str, Any] = kernel if settings.get("kernel-hashes") else {}
    if "vcpu-type" in settings:
        options["vcpu_type"] = settings["vcpu-type"]
    image = given.get("code") or given["bios"]
    prediction = measure(image, settings["kind"], vcpus=settings.get("vcpus", 1), **options)
    result["predicted"] = prediction.digest.hex()
    result.setdefault("digest", result["predicted"])


def _lint(settings: Settings, _folder: Path, result: dict[str, Any], _artefacts: dict[str, str]) -> None:
    found = lint(_words(settings, "command"), settings["era"])
    result["findings"] = sorted({finding.id for finding in found})


def _words(settings: Settings, name: str) -> list[str]:
    """A command with ``{code}`` and the like replaced by the files of the cell."""
    words: list[str] = settings[name]
    for file in FILES:
        words = [word.replace(f"{{{file}}}", settings.get(file, f"{{{file}}}")) for word in words]
    return words


def _run_vmm(settings: Settings, folder: Path, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    """Another VMM on the modelled KVM: it ends by itself, when ``until`` is in its output, or after its timeout."""
    given = dict(settings)
    if "variables" in given:
        given["variables"] = shutil.copy(given["variables"], folder)
    command = [sys.executable, "-m", "casemate", "kvm", "--quiet", "--era", settings["era"], "--"]
    until = settings.get("until", "").encode()
    deadline = time.monotonic() + settings["timeout"]
    log = folder / "vmm.log"
    seen, outcome = b"", ""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *_words(given, "vmm")], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        while not outcome:
            try:
                process.wait(0.05)
                outcome = "ended"
            except subprocess.TimeoutExpired:
                outcome = "timeout" if time.monotonic() > deadline else ""
            seen = log.read_bytes()[-_ENOUGH_OUTPUT:]
            if until and until in seen:
                outcome = "until"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    code = {"until": 0, "timeout": 7}.get(outcome, process.returncode)
    result |= {"outcome": outcome, "exit_code": code, "detail": f"the VMM's exit code is {code}"}
    artefacts["serial.log"] = seen.decode("utf-8", "replace")


_WORKS = {"boot": _boot, "measure": _measure, "lint": _lint, "conform": _conform}
