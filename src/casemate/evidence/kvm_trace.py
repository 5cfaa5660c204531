"""What a VMM did to its VM, as far as rules about launch and protection need it (Linux api.rst of KVM)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple, Self, TextIO


class StepKind(StrEnum):
    """What was done."""

    CAPABILITY = "capability"
    """KVM_CHECK_EXTENSION: ``name``, the answer in ``value``; ``of_vm`` if the VM was asked."""
    SLOT = "slot"
    """KVM_SET_USER_MEMORY_REGION; ``size`` 0 deletes."""
    MAPPING = "mapping"
    """mprotect of ``[hva, hva + size)``."""
    REGION = "region"
    """KVM_MEMORY_ENCRYPT_REG_REGION."""
    COMMAND = "command"
    """KVM_MEMORY_ENCRYPT_OP: ``name``, and the memory that it changes."""
    RUN = "run"
    """KVM_RUN, once for many in a row."""
    FAULT = "fault"
    """KVM_RUN failed with EFAULT."""


class KvmStep(NamedTuple):
    """One step; ``writable`` is whether the mapping that it is about takes writes (None: it has none)."""

    kind: StepKind
    name: str = ""
    of_vm: bool = True
    slot: int | None = None
    gpa: int = 0
    hva: int = 0
    size: int = 0
    readonly: bool = False
    writable: bool | None = None
    errno: int = 0
    value: int = 0

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Of ``to_json``'s form."""
        return cls(**row | {"kind": StepKind(row["kind"])})

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self._asdict()


class KvmTrace:
    """The steps of one VM, in their order; ``copy`` gets each at once, so that a process that dies leaves them."""

    def __init__(self, copy: TextIO | None = None) -> None:
        self.steps: list[KvmStep] = []
        self.copy = copy

    def begin(self) -> None:
        """Another VM is made."""
        self.steps.clear()
        self._copy(None)

    def note(self, step: KvmStep) -> None:
        """Add one; a run behind a run says nothing new."""
        if step.kind is not StepKind.RUN or not self.steps or self.steps[-1].kind is not StepKind.RUN:
            self.steps.append(step)
            self._copy(step.to_json())

    def _copy(self, row: dict[str, Any] | None) -> None:
        if self.copy is not None:
            print(json.dumps(row), file=self.copy, flush=True)


def read_copy(lines: Iterable[str]) -> list[KvmTrace]:
    """Of each VM that ``KvmTrace.copy`` was told of, in their order."""
    found: list[KvmTrace] = []
    for row in map(json.loads, lines):
        if row is None:
            found.append(KvmTrace())
        else:
            found[-1].steps.append(KvmStep.from_json(row))
    return found
