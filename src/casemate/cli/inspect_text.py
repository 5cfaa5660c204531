"""What ``casemate inspect`` shows a person: trees and tables (docs/guide/inspect.md; rich)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from casemate.advise.claims import Claim
from casemate.advise.descriptor_check import DescriptorReport
from casemate.advise.inspect import Inspection, describe_area, snp_sections, try_read
from casemate.advise.pairing import Pair
from casemate.errors import printable
from casemate.firmware.guids import guid_text
from casemate.firmware.volume import FirmwareVolume
from casemate.firmware.wrapper import find_wrapper

_HASH_USES = {
    "compared": "compared by a driver with the kernel that is offered",
    "not compared": "[red]compared by no driver[/]: any kernel is started, whatever was measured",
    "unknown": "whether a driver compares them cannot be seen",
}
_WIDTH_OF_FILES = 200


def print_inspections(
    inspected: Sequence[tuple[Inspection, tuple[Claim, ...]]],
    descriptors: Sequence[DescriptorReport],
    pairs: Sequence[Pair],
    list_files: bool,
) -> None:
    """One tree for each file, then a line for each pair."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
    for inspection, claims in inspected:
        console.print(_show(inspection, claims, list_files))
    for report in descriptors:
        console.print(_show_descriptor(report))
    for pair in pairs:
        verdict = f"[red]no[/]: {_safe(pair.fault)}" if pair.fault else "[green]belong together[/]"
        console.print(f"{_safe(pair.code)} and {_safe(pair.variables)}: {verdict}")


def _safe(text: str) -> str:
    """Text out of a file or a path, with nothing in it that the terminal or rich would obey."""
    return escape(printable(text))


def _show(inspection: Inspection, claims: tuple[Claim, ...], list_files: bool) -> RenderableType:
    image = inspection.image
    what = inspection.wrapper or inspection.role.value
    tree = Tree(f"[bold]{_safe(image.name)}[/]: {what}, {image.size:#x} bytes", highlight=False)
    for problem in inspection.problems:
        tree.add(f"[red]damaged[/]: {_safe(problem)}")
    if wrapper := find_wrapper(image.data):
        tree.add(f"no guest can boot from it: {wrapper[1]}")
    elif inspection.verdicts:
        tree.add(_verdict_table(inspection))
    _add_areas(tree, inspection)
    if store := inspection.store:
        kind = "authenticated" if store.is_authenticated else "not authenticated"
        tree.add(f"variable store: {store.size:#x} bytes, {kind}")
    for volume in inspection.volumes:
        _add_volume(tree, volume, list_files)
    for claim in claims:
        _add_claim(tree, claim)
    return tree


def _show_descriptor(report: DescriptorReport) -> RenderableType:
    descriptor = report.descriptor
    tree = Tree(f"[bold]{_safe(str(report.path))}[/]: a firmware descriptor", highlight=False)
    tree.add(_safe(f"offers {descriptor.executable} as {descriptor.device}"))
    for problem in report.problems:
        tree.add(f"[red]wrong[/]: {_safe(problem)}")
    if report.claim:
        _add_claim(tree, report.claim)
    return tree


def _verdict_table(inspection: Inspection) -> RenderableType:
    table = Table("guest", "by", "usable", "why not", box=None, padding=(0, 2, 0, 0))
    for verdict in inspection.verdicts:
        mark = "[green]yes[/]" if verdict.is_usable else "[red]no[/]"
        table.add_row(verdict.guest.value, verdict.placement.value, mark, _safe("; ".join(verdict.reasons)))
    return table


def _add_areas(tree: Tree, inspection: Inspection) -> None:
    image = inspection.image
    table = try_read(lambda: image.guided_table)
    if table is None:
        return
    branch = tree.add("GUIDed table: " + ", ".join(entry.name for entry in table.entries))
    if reset := try_read(lambda: image.sev_es_reset):
        branch.add(f"SEV-ES vCPUs start at {reset:#x}")
    hashes = try_read(lambda: image.sev_hashes)
    use = f", {_HASH_USES[inspection.hash_use.value]}" if hashes and hashes.is_usable else ""
    branch.add(f"kernel hashes: {describe_area(hashes)}{use}")
    branch.add(f"launch secret: {describe_area(try_read(lambda: image.sev_secret))}")
    if sev := try_read(lambda: image.sev_metadata):
        sections = branch.add(f"SEV metadata: {len(sev.sections)} sections, as an SNP launch takes them")
        for step in snp_sections(image):
            sections.add(f"{step.gpa:#010x} {step.size:#8x}  {step.page_type.name}, {step.what}")
    if tdvf := try_read(lambda: image.tdvf):
        sections = branch.add(f"TDX metadata: {len(tdvf.sections)} sections")
        for section in tdvf.sections:
            measured = ", contents measured" if section.is_measured else ""
            sections.add(f"{section.base:#010x} {section.size:#8x}  {section.type.name}{measured}")


def _add_volume(tree: Tree, volume: FirmwareVolume, list_files: bool) -> None:
    files = [file for file in volume.files if not file.is_padding]
    branch = tree.add(
        f"volume at {volume.header.offset:#x}, {volume.header.length:#x} bytes, {len(files)} files"
    )
    for file in files:
        if list_files:
            name = _safe(file.name) or guid_text(file.guid)
            leaf = branch.add(f"{name} ({file.type_name}, {file.size:#x} bytes)")
        for inner in file.volumes:
            _add_volume(leaf if list_files else branch, inner, list_files)


def _add_claim(tree: Tree, claim: Claim) -> None:
    branch = tree.add(
        _safe(f"{claim.descriptor.name} offers it as {claim.device}: {', '.join(claim.features)}")
    )
    if claim.false:
        branch.add(f"[red]claimed, yet not so[/]: {', '.join(claim.false)}")
    if claim.silent:
        branch.add(f"so, yet not claimed: {', '.join(claim.silent)}")
