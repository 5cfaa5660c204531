"""Compiles the machine code of casemate for wheels and editable installs (hatchling's build hook interface).

The compiler is ``$CC``, ``cc``, ``gcc`` or ``clang``, whichever works first, else that of the package ``ziglang``, for
which the build then asks. The CPU's hooks use neither the C library nor a header beside ``stdint.h``, and the KVM for
other monitors only what glibc 2.17 has, so one wheel serves every Linux with glibc on x86-64. For other computers, and
where nothing compiles it, the wheel is pure Python: commands that run no guest on the model work. What was compiled
once is kept in the user's cache, by the hash of what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
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
_WITH_LIBC = ["-Wl,--no-as-needed", "-l:libdl.so.2"]
"""Behind the sources. Of the C library only what its version 2.17 has; since 2.34 it has no libdl of its own."""
_ZIG_FLAGS = ["-target", "x86_64-linux-gnu.2.17", "-fno-sanitize=all"]
_TAG = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"


class Library(NamedTuple):
    """A shared object and the folder of its sources, both below ``src/casemate``."""

    target: str
    sources: str
    uses_libc: bool = False


LIBRARIES = (
    Library("native/_hooks.so", "native/hooks"),
    Library("native/_kvm.so", "native/kvm", uses_libc=True),
)


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
            built = [build(library, package) for library in LIBRARIES]
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            self.app.display_warning(f"casemate is built without the modelled CPU: {said}")
            return
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
        build_data["pure_python"] = False
        build_data["tag"] = _TAG

    def clean(self, versions: list[str]) -> None:
        """Remove what was compiled."""
        for library in LIBRARIES:
            Path(self.root, "src/casemate", library.target).unlink(missing_ok=True)


def build(library: Library, package: Path) -> Path:
    """Compile one library into ``package``, or take it from the cache. Raises OSError or CalledProcessError."""
    target, folder = package / library.target, package / library.sources
    compiler = _system_compiler() or [sys.executable, "-m", "ziglang", "cc", *_ZIG_FLAGS]
    command = [*compiler, *_FLAGS, f'-DSOURCES="{hash_sources(folder)}"']
    command += [] if library.uses_libc else _FREESTANDING
    key = hashlib.sha256(repr((_version(tuple(compiler)), command)).encode()).hexdigest()[:32]
    cached = _cache_folder() / f"{key}.so"
    if not cached.exists():
        _compile(command, sorted(folder.glob("*.c")), cached, _WITH_LIBC if library.uses_libc else [])
    target.unlink(missing_ok=True)  # a process may have the old one loaded
    shutil.copyfile(cached, target)
    return target


def hash_sources(folder: Path) -> str:
    """A hash over names and contents of the C sources in a folder."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


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


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "casemate", "native")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
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
