"""Makes a root by mmdebstrap from the package sources of this machine (mmdebstrap(1), mke2fs(8))."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools.roots.recipes import Recipe

USER = "user"
"""Name of the ordinary user of a root; its number is 1000."""

_FINGERPRINT = "fingerprint"
_LOG = "log"
_APT_SETTINGS = ("Acquire::http", "Acquire::Check-", "Acquire::Retries")
_IN_NAMESPACES = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child",
    "--mount-proc",
)  # fmt: skip
"""What mmdebstrap mounts (/proc, /sys, /dev) is nobody else's, and gone with it, however it ends."""
_DISK_HEADROOM_MIB = 256
_AUTOLOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,38400,9600 %I vt100
"""


class RootsError(Exception):
    """What stands in the way, as one line."""


def cache_folder() -> Path:
    """Where roots are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casemate" / "roots"


def root_folder(recipe: Recipe) -> Path:
    """The folder of one root: ``tree`` is what to change the root to, or ``root.ext4`` the disk."""
    return cache_folder() / recipe.name


def is_made(recipe: Recipe) -> bool:
    """Whether it is there, and of this recipe."""
    mark = root_folder(recipe) / _FINGERPRINT
    return mark.exists() and mark.read_text() == recipe.fingerprint


def make(recipe: Recipe) -> Path:
    """Make a root unless it is made; returns its folder. Raises RootsError."""
    folder = root_folder(recipe)
    if is_made(recipe):
        return folder
    if shutil.which("mmdebstrap") is None:
        raise RootsError("no mmdebstrap: install the package mmdebstrap")
    if os.geteuid() != 0:
        raise RootsError("making a root needs root")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    partial.chmod(0o755)
    tree, settings = partial / "tree", partial / "apt.conf"
    settings.write_text(_apt_settings())
    command = [
        *_IN_NAMESPACES, "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(recipe.packages)}",
        f"--aptopt={settings}", recipe.suite, str(tree), *_sources(recipe.suite),
    ]  # fmt: skip
    _watch(command, f"{recipe.name}: {recipe.suite} with {', '.join(recipe.packages)}", partial / _LOG)
    _add_user(tree)
    if recipe.is_disk:
        _make_disk(tree, partial)
    (partial / _FINGERPRINT).write_text(recipe.fingerprint)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _sources(suite: str) -> list[str]:
    """Lines of a sources.list for ``suite`` on the mirrors that this machine uses for its own."""
    listed = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    mirrors = {
        uri for uri, release, component in rows if component == "main" and not set(release) & set("-/")
    }
    if not mirrors:
        raise RootsError("apt knows no package source: run apt-get update")
    return [f"deb {mirror} {suite} main" for mirror in sorted(mirrors)]


def _apt_settings() -> str:
    """How this machine's apt reaches its mirrors (proxies, checks of dates); mmdebstrap keeps it there."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(f"{line}\n" for line in dump.splitlines() if line.startswith(_APT_SETTINGS))


def _add_user(tree: Path) -> None:
    for name, line in (
        ("passwd", f"{USER}:x:1000:1000::/home/{USER}:/bin/sh"),
        ("group", f"{USER}:x:1000:"),
        ("shadow", f"{USER}:!:20000:0:99999:7:::"),
    ):
        with (tree / "etc" / name).open("a") as file:
            file.write(f"{line}\n")
    home = tree / "home" / USER
    home.mkdir(parents=True)
    os.chown(home, 1000, 1000)


def _make_disk(tree: Path, folder: Path) -> None:
    """Turn a tree into ``root.ext4`` with ``vmlinuz`` and ``initrd.img`` beside it; its console is ttyS0, as root."""
    override = tree / "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"
    override.parent.mkdir(parents=True)
    override.write_text(_AUTOLOGIN)
    (tree / "etc/fstab").write_text("/dev/vda / ext4 rw,noatime 0 1\n")
    (tree / "etc/hostname").write_text("guest\n")
    for name in ("vmlinuz", "initrd.img"):
        found = sorted((tree / "boot").glob(f"{name}-*"))
        if not found:
            raise RootsError(f"the kernel's package left no {name}")
        shutil.copyfile(found[-1], folder / name)
    used = int(subprocess.check_output(["du", "-sm", str(tree)], text=True).split()[0])
    disk = folder / "root.ext4"
    size = f"{used + used // 4 + _DISK_HEADROOM_MIB}M"
    _watch(["mkfs.ext4", "-q", "-L", "root", "-d", str(tree), str(disk), size], "root.ext4", folder / _LOG)
    shutil.rmtree(tree)


def _watch(command: list[str], what: str, log: Path) -> None:
    """Run a command that takes long; at a terminal the seconds are shown. Raises RootsError with its last error."""
    started, shows = time.monotonic(), sys.stderr.isatty()
    with log.open("a") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while True:
            try:
                process.wait(1 if shows else None)
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                print(f"\r\x1b[Kroots: {what} ({seconds:.0f} s)"[:200], end="", file=sys.stderr, flush=True)
            else:
                break
    if shows:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("E:")]
        cause = lines[-1] if lines else f"exit code {process.returncode}"
        raise RootsError(f"{what}: {cause}; all that was said is in {log}")
    print(f"roots: {what}: {time.monotonic() - started:.0f} s", file=sys.stderr)
