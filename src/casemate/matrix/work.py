"""What is done for one cell, in a process of its own: boot, measure, lint, conform (docs/guide/matrix.md).

The answer is plain data: ``result``, small enough for a line, and ``artefacts``, the contents of files by their names.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import casemate
from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice
from casemate.advise.conformance import Verdict, judge
from casemate.api.advise import lint
from casemate.api.boot import boot
from casemate.api.measure import measure
from casemate.confidential.preparation import LaunchOptions
from casemate.digest.cpu_models import DEFAULT_VCPU_TYPE, model_signature
from casemate.errors import CasemateError, SpecError, UnsupportedError
from casemate.evidence.report_html import render_html
from casemate.evidence.traced_host import HostTracer
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.machine.boot import Attachments
from casemate.machine.host_choice import choose_host
from casemate.machine.outcome import Outcome
from casemate.machine.spec import MachineSpec
from casemate.matrix.settings import bytes_of
from casemate.matrix.vmm import judge_vmm, run_vmm, words_of
from casemate.power_cuts import judge_cuts
from casemate.prove.prove import MECHANISMS, prove_model

Settings = Mapping[str, Any]

_CUTS, _FUZZ_SECONDS = 8, 10
"""Of a cell that says nothing else."""


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
        run_vmm(settings, folder, result, artefacts)
    else:
        _tell(_outcome(settings, folder, lambda host: host), result, artefacts)


def _conform(settings: Settings, folder: Path, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    if "vmm" in settings:
        judge_vmm(settings, folder, result, artefacts)
        return
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
        host=chosen._replace(make=make),
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
    found = lint(words_of(settings, "command"), settings["era"])
    result["findings"] = sorted({finding.id for finding in found})


def _prove(settings: Settings, _folder: Path, result: dict[str, Any], _artefacts: dict[str, str]) -> None:
    """Every attack on the protection of the cell, ``slot`` unless it says another one, by its kind of guest."""
    word = settings.get("protection", "slot")
    if word not in MECHANISMS:
        raise SpecError(f"protection {word!r} is not proven", f"use one of {', '.join(MECHANISMS)}")
    proofs = [proof for proof in prove_model(settings["era"]) if proof.guest == settings["kind"]]
    found = [each for proof in proofs for each in proof.mechanisms if each.protection is MECHANISMS[word]]
    rows = [row for each in found for row in each.rows]
    if not rows:
        refusal = found[0].refusal if found else "plain and sev-es guests are proven"
        raise UnsupportedError(f"nothing to attack for a {settings['kind']} guest: {refusal}", "leave it out")
    changed = [row.attack.name for row in rows if not row.unchanged]
    detail = f"{len(rows)} attacks" + (f"; memory changed by {', '.join(changed)}" if changed else "")
    result |= {
        "outcome": "changed" if changed else "unchanged",
        "detail": detail,
        "exit_code": int(bool(changed)),
    }
    result["protection"] = str(MECHANISMS[word])


def _cut_power(settings: Settings, folder: Path, result: dict[str, Any], _artefacts: dict[str, str]) -> None:
    report = judge_cuts(
        _spec(settings, folder), settings.get("cuts", _CUTS), settings.get("until", "Shell> ")
    )
    others = {word: count for word, count in report.next_boots.items() if word != "until"}
    told = ", ".join(f"{count} {word}" for word, count in sorted(others.items()))
    detail = f"{len(report.judgements)} cuts of {report.commands} flash commands" + (
        f"; next boots: {told}" if told else ""
    )
    result |= {"outcome": "lost" if others else "survived", "detail": detail, "exit_code": int(bool(others))}
    result["next_boots"] = report.next_boots


def _fuzz(settings: Settings, folder: Path, result: dict[str, Any], artefacts: dict[str, str]) -> None:
    """One fuzzing target for some seconds, in a process of its own; the targets are in casemate's checkout."""
    checkout = Path(casemate.__file__).parents[2]
    if not (checkout / "fuzz" / "__main__.py").is_file():
        raise UnsupportedError(
            "fuzzing targets are in a checkout of casemate's, and this is none", "clone it"
        )
    seconds = settings.get("fuzz-seconds", _FUZZ_SECONDS)
    command = [sys.executable, "-m", "fuzz", settings["fuzz"], "--json", "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--findings", str(folder / "findings")],
        cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        (run,) = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UnsupportedError(
            f"the fuzzer did not run: {last}", "./dev fuzz says which targets there are"
        ) from None
    found = [finding["how"] for finding in run["findings"]]
    artefacts["fuzz.json"] = json.dumps(run, indent=2)
    for path in sorted((folder / "findings").glob("*")):
        artefacts[f"{path.name}.hex"] = path.read_bytes().hex()
    detail = f"{run['inputs']} inputs, {len(found)} findings" + (f": {found[0][:200]}" if found else "")
    result |= {"outcome": "findings" if found else "done", "detail": detail, "exit_code": int(bool(found))}


_WORKS = {
    "boot": _boot,
    "measure": _measure,
    "lint": _lint,
    "conform": _conform,
    "prove": _prove,
    "power-cuts": _cut_power,
    "fuzz": _fuzz,
}
