"""Which host runs a guest, from the word of ``--host``, and why (docs/guide/boot.md)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from casemate.errors import SpecError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.machine.spec import MachineSpec

if TYPE_CHECKING:
    from casemate.host.hypervisor import Hypervisor

_ANYWHERE = "the modelled host needs no privilege and no special CPU"


class HostChoice(NamedTuple):
    """What makes the host, and the line that says why it was taken."""

    make: Callable[[GuestClock], "Hypervisor"]
    why: str


def validate_host(word: str) -> None:
    """Refuse words that name no host. Raises SpecError."""
    kind, separator, era = word.partition(":")
    if kind == "model" and separator:
        from casemate.machine.model_host import validate_era

        validate_era(era)
    elif word not in ("auto", "kvm", "model"):
        raise SpecError(f"--host {word!r} is not known", "use auto, kvm, model, or model:ERA")


def choose_host(
    word: str, spec: MachineSpec, platform: Path | None = None, *, own_process: bool = False
) -> HostChoice:
    """The host for this guest; a modelled one has its platform's keys in ``platform``, or new ones.

    ``own_process`` says that the process ends when the guest has ended.

    Raises UnsupportedError where KVM was asked for and cannot be used.
    """
    if word == "kvm":
        if spec.cpu is not None:
            raise SpecError(
                "--cpu is for the modelled host; guests on KVM get what the processor has", "leave it out"
            )
        kvm = KvmHypervisor(closes_aside=own_process)
        kvm.validate_kind(spec.kind)
        return HostChoice(lambda clock: kvm, "asked for by --host kvm")
    if word != "auto":
        return HostChoice(_model(spec, word.partition(":")[2], platform), _ANYWHERE)
    if spec.kind.is_confidential or spec.cpu is not None:
        return HostChoice(_model(spec, platform=platform), _ANYWHERE)
    return _automatic(spec, own_process)


def _automatic(spec: MachineSpec, own_process: bool) -> HostChoice:
    try:
        kvm = KvmHypervisor(closes_aside=own_process)
    except UnsupportedError as error:
        return HostChoice(_model(spec), f"{_ANYWHERE}; {error.cause}")
    from casemate.guests.probe import probe_image
    from casemate.host.kvm.probe import probe

    name = loaded_vendor_module() or "KVM"
    found = probe(kvm, *probe_image())
    if found.reason:
        return HostChoice(_model(spec), f"{_ANYWHERE}; {name} is there, but {found.reason}")
    return HostChoice(
        lambda clock: kvm,
        f"{name} runs supervisor code at {found.speed / 1e6:.0f} million instructions a second or more, and x87",
    )


def _model(
    spec: MachineSpec, era: str = "", platform: Path | None = None
) -> Callable[[GuestClock], "Hypervisor"]:
    from casemate.machine.model_host import model_host

    return model_host(spec, era, platform)
