"""Debian 13's libvirt in a root folder, on the modelled KVM: its daemon and domains (libvirt formatdomain)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools.rooted_qemu import CHECKOUT, RUN, require

ROOT = "trixie-full"
LIMIT = 240
"""Seconds after which libvirt is taken to hang."""
OVMF = "/usr/share/ovmf/OVMF.fd"
SNP_SECURITY = "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>"
_SCRIPT = Path(__file__).with_suffix(".sh")
_DOMAIN = """
<domain type='kvm'>
  <name>{name}</name> <memory unit='MiB'>{memory}</memory> <vcpu>1</vcpu>
  <os> <type arch='x86_64' machine='q35'>hvm</type> {firmware} </os>
  <features> <acpi/> <apic/> </features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>EPYC</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/local/bin/qemu-system-x86_64</emulator>
    {disk}
    <serial type='{serial}'> <source {source}/> <target port='0'/> </serial>
    <memballoon model='none'/>
  </devices>
  {security}
</domain>
"""
_DISK = """
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'{options}/> <source file='{file}'/> <target dev='vda' bus='virtio'/>
</disk>
"""
SERIAL_FILE = "file", f"path='{RUN}/serial'"
SERIAL_SOCKET = "unix", f"mode='bind' path='{RUN}/serial'"


def domain(
    name: str,
    memory: int,
    *,
    firmware: str = "",
    disk: str = "",
    security: str = "",
    serial: tuple[str, str] = SERIAL_FILE,
) -> str:
    """A domain of one EPYC with ``memory`` MiB; its serial line is ``serial`` in the folder of the run.

    ``disk`` is a file of that folder. A guest with ``security`` reaches it only by memory that it shares.
    """
    options = " iommu='on'" if security else ""
    return _DOMAIN.format(
        name=name,
        memory=memory,
        firmware=firmware,
        disk=_DISK.format(options=options, file=f"{RUN}/{disk}") if disk else "",
        serial=serial[0],
        source=serial[1],
        security=security,
    )


def start(folder: Path, steps: str) -> subprocess.Popen[str]:
    """The daemon, for as long as ``steps`` take, lines of a shell; they call ``$virsh``. Raises CannotError.

    ``folder`` is RUN there. What virsh and the daemon's log say comes from the process.
    """
    packages = require(ROOT)
    shutil.copy(_SCRIPT, folder / "libvirt.sh")
    (folder / "steps.sh").write_text(steps)
    line = [sys.executable, "-m", "tools.roots", "run", "--bind", f"{CHECKOUT / 'src'}:/casemate/src"]
    line += ["--bind", f"{packages}:/casemate/packages", "--bind", f"{folder}:{RUN}"]
    line += [ROOT, "--", "sh", f"{RUN}/libvirt.sh"]
    return subprocess.Popen(
        line,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def run(folder: Path, steps: str, limit: int = LIMIT) -> str:
    """What was said until the ``steps`` ended. Raises CannotError, and TimeoutExpired after ``limit`` seconds."""
    with start(folder, steps) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except BaseException:
            process.kill()
            raise
    return said
