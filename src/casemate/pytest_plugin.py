"""pytest fixtures for tests of guest firmware and of VMMs (docs/guide/ci.md; pytest.org, "Writing plugins").

Every pytest that finds casemate installed loads this module, so it imports what it needs when a fixture is used.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import casemate
from casemate.errors import CasemateError, SpecError, printable

if TYPE_CHECKING:
    from casemate.advise.variable_file import VariableFile
    from casemate.machine.boot import Attachments
    from casemate.machine.machine import Machine
    from casemate.machine.outcome import Outcome

_TAIL = 4000
"""Characters of a serial log that a failing test shows."""
_GUESTS = pytest.StashKey[list[Callable[[], "Outcome | None"]]]()
_AXES = "casemate_axes"
_LAUNCH_OPTIONS = ("features", "policy", "init", "kernel_hashes", "launch_only")
_PROMPT = "Shell> "
_SECONDS = 120.0


class BootGuest(Protocol):
    """The fixture ``casemate_boot``."""

    def __call__(self, **options: Any) -> Outcome:
        """Boot a guest to its end.

        Options are the fields of ``MachineSpec`` (``code``, ``variables``, ``bios``, ``kind``, ``memory``, ...), of
        ``LaunchOptions`` (``features``, ``policy``, ``init``, ``kernel_hashes``, ``launch_only``), and ``until``,
        ``timeout`` (seconds), ``typed``, ``prompt``, ``watchdog`` and ``era``. Without firmware the installed OVMF is
        taken. ``variables`` is a template: the guest gets a copy. Raises CasemateError, never for what the guest does.
        """


class Guest:
    """A guest that runs beside the test, at a prompt (``casemate_guest``)."""

    def __init__(self, options: Mapping[str, Any], folder: Path, prompt: str, seconds: float) -> None:
        self._prompt = prompt
        self._seconds = seconds
        self._text = ""
        self._changed = threading.Condition()
        self._machine: Machine | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        attachments = casemate.Attachments(output=self._take, on_start=self._start, attending=True)
        self._thread = threading.Thread(target=self._run, args=(options, folder, attachments), daemon=True)
        self.variables_path: Path | None = None
        """The guest's own copy of its variables."""
        self._thread.start()
        self.wait_for(prompt)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self._text

    def run(self, command: str, seconds: float | None = None) -> str:
        """Type a command at the prompt; what is printed until the next prompt, without escape sequences.

        Raises AssertionError with the end of the output if none comes within ``seconds`` (default: the guest's own).
        """
        begin = self._text.rindex(self._prompt) + len(self._prompt)
        assert self._machine is not None
        self._machine.console.type(command.encode() + b"\r")
        self.wait_for(self._prompt, begin, seconds)
        told = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", self._text[begin:]).replace("\r", "")
        return told.rpartition(self._prompt)[0].strip().removeprefix(command).strip()

    def wait_for(self, text: str, begin: int = 0, seconds: float | None = None) -> None:
        """Wait until ``text`` is printed, behind the first ``begin`` characters. Raises AssertionError if it is not."""
        deadline = time.monotonic() + (seconds or self._seconds)
        with self._changed:
            while text not in self._text[begin:]:
                left = deadline - time.monotonic()
                if not self._thread.is_alive() or left <= 0:
                    break
                self._changed.wait(min(left, 0.2))
            else:
                return
        if self._error is not None:
            raise self._error
        why = "the guest ended" if not self._thread.is_alive() else "time is over"
        raise AssertionError(f"{why} before it printed {text!r}; it printed: {self._text[-_TAIL:]}")

    def variables(self) -> VariableFile:
        """Its UEFI variables as they are in its store now. Raises SpecError if it has none."""
        if self.variables_path is None:
            raise SpecError("this guest has no variables", "give it code and variables")
        return casemate.open_variables(self.variables_path)

    def end(self) -> Outcome | None:
        """End it; its outcome, None if it never ran."""
        if self._machine is not None:
            self._machine.state.end(casemate.Ending.LEFT)
        self._thread.join(self._seconds)
        return self._outcome

    def _run(self, options: Mapping[str, Any], folder: Path, attachments: Attachments) -> None:
        try:
            self._outcome = _boot(options, folder, attachments, self._note_variables)
        except CasemateError as error:
            self._error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _note_variables(self, path: Path) -> None:
        self.variables_path = path

    def _start(self, machine: Machine) -> None:
        self._machine = machine

    def _take(self, data: bytes) -> None:
        with self._changed:
            self._text += data.decode("latin-1")
            self._changed.notify_all()


class StartGuest(Protocol):
    """The fixture ``casemate_guest``."""

    def __call__(self, *, prompt: str = _PROMPT, seconds: float = _SECONDS, **options: Any) -> Guest:
        """Start a guest with the options of ``casemate_boot``, and wait up to ``seconds`` for its prompt."""


class ModelledKvm(Protocol):
    """The fixture ``modelled_kvm``."""

    def __call__(
        self, era: str | None = None, *, faults: tuple[str, ...] = (), has_sev: bool = True
    ) -> dict[str, str]:
        """The environment in which a program's /dev/kvm is the model of a kernel's, by default the newest.

        ``faults`` are rules as of ``casemate kvm --fault``. Raises UnsupportedError where that cannot be.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--casemate-artefacts DIR``: where failing tests leave reports and serial logs."""
    group = parser.getgroup("casemate")
    group.addoption(
        "--casemate-artefacts",
        metavar="DIR",
        help="reports and serial logs of failing tests (default: temporary)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    words = "run the test at each combination, which casemate_boot and casemate_guest take as options"
    config.addinivalue_line("markers", f"{_AXES}(kind=[...], era=[...]): {words}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the mark ``casemate_axes`` becomes one for each combination of its values."""
    axes: dict[str, list[Any]] = {}
    for mark in reversed(list(metafunc.definition.iter_markers(_AXES))):
        axes |= mark.kwargs
    if not axes:
        return
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    names = ["-".join(str(value) for value in cell.values()) for cell in cells]
    if "casemate_cell" not in metafunc.fixturenames:
        metafunc.fixturenames.append("casemate_cell")
    metafunc.parametrize("casemate_cell", cells, ids=names, indirect=True)


@pytest.fixture
def casemate_cell(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The combination of the mark's axes that this test is run at; empty without the mark."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
def casemate_boot(request: pytest.FixtureRequest, casemate_cell: dict[str, Any], tmp_path: Path) -> BootGuest:
    """Boots guests to their end; see ``BootGuest``. A failing test shows their serial logs, and keeps their reports."""
    found = request.node.stash.setdefault(_GUESTS, [])

    def run(**options: Any) -> Outcome:
        outcome = _boot(casemate_cell | options, tmp_path, None, lambda path: None)
        found.append(lambda: outcome)
        return outcome

    return run


@pytest.fixture
def casemate_guest(
    request: pytest.FixtureRequest, casemate_cell: dict[str, Any], tmp_path: Path
) -> Iterator[StartGuest]:
    """Starts guests that run commands; see ``Guest``. They end with the test."""
    found = request.node.stash.setdefault(_GUESTS, [])
    started: list[Guest] = []

    def start(*, prompt: str = _PROMPT, seconds: float = _SECONDS, **options: Any) -> Guest:
        guest = Guest(casemate_cell | options, tmp_path, prompt, seconds)
        started.append(guest)
        found.append(guest.end)
        return guest

    yield start
    for guest in started:
        guest.end()


@pytest.fixture
def modelled_kvm() -> ModelledKvm:
    """Environments for a VMM under test; see ``ModelledKvm``."""

    def environment(
        era: str | None = None, *, faults: tuple[str, ...] = (), has_sev: bool = True
    ) -> dict[str, str]:
        from casemate.cli.vmm_environment import modelled_environment

        return os.environ | modelled_environment(era, faults, has_sev=has_sev)

    return environment


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what the guests of a failing test said."""
    report = yield
    if report.when == "call" and report.failed:
        guests: list[Callable[[], Outcome | None]] = item.stash.setdefault(_GUESTS, [])
        for number, outcome_of in enumerate(guests, 1):
            outcome = outcome_of()
            if outcome is not None:
                folder = _keep(item, number, outcome)
                tail = printable(outcome.serial[-_TAIL:].replace("\r", ""))
                text = f"{outcome.ending.word}: {outcome.detail}\nreport: {folder}/report.html\n{tail}"
                report.sections.append((f"casemate guest {number}", text))
    return report


def _keep(item: pytest.Item, number: int, outcome: Outcome) -> Path:
    from casemate.cli.boot_report import write_document

    chosen = item.config.getoption("--casemate-artefacts")
    place = Path(chosen) if chosen else Path(getattr(item, "funcargs", {})["tmp_path"]) / "casemate"
    folder = place / re.sub(r"[^\w.-]+", "-", item.nodeid) / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    document = outcome.to_report(f"pytest {item.nodeid}")
    for name in ("report.json", "report.html"):
        write_document(folder / name, document)
    (folder / "serial.log").write_text(outcome.serial, "utf-8", "replace")
    return folder


def _boot(
    options: Mapping[str, Any],
    folder: Path,
    attachments: Attachments | None,
    on_variables: Callable[[Path], None],
) -> Outcome:
    words = dict(options)
    copy = folder / f"variables-{time.monotonic_ns()}.fd"
    if not any(words.get(name) for name in ("code", "bios", "kernel")):
        pair = casemate.find_firmware(words.get("kind", "plain"))
        words["code"] = pair.code
        if "variables" not in words and pair.vars_template:
            words["variables"] = casemate.new_variables(pair, copy)
    if words.get("variables"):
        if words["variables"] != copy:
            words["variables"] = shutil.copyfile(words["variables"], copy)
        on_variables(copy)
    launch = {name: words.pop(name) for name in _LAUNCH_OPTIONS if name in words}
    run = {
        name: words.pop(name) for name in ("until", "timeout", "typed", "prompt", "watchdog") if name in words
    }
    if "features" in launch:
        launch["features"] = tuple(launch["features"])
    era = words.pop("era", None)
    spec = casemate.MachineSpec(**words)
    if spec.kind.is_confidential:
        launch.setdefault("vcpus", spec.vcpus)
    elif launch:
        raise SpecError(f"{', '.join(launch)}: plain guests are not launched", "leave them out")
    return casemate.boot(
        spec,
        casemate.LaunchOptions(**launch) if spec.kind.is_confidential else None,
        host=f"model:{era}" if era else "model",
        timeout=run.pop("timeout", None if attachments else _SECONDS),
        attachments=attachments or casemate.Attachments(ends_at_prompt=True),
        **run,
    )
