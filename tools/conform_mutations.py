"""Breaks the mail's rules one at a time in a copy of casemate; ``casemate conform --self`` must name the rule.

    python -m tools.conform_mutations [WORD]     all of them, about a minute, or those whose name contains WORD

Some mutations are those of tools/mutations.py, where tests notice them; two make the launch what the mail's first
version was, which arms whatever was measured. The guests are SEV-ES guests of the new VM type
with OVMF of the root sid-full (./dev roots make sid-full), and the kernel of the root disk where hashes are measured.
Exit code: 0 every one was named, 1 one was not, 5 this host cannot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import CasemateError
from tools.mutations import MUTATIONS, ROOT, Mutation, apply, word_argument
from tools.rooted_qemu import CannotError, tree
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

_OVMF = tree("sid-full") / "usr/share/OVMF"
_FLASH, _BIOS, _HASHES = "flash", "bios", "hashes"
_LIMITS = ("--until", "BdsDxe", "--timeout", "60")
"""A guest whose launch was as it should be is stopped when OVMF looks for a boot option: it used its flash by then."""


_FIRST_VERSION = Mutation(
    "the mail's first version", "src/casemate/confidential/sev.py",
    "    processor.launch_update_data(Hva(mapping.hva + offset), len(step.data))\n",
    "    processor.launch_update_data(Hva(mapping.hva + offset), len(step.data))\n"
    "    import ctypes\n"
    "    page = mapping.hva + offset & -4096\n"
    "    size = mapping.hva + offset + len(step.data) - page\n"
    "    ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(size), 1)\n"
    "    machine.vm.mapping_changed(Hva(page), size)\n",
    "",
)  # fmt: skip


def find_mutation(name: str) -> Mutation:
    """By its name."""
    return next(each for each in (*MUTATIONS, _FIRST_VERSION) if each.name == name)


@dataclass(frozen=True, slots=True)
class Expectation:
    """Which rule a mutation breaks, and in which guest that shows."""

    mutation: str
    guest: str
    rule: str


EXPECTATIONS = (
    Expectation("the arm", _FLASH, "flash-protected"),
    Expectation("the lift for the launch", _FLASH, "update-writable"),
    Expectation("the re-arm", _FLASH, "flash-protected"),
    Expectation("the lift for command mode", _FLASH, "writable-without-slot"),
    Expectation("the hashes exemption", _HASHES, "lifted-for-itself"),
    Expectation("hashes inside the window", _HASHES, "lifted-for-itself"),
    Expectation(_FIRST_VERSION.name, _BIOS, "bios-never-armed"),
    Expectation(_FIRST_VERSION.name, _HASHES, "ram-never-armed"),
)


def arguments(guest: str, folder: Path) -> list[str]:
    """``casemate boot`` of a guest. Raises CannotError where its files are not there."""
    for root in ("sid-full", *(["disk"] if guest == _HASHES else [])):
        if not is_made(RECIPES[root]):
            raise CannotError(f"there is no root {root}: ./dev roots make {root}")
    line = ["--guest", "sev-es", "--feature", "debug-swap", "--serial", "none", *_LIMITS]
    if guest == _BIOS:
        return [*line, "--bios", str(_OVMF.parent / "ovmf/OVMF.fd")]
    shutil.copyfile(_OVMF / "OVMF_VARS_4M.fd", folder / "vars.fd")
    line += ["--code", str(_OVMF / "OVMF_CODE_4M.fd"), "--vars", str(folder / "vars.fd")]
    if guest == _HASHES:
        line += ["--kernel", str(root_folder(RECIPES["disk"]) / "vmlinuz"), "--kernel-hashes"]
    return line


def broken_rules(guest: str, root: Path) -> tuple[frozenset[str], str]:
    """What the casemate of ``root`` says of itself, and its messages. Raises CannotError."""
    with tempfile.TemporaryDirectory() as name:
        line = [
            sys.executable,
            "-m",
            "casemate",
            "conform",
            "--json",
            "--self",
            *arguments(guest, Path(name)),
        ]
        environment = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=False)
    try:
        vms = json.loads(done.stdout)["vms"]
    except ValueError:
        return frozenset(), f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    found = {row["rule"] for vm in vms for row in vm["rules"] if row["verdict"] == "broken"}
    return frozenset(found), done.stderr.strip()[-300:]


def judge(chosen: Iterable[Expectation], root: Path) -> int:
    """Break the copy at ``root`` in turn and tell; returns how many went unnamed. Raises CannotError."""
    unnamed = 0
    for each in chosen:
        mutation = find_mutation(each.mutation)
        before = apply(mutation, root)
        found, said = broken_rules(each.guest, root)
        (root / mutation.file).write_text(before, "utf-8")
        is_named = each.rule in found
        unnamed += not is_named
        word, rules = "named  " if is_named else "UNNAMED", ", ".join(sorted(found)) or "no rule"
        print(f"{word}  {each.mutation} ({each.guest}): {rules}", flush=True)
        if not is_named:
            print(said, file=sys.stderr, flush=True)
    return unnamed


def main() -> int:
    """Those that were asked for; the exit code."""
    known = (each.mutation for each in EXPECTATIONS)
    word = word_argument("Break the mail's rules: `casemate conform --self` must name them.", known)
    chosen = [each for each in EXPECTATIONS if word in each.mutation]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            for guest in dict.fromkeys(each.guest for each in chosen):
                found, said = broken_rules(guest, root)
                if found or said.startswith("exit code"):
                    print(
                        f"{guest}: {', '.join(sorted(found))} before anything is broken\n{said}",
                        file=sys.stderr,
                    )
                    return 1
            return int(bool(judge(chosen, root)))
        except (CannotError, CasemateError) as error:
            print(f"conform_mutations: error: {error}", file=sys.stderr)
            return 5


if __name__ == "__main__":
    sys.exit(main())
