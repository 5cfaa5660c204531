"""A distribution's kernel out of its package, unpacked into a cache and not installed (apt-get(8), dpkg-deb(1))."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODULES = ("kvm_amd", "9p", "9pnet_virtio", "virtio_pci", "virtio_console", "overlay")
PACKAGE = "linux-image-amd64"
_PARTS = re.compile(r"^ *Depends: (linux-(?:image|binary|modules)-\S+)$", re.MULTILINE)


class LabError(Exception):
    """The rig cannot be built or run; says what is missing."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An image, the modules to load, in order, and a static shell."""

    image: Path
    modules: tuple[tuple[str, bytes], ...]
    busybox: Path


def fetch_kernel(cache: Path, package: str = PACKAGE) -> Kernel:
    """The kernel of ``package``, a name that apt knows here. Raises LabError."""
    tree = cache / package
    if not (tree / "complete").exists():
        _unpack(cache, tree, package)
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    busybox = next((path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists()), None)
    if not images or busybox is None:
        raise LabError(f"{tree} holds no kernel or no busybox; remove it to fetch them again")
    return Kernel(images[0], tuple(_closure(tree, MODULES)), busybox)


def _unpack(cache: Path, tree: Path, package: str) -> None:
    tree.mkdir(parents=True, exist_ok=True)
    state = cache / "apt"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "archives/partial").mkdir(parents=True, exist_ok=True)
    options = [
        f"-oDir::State={state}",
        f"-oDir::Cache={state}",
        "-oAPT::Sandbox::User=root",
        "-oDebug::NoLocking=1",
    ]
    _run(["apt-get", "-q", *options, "update"], tree)
    names = {package, "busybox-static"}
    while (
        parts := set(_PARTS.findall(_run(["apt-cache", *options, "depends", *sorted(names)], tree))) - names
    ):
        names |= parts
    _run(["apt-get", "-q", *options, "download", *sorted(names)], tree)
    for archive in tree.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(archive), "."], tree)
        archive.unlink()
    (tree / "complete").touch()


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command[:2])}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def _closure(tree: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    files = {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in tree.rglob("*.ko*")
        if path.suffix in (".ko", ".xz")
    }
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:  # what is no file is built in
            return
        path = files[name]
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        softly = re.findall(rb"\0softdep=pre: ([^\0]*)\0", data)
        names = (depends[1].decode().split(",") if depends else []) + b" ".join(softly).decode().split()
        for other in names:
            add(other.replace("-", "_"))
        found[name] = data

    for name in wanted:
        add(name)
    return list(found.items())
