"""``casemate prove``: whether write protection holds, shown by guests that attack it (docs/guide/evidence.md)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from casemate.errors import SpecError, UnsupportedError
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.prove.proof_vm import Row
from casemate.prove.prove import MECHANISMS, HostProof, MechanismProof, prove_kvm, prove_model

EPILOG = """\
examples:
  casemate prove
      every attack on every protection, on this machine's KVM and on the model of each kernel era
  casemate prove --host kvm --protection vma --json
      the host that matters, and the protection that you rely on, as one JSON document

cells say how a write ended: MMIO (given to the device), fault (KVM_RUN failed with EFAULT), held (by userfaultfd),
livelock, and so on; a cell in capitals says that memory CHANGED
exit code: 0 if memory stayed unchanged in every row of --protection, 1 if it did not, 5 if that cannot be tried here
"""

_CHANGED, _CANNOT = 1, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.add_argument(
        "--host",
        default="all",
        metavar="HOST",
        help="kvm, model, model:ERA, or all: KVM if it is there, and the model of every era (%(default)s)",
    )
    parser.add_argument(
        "--protection",
        choices=["slot", "vma", "view", "uffd"],
        default="slot",
        help="the protection whose rows decide the exit code (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    """Attack, print; the exit code is the verdict about one protection."""

    chosen = MECHANISMS[args.protection]
    proofs: list[HostProof] = []
    for proof in _proofs(args.host):
        proofs.append(proof)
        if not args.json:
            print("\n".join(_lines(proof)), end="\n\n", flush=True)
    verdicts = [
        mechanism.holds
        for proof in proofs
        for mechanism in proof.mechanisms
        if mechanism.protection is chosen
    ]
    tried = [verdict for verdict in verdicts if verdict is not None]
    code = _CANNOT if not tried else 0 if all(tried) else _CHANGED
    if args.json:
        hosts = [_to_json(proof) for proof in proofs]
        print(json.dumps({"protection": str(chosen), "exit_code": code, "hosts": hosts}, indent=2))
    else:
        words = {0: "memory stayed unchanged", _CHANGED: "MEMORY CHANGED", _CANNOT: "cannot be tried here"}
        print(f"{chosen}: {words[code]}")
    return code


def _proofs(host: str) -> Iterator[HostProof]:
    kind, _, era = host.partition(":")
    if host == "all":
        try:
            yield prove_kvm(_kvm_name())
        except UnsupportedError as reason:
            print(f"casemate: no KVM: {reason.cause}", file=sys.stderr)
        yield from prove_model()
    elif host == "kvm":
        yield prove_kvm(_kvm_name())
    elif kind == "model":
        yield from prove_model(era or None)
    else:
        raise SpecError(f"--host {host!r} is not known", "use all, kvm, model, or model:ERA")


def _kvm_name() -> str:
    return f"{loaded_vendor_module() or 'KVM'}, Linux {os.uname().release}"


def _lines(proof: HostProof) -> list[str]:
    modelled = " (modelled)" if proof.modelled else ""
    tried = [mechanism for mechanism in proof.mechanisms if mechanism.rows]
    lines = [f"{proof.name}{modelled}, {proof.guest} guest"]
    if tried:
        table = [["attack", *(str(mechanism.protection) for mechanism in tried)]]
        rows = zip(*(mechanism.rows for mechanism in tried), strict=True)
        table += [[cells[0].attack.name, *map(_cell, cells)] for cells in rows]
        table.append(["memory", *("unchanged" if mechanism.holds else "CHANGED" for mechanism in tried)])
        lines += _aligned(table)
    refused = [mechanism for mechanism in proof.mechanisms if mechanism.refusal]
    return lines + [f"  no {mechanism.protection}: {mechanism.refusal}" for mechanism in refused]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(map(str.ljust, row, widths)) for row in table)
    return [f"  {line.rstrip()}" for line in padded]


def _cell(row: Row) -> str:
    return row.what if row.unchanged else f"CHANGED ({row.what})"


def _to_json(proof: HostProof) -> dict[str, Any]:
    return {
        "host": proof.name,
        "guest": proof.guest,
        "modelled": proof.modelled,
        "mechanisms": [_mechanism(mechanism) for mechanism in proof.mechanisms],
    }


def _mechanism(mechanism: MechanismProof) -> dict[str, Any]:
    return {
        "protection": str(mechanism.protection),
        "holds": mechanism.holds,
        "refusal": mechanism.refusal,
        "rows": [
            {
                "attack": row.attack.name,
                "mode": row.attack.mode,
                "what": row.what,
                "unchanged": row.unchanged,
            }
            for row in mechanism.rows
        ],
    }
