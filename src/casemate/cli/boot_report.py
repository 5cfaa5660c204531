"""``casemate boot --report``: the run as a file to keep or to attach, HTML or JSON (docs/guide/evidence.md)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from casemate.errors import SpecError
from casemate.files import json_text, write_whole

SUFFIXES = (".html", ".json")


def report_file(text: str) -> Path:
    """An argparse type: a file whose name says the form."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} ends in neither {' nor '.join(SUFFIXES)}")
    return path


def validate_reports(paths: list[Path]) -> None:
    """Refuse files that could not be written after the run. Raises SpecError."""
    for path in paths:
        if not path.parent.is_dir():
            raise SpecError(f"--report {path}: {path.parent} is no folder", "make it, or name another file")


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a report, all or nothing. Raises HostError if it cannot be written."""
    if path.suffix == ".html":
        from casemate.evidence.report_html import render_html

        text = render_html(document)
    else:
        text = json_text(document)
    write_whole(path, text.encode("utf-8", "replace"), f"writing the report {path}")
