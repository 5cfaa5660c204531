"""Breaks the protection rules one at a time in a copy of the tree; a named test must notice (CONTRIBUTING.md).

python -m tools.mutations [WORD]      all of them, or those whose name contains WORD
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_RULES = "tests/confidential/test_protection_rules.py"
_COMMANDS = "tests/confidential/test_command_mode.py"
_FLASH = "src/casemate/memory/flash_memory.py"
_TABLE = "src/casemate/memory/protection.py"
_SEV = "src/casemate/confidential/sev.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replaces ``old``, which ``file`` has once, by ``new``; ``test`` must fail then, and pass before."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "the arm", _FLASH,
        "        self._protect(True, self._added)\n", "",
        f"{_RULES}::test_units_are_armed_when_their_slots_are_added",
    ),
    Mutation(
        "the arm, seen by the guest", _FLASH,
        "        self._protect(True, self._added)\n", "",
        f"{_RULES}::test_store_of_a_sealed_guest_names_the_armed_units_and_no_address",
    ),
    Mutation(
        "the lift for the launch", _FLASH,
        "        self._protect(False, self._launching)\n", "",
        f"{_RULES}::test_vma_protection_warns_once_of_what_kvm_lacks_and_of_the_way_out",
    ),
    Mutation(
        "the re-arm", _FLASH,
        "            self._protect(True, self._launched)\n", "",
        f"{_RULES}::test_failing_update_inside_the_window_leaves_no_running_guest",
    ),
    Mutation(
        "the lift for command mode", _FLASH,
        "        self._protect(False, self._commanded)\n", "",
        f"{_COMMANDS}::test_slot_and_mapping_follow_every_command_sequence",
    ),
    Mutation(
        "the --bios exemption", _TABLE,
        '"auto", _RAM,', '"auto", _VMA,',
        f"{_RULES}::test_bios_guest_never_has_readonly_memory",
    ),
    Mutation(
        "the --bios exemption in the launch", _SEV,
        "if machine.platform.flash and step.gpa == firmware.gpa:", "if step.gpa == firmware.gpa:",
        f"{_RULES}::test_bios_guest_never_has_readonly_memory",
    ),
    Mutation(
        "the hashes exemption", _SEV,
        "if machine.platform.flash and step.gpa == firmware.gpa:", "if machine.platform.flash:",
        f"{_RULES}::test_kernel_hashes_touch_no_protection",
    ),
    Mutation(
        "hashes inside the window", _SEV,
        "                _update_ram(step, machine, processor)\n",
        "                with machine.platform.flash[0].memory.launch_window():\n"
        "                    _update_ram(step, machine, processor)\n",
        f"{_RULES}::test_kernel_hashes_are_measured_while_unit_0_is_protected",
    ),
    Mutation(
        "one slot over unit 0", "src/casemate/confidential/preparation.py",
        ", isa_bios=False", "",
        f"{_RULES}::test_unit_0_shows_in_one_slot_of_a_confidential_guest",
    ),
    Mutation(
        "unit 0 is read-only", "src/casemate/machine/firmware.py",
        "readonly=unit == 0", "readonly=False",
        f"{_RULES}::test_unit_0_is_ciphertext_to_the_host_and_its_file_stays_as_it_was",
    ),
    Mutation(
        "the reset of a sealed guest", "src/casemate/machine/machine.py",
        "if self.vm.capabilities.has_protected_state:", "if False:",
        f"{_RULES}::test_reset_of_a_sealed_guest_ends_the_run_with_its_own_outcome",
    ),
)  # fmt: skip


def apply(mutation: Mutation, root: Path) -> str:
    """Break the copy at ``root``; returns what the file held. Raises ValueError if the place is not there once."""
    path = root / mutation.file
    text = path.read_text("utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {mutation.file} has its text {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    return text


def passes(tests: list[str], root: Path) -> bool:
    """Whether all ``tests`` pass in the copy at ``root``."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return (
        subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False).returncode == 0
    )


def word_argument(description: str, names: Iterable[str]) -> str:
    """WORD of the command line, which is in one of ``names``; nothing without one."""
    known = list(names)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="those whose name contains it")
    word: str = parser.parse_args().word
    if not any(word in name for name in known):
        parser.error(f"no mutation has {word!r} in its name: there are {'; '.join(dict.fromkeys(known))}")
    return word


def main() -> int:
    """Run the mutations that were asked for; 0 if every one was noticed."""
    word = word_argument("Break the protection rules: a test must notice.", (each.name for each in MUTATIONS))
    chosen = [mutation for mutation in MUTATIONS if word in mutation.name]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        if not passes(sorted({mutation.test for mutation in chosen}), root):
            print("the tests fail before anything is broken")
            return 1
        for mutation in chosen:
            before = apply(mutation, root)
            noticed = not passes([mutation.test], root)
            (root / mutation.file).write_text(before, "utf-8")
            survivors += not noticed
            print(
                f"{'noticed ' if noticed else 'SURVIVED'}  {mutation.name}: {mutation.test.partition('::')[2]}"
            )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
