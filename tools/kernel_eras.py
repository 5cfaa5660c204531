"""Prints docs/design/kernel-eras.md from the table of the model, which a test holds it to (CONTRIBUTING.md).

python -m tools.kernel_eras > docs/design/kernel-eras.md
"""

from __future__ import annotations

from casemate.abi.kernel_eras import BEHAVIOURS, ERAS, Behaviour, find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.confidential.features import feature_names

_HEAD = """\
# Kernel eras

`--host model:ERA` makes the modelled host answer as KVM did at one release; `model` alone is the newest. Made by
`python -m tools.kernel_eras` from the table in `abi/kernel_eras.py`.

*Seen* says who watched a row happen. *kvm_amd 6.1, 6.12, 7.3* are Debian's kernels with emulated SVM: plain guests
only. *source only* was read in the kernel and in its mailing lists, and seen by nobody here: there was no SEV hardware.
An era is one release as it was made; stable kernels carry later changes back, and distributions more of them.

The read-only capability that counts is the VM's, not the system's, and follows from the type of the VM:

| era | system | default type, any guest | SEV type | SEV-ES type |
|---|---|---|---|---|
"""

_ROWS = """
| what | value since | source | seen |
|---|---|---|---|
"""

_TAIL = """
Three more things follow from the table:

- A SEV-ES guest without features is made by `KVM_SEV_ES_INIT` on the default type, which kept its read-only slots: a
  direct store to one faults for ever. The model ends such a run with a violation that says *livelock*. A real host does
  not return.
- A feature needs `KVM_SEV_INIT2`, hence a type of its own, hence (since 6.11) no read-only slots: its flash is
  protected by `mprotect`. Linux 6.6 set debug-swap by itself; `--init auto` uses that.
- Whether registering memory pins it for writing is told by no release number. casemate registers every block before it
  is protected, which works either way; the tests do both.
"""


def page() -> str:
    """The whole page."""
    rows = [f"| {cells} |" for behaviour in BEHAVIOURS for cells in [" | ".join(_cells(behaviour))]]
    return _HEAD + "\n".join(_answers(era) for era in ERAS) + "\n" + _ROWS + "\n".join(rows) + "\n" + _TAIL


def _answers(name: str) -> str:
    era = find_era(name)
    types = (VmType.DEFAULT, VmType.SEV, VmType.SEV_ES)
    answers = [
        _yes(era.answers_readonly_memory(vm_type)) if vm_type in era.vm_types else "no such type"
        for vm_type in types
    ]
    cells = [name, _yes(era.system_readonly_memory), *answers]
    return f"| {' | '.join(cells)} |"


def _cells(behaviour: Behaviour) -> list[str]:
    values = "; ".join(
        f"{since.removeprefix('linux-')}: {_value(value)}" for since, value in behaviour.values
    )
    return [behaviour.what, values, behaviour.source, behaviour.seen]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, frozenset):
        return ", ".join(vm_type.name for vm_type in sorted(value))
    if isinstance(value, int):
        return ", ".join(feature_names(value)) or "none"
    return str(value)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


if __name__ == "__main__":
    print(page(), end="")
