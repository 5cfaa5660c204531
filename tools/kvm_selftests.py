"""Runs the kernel's own KVM selftests on the modelled KVM (Linux tools/testing/selftests/kvm).

    python -m tools.kvm_selftests                 build once, run every program, print the table (20 minutes)
    python -m tools.kvm_selftests --write         also put it into docs/design/kvm-selftests.md
    python -m tools.kvm_selftests NAME ...        run these, and show what they say
    python -m tools.kvm_selftests --write NAME ...    and put what became of them into the page's table

The sources are those of Debian's package linux-source-6.12, fetched by apt-get and kept in casemate's cache as programs
only. Exit code: 0 all as the page says, 1 something is not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.page_table import PageTable
from tools.roots.make import cache_folder

CHECKOUT = Path(__file__).parents[1]
PLACE = PageTable(CHECKOUT / "docs" / "design" / "kvm-selftests.md", "kvm_selftests")
PACKAGE = "linux-source-6.12"
LIMIT = 120
"""Seconds for each program."""
_SKIP, _KILLED = 4, 128
"""Exit code of a selftest that skips itself, and the least one of a program that a signal ended."""
_TOPICS = (
    ("nested virtualization", r"svm_\w+|vmx_(?!pmu)\w+|nested_exceptions_test|triple_fault_event_test"),
    ("PMU", r"pmu_\w+|vmx_pmu_caps_test"),
    ("Hyper-V", r"hyperv_\w+"),
    ("Xen", r"xen_\w+"),
    ("AMX", r"amx_test"),
    ("machine check", r"ucna_injection_test"),
)
"""What the model leaves out on purpose, and the programs that are about it."""
_VARIANT = "sev_smoke_test_without_sync_vmsa"
"""``sev_smoke_test`` less its two calls of ``test_sync_vmsa``, which executes XSAVE of AVX state in the guest."""
_NEEDED = ("tools", "scripts", "include", "arch/x86", "usr", "Makefile", "Kbuild", "Kconfig*")
_FOLDER = "tools/testing/selftests/kvm"
_REQUIREMENT = re.compile(r"# SKIP - (?:Requirement not met: )?(.*)")
_OF_THE_HOST = re.compile(r"CONFIG_|/proc|/sys")
"""What a program misses of this host, and not of KVM."""
_ASSERTION = re.compile(r"==== Test Assertion Failure ====\n +(\S+): (.*)")


_KNOWN = {
    "rseq_test": "it wants half as many KVM_RUNs as migrations in the same time, and the model is slower than that",
    "userspace_io_test": "it counts on one exit for a string instruction, and the model makes one for each element",
    "userspace_msr_exit_test": "exits for model-specific registers (KVM_CAP_X86_USER_SPACE_MSR) are not modelled",
    "sev_smoke_test": f"`test_sync_vmsa` needs AVX; see `{_VARIANT}`",
}
"""Why programs fail, where the failed assertion does not say it."""


class CannotError(Exception):
    """Why this host cannot, and the remedy."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one program did."""

    name: str
    code: int | None
    """Its exit code; None if it was still running at the end of its time."""
    seconds: float
    output: str

    @property
    def topic(self) -> str | None:
        """What it is about, if the model leaves that out."""
        return next((topic for topic, names in _TOPICS if re.fullmatch(names, self.name)), None)

    @property
    def result(self) -> str:
        """``pass``, ``skip`` for want of a capability, or ``fail``; also a missing file of the host is a failure."""
        if self.code == 0:
            return "pass"
        requirement = _REQUIREMENT.search(self.output) if self.code == _SKIP else None
        return "fail" if requirement is None or _OF_THE_HOST.search(requirement[1]) else "skip"

    @property
    def is_broken(self) -> bool:
        """It crashed, or hung."""
        return self.code is None or (self.code >= _KILLED + signal.SIGILL and self.code != _FAILED)

    @property
    def reason(self) -> str:
        """One line; empty if it passed."""
        if self.code == 0:
            return ""
        if self.result == "fail" and self.name in _KNOWN:
            return _KNOWN[self.name]
        if self.code is None:
            return f"not done after {LIMIT} s"
        if requirement := _REQUIREMENT.search(self.output):
            return f"`{requirement[1].strip()}`"
        if assertion := _ASSERTION.search(self.output):
            return f"{Path(assertion[1]).name}: `{assertion[2].strip()}`"
        lines = [line for line in self.output.splitlines() if not line.startswith("casemate: ")]
        return f"exit code {self.code}" + (f": `{lines[-1].strip()}`" if lines else "")


_FAILED = 254
"""What a failed assertion of the selftests exits with."""


def programs_folder() -> Path:
    """Where the programs are, once they were built."""
    return cache_folder().parent / "selftests" / PACKAGE


def find_programs() -> dict[str, Path]:
    """By name; empty if they were not built."""
    files = sorted(programs_folder().glob("*")) + sorted(programs_folder().glob("x86_64/*"))
    return {path.name: path for path in files if path.is_file() and os.access(path, os.X_OK)}


def build() -> None:
    """Fetch the sources, and compile. Raises CannotError."""
    target = programs_folder()
    with tempfile.TemporaryDirectory(prefix="casemate-selftests-") as name:
        folder = Path(name)
        _run(["apt-get", "-q", "download", PACKAGE], folder, f"is {PACKAGE} in a source of apt-get's?")
        _run(["dpkg-deb", "-x", *map(str, folder.glob("*.deb")), "package"], folder, "install dpkg")
        archive = next(folder.glob("package/usr/src/*.tar.xz"))
        wanted = [f"{PACKAGE}/{part}" for part in _NEEDED]
        _run(["tar", "-xf", str(archive), "--wildcards", *wanted], folder, "install tar and xz-utils")
        source, out = folder / PACKAGE, folder / "out"
        out.mkdir()
        _make_variant(source / _FOLDER)
        remedy = "install build-essential, flex, bison and linux-libc-dev"
        _run(["make", "-j2", "headers"], source, remedy)
        _run(["make", "-k", "-j2", "-C", _FOLDER, f"OUTPUT={out}"], source, remedy)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "x86_64").mkdir(parents=True)
        for path in (*out.glob("*"), *out.glob("x86_64/*")):
            if path.is_file() and os.access(path, os.X_OK):
                shutil.copy2(path, partial / path.relative_to(out))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def _make_variant(folder: Path) -> None:
    text = (folder / "x86_64/sev_smoke_test.c").read_text("utf-8")
    shortened = re.sub(r"^(\t+)test_sync_vmsa\(", r"\1(void)(", text, flags=re.MULTILINE)
    shortened = shortened.replace("static void test_sync_vmsa(", "__maybe_unused static void test_sync_vmsa(")
    (folder / f"x86_64/{_VARIANT}.c").write_text(shortened, "utf-8")
    makefile = folder / "Makefile"
    line = f"TEST_GEN_PROGS_x86_64 += x86_64/{_VARIANT}\n"
    makefile.write_text(makefile.read_text("utf-8").replace("SPLIT_TESTS +=", f"{line}SPLIT_TESTS +=", 1))


def _run(command: list[str], folder: Path, remedy: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotError(f"{command[0]}: {error.strerror}; {remedy}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotError(f"{' '.join(command[:3])}: {last}; {remedy}")


def run(name: str, path: Path, limit: int = LIMIT) -> Outcome:
    """Start one program under ``casemate kvm``, and see to it that nothing of it is left."""
    line = [sys.executable, "-m", "casemate", "kvm", "--quiet", "--", str(path)]
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=path.parent,
            start_new_session=True,
        ) as process,
    ):
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Outcome(name, code, time.monotonic() - started, text)


def table(rows: Mapping[str, str]) -> str:
    """Markdown: numbers, and the row of each program by its name."""
    counted = [row for row in rows.values() if " is left out" not in row]
    numbers = {result: sum(f"| {result} |" in row for row in counted) for result in ("pass", "skip", "fail")}
    text = (
        f"Of {len(counted)} programs {numbers['pass']} pass, {numbers['skip']} skip themselves and "
        f"{numbers['fail']} fail; {len(rows) - len(counted)} more are about what the model leaves out.\n\n"
    )
    return text + "| program | result | reason |\n|---|---|---|\n" + "".join(rows.values())


def rows_of(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """A row of the table for each program, in its order."""
    rows = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.topic or "", outcome.name)):
        reason = outcome.reason.replace("|", "\\|")
        if outcome.topic is not None:
            reason = f"{outcome.topic} is left out" + (f": {reason}" if reason else "")
        rows[outcome.name] = f"| {outcome.name} | {outcome.result} | {reason} |\n"
    return rows


def page_rows() -> dict[str, str]:
    """The rows of the page."""
    shown = PLACE.shown()
    return {
        row[2]: row[1]
        for row in re.finditer(r"^(\| (\w+) \| (?:pass|skip|fail) \|.*\n)", shown, re.MULTILINE)
    }


def page_results() -> dict[str, str]:
    """What the page says of each program."""
    shown = PLACE.shown()
    return dict(re.findall(r"^\| (\w+) \| (pass|skip|fail) \|", shown, re.MULTILINE))


def main() -> int:
    """Build if need be, run, judge, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into {PLACE.page.name}")
    parser.add_argument("names", metavar="NAME", nargs="*", help="programs to run; all if none is given")
    args = parser.parse_args()
    try:
        if not find_programs():
            print(f"kvm_selftests: building the programs of {PACKAGE} ...", file=sys.stderr)
            build()
        programs = find_programs()
        if unknown := set(args.names) - programs.keys():
            parser.error(f"there is no program {', '.join(sorted(unknown))}")
    except CannotError as error:
        print(f"kvm_selftests: error: {error}", file=sys.stderr)
        return 5
    outcomes, expected, is_as_said = [], page_results(), True
    for name in args.names or programs:
        outcome = run(name, programs[name])
        outcomes.append(outcome)
        print(f"{name}: {outcome.result} ({outcome.seconds:.0f} s) {outcome.reason}", file=sys.stderr)
        if args.names:
            print(outcome.output)
        is_as_said &= args.write or (outcome.result == expected.get(name) and not outcome.is_broken)
    rows = rows_of(outcomes)
    if args.write:
        rows = page_rows() | rows if args.names else rows
        PLACE.write(table(rows))
    if not args.names:
        print(table(rows), end="")
    return 0 if is_as_said else 1


if __name__ == "__main__":
    sys.exit(main())
