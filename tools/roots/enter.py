"""Runs a command in a root, on an overlay that is thrown away afterwards (unshare(1), chroot(8), overlayfs)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.roots.make import USER, RootsError, cache_folder

_PASSED_ON = ("TERM", "COLUMNS", "LINES", "NO_COLOR")
_PREFIXES = ("PIP_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_FOR_THE_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
_CHECKOUT = Path(__file__).parents[2]

_SCRIPT = """\
set -eu
scratch=$1 tree=$2 home=$3 user=$4
shift 4
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
mount -t proc proc "$scratch/root/proc"
mount --rbind /dev "$scratch/root/dev"
mount --rbind /sys "$scratch/root/sys"
while [ "$1" != -- ]; do
    mkdir -p "$scratch/root$2"
    mount --bind "$1" "$scratch/root$2"
    shift 2
done
shift
command=$1
shift
[ "$user" = 0 ] || set -- -c 'exec setpriv --reuid 1000 --regid 1000 --clear-groups "$0" "$@"' "$@"
[ "$user" != 0 ] || set -- -c 'exec "$0" "$@"' "$@"
exec chroot "$scratch/root" /bin/sh -c 'cd "$0"; exec "$@"' "$command" /bin/sh "$@"
"""


def enter(
    tree: Path, command: Sequence[str], *, as_user: bool, with_checkout: bool, binds: Sequence[str] = ()
) -> int:
    """The command's exit code; ``binds`` are ``FOLDER:PLACE``. Raises RootsError."""
    if os.geteuid() != 0:
        raise RootsError("entering a root needs root")
    home = f"/home/{USER}" if as_user else "/root"
    with tempfile.TemporaryDirectory(prefix=".run-", dir=cache_folder()) as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        for part in ("upper", "work", "root"):
            (scratch / part).mkdir()
        upper = scratch / "upper"
        _copy_network(upper)
        folder = home
        if with_checkout:
            folder = f"{home}/casemate"
            _copy_checkout(upper / folder[1:], upper / home[1:], as_user=as_user)
        mounts = [word for bind in binds for word in _bind(bind)]
        line = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", _SCRIPT, "roots",
            str(scratch), str(tree), home, "1000" if as_user else "0", *mounts, "--", folder, *command,
        ]  # fmt: skip
        return subprocess.run(line, env=_environment(home), check=False).returncode


def _bind(text: str) -> tuple[str, str]:
    source, _, place = text.partition(":")
    if not place.startswith("/") or not Path(source).exists():
        raise RootsError(f"--bind {text!r} is no FOLDER:PLACE of a folder that exists")
    return str(Path(source).absolute()), place


def _environment(home: str) -> dict[str, str]:
    """Few variables: those of a fresh login, the terminal's, and how to reach the network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or (name.startswith(_PREFIXES) and "FIND_LINKS" not in name)
    }
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"HOME": home, "PATH": path, "LANG": "C.UTF-8"} | kept


def _copy_network(upper: Path) -> None:
    for name in _FOR_THE_NETWORK:
        if Path(name).exists():
            target = upper / name[1:]
            for folder in reversed(target.relative_to(upper).parents):
                (upper / folder).mkdir(exist_ok=True, mode=0o755)
            shutil.copyfile(name, target)


def _copy_checkout(target: Path, home: Path, *, as_user: bool) -> None:
    """The files of this checkout that git knows, as a fresh clone has them, owned by who will work there."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=_CHECKOUT, text=True)
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(_CHECKOUT / name, target / name)
    if as_user:
        for path in (home, *home.rglob("*")):
            os.chown(path, 1000, 1000, follow_symlinks=False)
