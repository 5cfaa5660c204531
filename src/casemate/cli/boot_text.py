"""What ``casemate boot`` tells a person about a run: the summary (docs/guide/boot.md)."""

from __future__ import annotations

import os
from typing import Any

from casemate.machine.outcome import Outcome

FIRMWARE_PHASES = ("SEC", "PEI", "DXE", "BDS", "shell")
KERNEL_PHASES = ("load", "kernel", "init")
_NAMES_SHOWN = 12


def summary(outcome: Outcome, *, verbose: bool) -> str:
    """Lines about a run, without a newline at the end."""
    report = outcome.report
    guest, host = report["guest"], report["host"]
    era = f" {host['era']}" if host["era"] else ""
    modelled = " (modelled)" if host["modelled"] else ""
    lines = [
        f"casemate: {outcome.ending.word} after {outcome.seconds:.1f} s: {outcome.detail}",
        f"  guest     {guest['kind']}, {guest['machine']}, {guest['memory'] >> 20} MiB",
        f"  host      {host['backend']}{era}{modelled}: {host['why']}",
    ]
    lines += _launch(report)
    for unit in report["flash"]:
        mode = "read-only file" if unit["readonly"] else "written back"
        name = f"flash {unit['unit']}   {os.path.basename(unit['file'])}"
        lines.append(f"  {name} at {unit['gpa']:#x}, {mode}, {unit['protection']}")
    if report["bios"]:
        bios = report["bios"]
        lines.append(
            f"  bios      {os.path.basename(bios['file'])} at {bios['gpa']:#x}, {bios['protection']}"
        )
    lines += _kernel(report["kernel"], printed=bool(outcome.serial))
    if firmware := report["flash"] or ([report["bios"]] if report["bios"] else []):
        lines.append(f"  why       {firmware[0]['reason']}")
    if report["phases"]:
        reached = ", ".join(f"{phase['name']} {phase['at']:.1f} s" for phase in report["phases"])
        lines.append(f"  phases    {reached}")
    lines += _firmware(report["writes"])
    lines += _vcpus(report["vcpus"])
    lines += _requests(report["requests"])
    if verbose:
        lines += _details(report)
    return "\n".join(lines)


def _firmware(writes: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(item["name"] for unit in writes["units"] for item in unit["variables"]))
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    counts = ("programs", "erases", "violations")
    what = ", ".join(_counted(writes[word], word) for word in counts)
    lines = [f"  firmware  {what}"]
    if names:
        lines.append(f"  variables {len(names)}: {shown}{more}")
    if writes["events"]:
        lines.append(_violation(writes["events"][0]))
    return lines


def _vcpus(vcpus: list[dict[str, Any]]) -> list[str]:
    if len(vcpus) < 2:
        return []
    shown = (
        f"{vcpu['number']} {vcpu['activity']}, {_counted(vcpu['starts'], 'starts')}"
        + (f", {_counted(sum(vcpu['vmgexits'].values()), 'VMGEXITs')}" if vcpu["vmgexits"] else "")
        for vcpu in vcpus
    )
    return ["  vCPUs     " + "; ".join(shown)]


def _requests(requests: dict[str, dict[str, int]] | None) -> list[str]:
    if not requests or not requests.get("vmgexits"):
        return []
    from casemate.abi.sev.ghcb import ExitCode

    exits = requests["vmgexits"]
    names = {f"{code:#x}": code.name.lower().replace("_", " ") for code in ExitCode}
    most = ", ".join(f"{count} {names.get(code, code)}" for code, count in list(exits.items())[:4])
    lines = [f"  VMGEXITs  {sum(exits.values())}: {most}"]
    if states := requests.get("page_states"):
        lines.append("  pages     " + ", ".join(f"{count} {what}" for what, count in states.items()))
    return lines


def _kernel(kernel: dict[str, Any] | None, *, printed: bool) -> list[str]:
    if not kernel:
        return []
    initrd = f", initrd {os.path.basename(kernel['initrd'])}" if kernel["initrd"] else ""
    lines = [f"  kernel    {os.path.basename(kernel['file'])}{initrd}, started by {kernel['started_by']}"]
    if not printed and "console=ttyS0" not in kernel["append"]:
        lines.append(
            "  console   nothing was printed: a kernel shows its messages here with --append console=ttyS0"
        )
    return lines


def _launch(report: dict[str, Any]) -> list[str]:
    launch, measurement = report["launch"], report["measurement"]
    if not launch:
        return []
    return [
        f"  launch    {launch['state']}, {launch['init']} on {launch['vm_type']}, policy {launch['policy']:#x}",
        f"  digest    {launch['digest']}",
        f"  measured  {measurement.get('mac') or measurement.get('measurement') or 'unknown'}, {measurement['note']}",
    ]


def _details(report: dict[str, Any]) -> list[str]:
    units = report["flash"] or ([report["bios"]] if report["bios"] else [])
    lines = [
        f"  not       {other['protection']}: {other['reason']}"
        for unit in units[:1]
        for other in unit["rejected"]
    ]
    lines += [_violation(event) for event in report["writes"]["events"][1:20]]
    lines += [
        f"  audit     unit {change['unit']} {change['what']}: {change['why']}, {change['at']:.3f} s"
        for change in report["protection_audit"][:20]
    ]
    lines += [
        f"  unclaimed {entry['kind']} {entry['where']:#x}: {entry['count']}"
        for entry in report["unclaimed"][:20]
    ]
    return lines


def _violation(event: dict[str, Any]) -> str:
    where = "an unknown address" if event["gpa"] is None else f"{event['gpa']:#x}"
    unit = "" if event["unit"] is None else f", unit {event['unit']} {event['owner']}"
    value = "" if event["value"] is None else f", value {event['value']:#x}"
    by = "" if event["rip"] is None else f", by {event['instruction']} at {event['rip']:#x}"
    return f"  violation {event['kind']} at {where}{unit}{value}{by}, {event['at']:.3f} s"


def _counted(number: int, words: str) -> str:
    return f"{number} {words.removesuffix('s') if number == 1 else words}"
