"""Compiles the machine code of casemate for wheels and editable installs (hatchling's build hook interface; ELF-64).

The hooks of the modelled CPU become a shared object, and the code of guests, which is assembly, becomes data.

The compiler is ``$CC``, ``cc``, ``gcc`` or ``clang``, whichever works first, else that of the package ``ziglang``, for
which the build then asks. The CPU's hooks use neither the C library nor a header beside ``stdint.h``, and the KVM for
other monitors only what glibc 2.17 has, so one wheel serves every Linux with glibc on x86-64. For other computers, and
where nothing compiles it, the wheel is pure Python: commands that run no guest on the model work. What was compiled
once is kept in the user's cache, by the hash of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FLAGS = [
    *("-std=gnu11", "-O2", "-fPIC", "-shared"),
    *(
        "-fno-strict-aliasing",
        "-fvisibility=hidden",
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
    ),
    *("-Wall", "-Wextra", "-Wl,--build-id=none", "-s"),
]
_FREESTANDING = ["-nostdlib", "-ffreestanding", "-fno-builtin"]
_OLD_PARTS = ["-Wl,--no-as-needed", "-l:libdl.so.2", "-l:libpthread.so.0"]
"""Behind the sources that use the C library. Since its version 2.34 the linker finds these by file name alone."""
_ZIG_PARTS = ["-ldl", "-lpthread"]
_ZIG_FLAGS = ["-target", "x86_64-linux-gnu.2.17", "-fno-sanitize=all"]
_TAG = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"


class Library(NamedTuple):
    """A shared object and the folder of its sources, both below ``src/casemate``."""

    target: str
    sources: str
    uses_libc: bool = False


LIBRARIES = (
    Library("native/_hooks.so", "native/hooks"),
    Library("native/_run.so", "native/run"),
    Library("native/_kvm.so", "native/kvm", uses_libc=True),
)
GUEST_CODE = "native/guest_code.json"
_RELOCATED_BYTES = {1: 8, 10: 4, 11: 4, 12: 2, 14: 1}
"""R_X86_64_64, _32, _32S, _16 and _8: all that a parameter of guest code may be."""


class NativeBuild(BuildHookInterface[Any]):
    """Adds the libraries to wheels, and to the source tree of an editable install."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        needs_zig = self.target_name == "wheel" and _is_for_us() and _system_compiler() is None
        return ["ziglang>=0.13,<1"] if needs_zig else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what kind of wheel it is."""
        if self.target_name != "wheel" or not _is_for_us():
            return
        package = Path(self.root, "src/casemate")
        try:
            built = [build_guest_code(package)]
            built += [build(library, package) for library in LIBRARIES if not library.uses_libc]
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            self.app.display_warning(f"casemate is built without the modelled CPU: {said}")
            return
        try:
            built += [build(library, package) for library in LIBRARIES if library.uses_libc]
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            self.app.display_warning(f"casemate is built without a KVM for other VMMs: {said}")
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
        build_data["pure_python"] = False
        build_data["tag"] = _TAG

    def clean(self, versions: list[str]) -> None:
        """Remove what was compiled."""
        for target in (*(library.target for library in LIBRARIES), GUEST_CODE):
            Path(self.root, "src/casemate", target).unlink(missing_ok=True)


def build(library: Library, package: Path) -> Path:
    """Compile one library into ``package``, or take it from the cache. Raises OSError or CalledProcessError."""
    target, folder = package / library.target, package / library.sources
    compiler = _compiler()
    command = [*compiler, *_FLAGS, f'-DSOURCES="{hash_files([*folder.glob("*.c"), *folder.glob("*.h")])}"']
    command += [] if library.uses_libc else _FREESTANDING
    cached = _cached(compiler, command, ".so")
    if not cached.exists():
        parts = _OLD_PARTS if _system_compiler() else _ZIG_PARTS
        _compile(command, sorted(folder.glob("*.c")), cached, parts if library.uses_libc else [])
    target.unlink(missing_ok=True)  # a process may have the old one loaded
    shutil.copyfile(cached, target)
    return target


def hash_files(paths: list[Path]) -> str:
    """A hash over names and contents of source files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def build_guest_code(package: Path) -> Path:
    """Assemble the code of guests into data, or take that from the cache. Raises OSError or CalledProcessError."""
    target, sources = package / GUEST_CODE, sorted([*package.rglob("*.S"), package / "native/piece.h"])
    command = [*_compiler(), "-c", f"-I{package / 'native'}"]
    cached = _cached(_compiler(), [*command, *(path.read_text() for path in sources)], ".json")
    if not cached.exists():
        pieces: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for path in (path for path in sources if path.suffix == ".S"):
                made = Path(folder, "made.o")
                line = [*command, "-o", str(made), str(path)]
                subprocess.run(line, capture_output=True, text=True, check=True)
                prefix = path.relative_to(package).with_suffix("").as_posix()
                pieces |= {
                    f"{prefix}.{name}": piece for name, piece in read_pieces(made.read_bytes()).items()
                }
        cached.write_text(json.dumps({"sources": hash_files(sources), "pieces": pieces}, indent=0))
    shutil.copyfile(cached, target)
    return target


def read_pieces(data: bytes) -> dict[str, Any]:
    """Code, and position, size, name and addend of each parameter, by name, of the ``.code.`` sections of an object."""
    (sections_at,) = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<3H", data, 58)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, sections_at + size * number) for number in range(count)
    ]

    def contents(number: int) -> bytes:
        return data[sections[number][4] : sections[number][4] + sections[number][5]]

    def text(table: int, at: int) -> str:
        return contents(table)[at:].partition(b"\0")[0].decode()

    names = [text(names_index, section[0]) for section in sections]
    pieces: dict[str, Any] = {}
    for number, name in enumerate(names):
        if not name.startswith(".code."):
            continue
        parameters = []
        for relocations, section in enumerate(sections):
            if section[1] != 4 or section[7] != number:  # SHT_RELA, sh_info
                continue
            for offset, info, addend in struct.iter_unpack("<QQq", contents(relocations)):
                symbols = section[6]
                symbol = struct.unpack_from("<IBBHQQ", contents(symbols), 24 * (info >> 32))
                parameter = text(sections[symbols][6], symbol[0])
                if symbol[3] or info & 0xFFFFFFFF not in _RELOCATED_BYTES:
                    raise OSError(f"{name}: {parameter or 'a label'} is no parameter")
                parameters.append([offset, _RELOCATED_BYTES[info & 0xFFFFFFFF], parameter, addend])
        pieces[name.removeprefix(".code.")] = [contents(number).hex(), parameters]
    return pieces


def _compile(command: list[str], sources: list[Path], target: Path, libraries: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, "made.so")
        subprocess.run(
            [*command, "-o", str(made), *map(str, sources), *libraries],
            capture_output=True,
            text=True,
            check=True,
        )
        made.replace(target)


def _cached(compiler: list[str], command: list[str], suffix: str) -> Path:
    key = hashlib.sha256(repr((_version(tuple(compiler)), command)).encode()).hexdigest()[:32]
    return _cache_folder() / f"{key}{suffix}"


def _compiler() -> list[str]:
    return _system_compiler() or [sys.executable, "-m", "ziglang", "cc", *_ZIG_FLAGS]


def _cache_folder() -> Path:
    """The user's, or one of our own where there is none."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME")
        folder = Path(cache) if cache else Path.home() / ".cache"
        folder = folder / "casemate" / "native"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="casemate-native-"))
    return folder


@cache
def _system_compiler() -> list[str] | None:
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else []
    return next((each for each in (*candidates, ["cc"], ["gcc"], ["clang"]) if _works(each)), None)


def _works(compiler: list[str]) -> bool:
    if shutil.which(compiler[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "works.c")
        source.write_text("#include <stdint.h>\nuint64_t works(void) { return 1; }\n")
        command = [*compiler, *_FLAGS, *_FREESTANDING, "-o", str(Path(folder, "works.so")), str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout


def _is_for_us() -> bool:
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and sysconfig.get_platform().endswith("x86_64")
    )
