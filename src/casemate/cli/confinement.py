"""The sandbox of ``casemate boot``: what is needed inside is loaded and held before (docs/guide/sandbox.md)."""

from __future__ import annotations

import argparse
import importlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli.boot_report import write_document
from casemate.host import sandbox, vma

if TYPE_CHECKING:
    from casemate.cli.broker import Broker
    from casemate.host.hypervisor import Hypervisor

_LOADED_BEFORE = (
    "encodings.utf_16_le",
    "casemate.host.instruction",
    "casemate.host.write_target",
)
"""What a running guest may cause to be loaded, and no module can be loaded inside."""


class Confinement:
    """How one run is confined: not at all, or in a sandbox with a broker where something remains to be done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._reports: list[Path] = args.report
        self._wanted = args.sandbox and args.own_process
        sockets = [Path(text[5:]) for text in (args.qmp, args.serial) if text and text.startswith("unix:")]
        self._needed = [
            *_LOADED_BEFORE,
            *(["hashlib"] if args.json or args.report else ()),
            *(["json"] if args.json else ()),
            *(["textwrap"] if sys.stderr.isatty() else ()),
        ]
        self._loader = threading.Thread(target=self._load, name="casemate-load", daemon=True)
        self._broker: Broker | None = None
        if self._wanted and (self._reports or sockets):
            from casemate.cli.broker import Broker  # loads multiprocessing, and most runs need none

            self._broker = Broker(self._reports, sockets)

    def beside(self, host: Hypervisor) -> Hypervisor:
        """``host``; while the process waits for KVM to make a VM, what the sandbox needs is loaded."""
        if self._wanted and host.name == "kvm":
            self._loader.start()
        return host

    def enter(self) -> dict[str, Any] | None:
        """Give up what the run does not need; returns what is in force, None without a sandbox."""
        if not self._wanted:
            return None
        if self._loader.ident is not None:
            self._loader.join()
        self._load()
        vma.hold_maps()
        if self._broker:
            self._broker.sockets_are_made()
        return sandbox.enter().to_json()

    def _load(self) -> None:
        for name in self._needed:
            importlib.import_module(name)

    def write_reports(self, document: dict[str, Any]) -> None:
        """Write all reports. Raises HostError if one cannot be written."""
        for number, path in enumerate(self._reports):
            if self._broker:
                self._broker.write_report(number, document)
            else:
                write_document(path, document)

    def close(self) -> None:
        """Nothing is left to do."""
        if self._broker:
            self._broker.close()
