"""What a cell's result depends on, as one SHA-256: inputs, casemate, engine, Python, processor (FIPS 180-4)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import casemate
from casemate.errors import ImageError
from casemate.matrix.settings import FILES

_LIBRARIES = ("unicorn", "iced-x86", "cryptography", "lz4", "zstandard")


@cache
def file_hash(path: str) -> str:
    """SHA-256 of a file in hex; read once in a process. Raises ImageError."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(path, f"cannot be read: {reason}", "correct the path in the matrix") from None


@cache
def code_identity() -> dict[str, str]:
    """What runs the cells: casemate's code, the libraries that decide on results, and Python."""
    found = hashlib.sha256()
    home = Path(casemate.__file__).parent
    for path in sorted(home.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(home)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return {"casemate": found.hexdigest(), "python": sys.version} | {
        name: _version(name) for name in _LIBRARIES
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


@cache
def processor() -> str:
    """What the kernel calls this machine's processor."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, "unknown")


def inputs_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash by setting, of the files that a cell reads; files that its commands name count. Raises ImageError."""
    found = {name: file_hash(settings[name]) for name in FILES if name in settings}
    for name in ("command", "vmm"):
        for word in settings.get(name, ()):
            for part in re.split("[,=]", word):
                if part.startswith(("/", ".")) and Path(part).is_file():
                    found[part] = file_hash(part)
    return found


@cache
def _program_identity(*words: str) -> tuple[str, ...]:
    """A VMM and the libraries that it is linked with (ldd(1)), or that its loader finds for it (ld.so(8), --list)."""
    found = shutil.which(words[0])
    if found is None:
        return words[:1]
    lister = ["ldd", found]
    loader = next((index for index, word in enumerate(words) if Path(word).name.startswith("ld-linux")), None)
    if loader is not None:
        lister = [words[loader], "--list", *words[loader + 1 :]]
    said = subprocess.run(lister, capture_output=True, text=True, check=False).stdout
    paths = [word for word in said.split() if word.startswith("/")]
    return tuple(file_hash(path) for path in [found, *sorted(paths)] if Path(path).is_file())


def cell_key(settings: Mapping[str, Any], *, timed: bool) -> str:
    """The key of a cell with these settings, where ``timed`` says that the processor matters. Raises ImageError."""
    document = {
        "settings": {name: value for name, value in settings.items() if name not in FILES},
        "inputs": inputs_of(settings),
        "code": code_identity(),
        "vmm": _program_identity(*settings["vmm"]) if settings.get("vmm") else None,
        "processor": processor() if timed else None,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
