"""A file of UEFI variables, be it a flash image or the JSON of QEMU's uefi-vars device (docs/guide/vars.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from casemate.advise.store_check import StoreCheck, check_store, rewrite_store
from casemate.errors import ImageError, SpecError
from casemate.firmware.variables import Attributes, Variable, header_size
from casemate.firmware.variables_json import Key, is_json, parse_document, variables_to_json
from casemate.firmware.varstore import (
    LARGEST_SIGNED_VARIABLE,
    LARGEST_VARIABLE,
    SIZES,
    StoreLayout,
    build_volume,
)

BUILDS = {word: StoreLayout(size) for size, word in SIZES.items()}
"""The layouts of stores by what distributions call the builds that use them."""
JSON = "json"


@dataclass(frozen=True, slots=True)
class VariableFile:
    """What is in such a file; ``check`` is None for JSON, which is whole or no such document at all."""

    name: str
    data: bytes
    variables: tuple[Variable, ...]
    check: StoreCheck | None
    digests: Mapping[Key, bytes] = field(default_factory=dict)
    """Of the certificates that signed private variables, which JSON alone keeps."""

    @classmethod
    def parse(cls, data: bytes, name: str) -> VariableFile:
        """Read the bytes of a file called ``name``. Raises ImageError if they are neither form."""
        if is_json(data):
            variables, digests = parse_document(data.decode(errors="replace"), name)
            if len({variable.key for variable in variables}) < len(variables):
                raise ImageError(name, "a variable is there twice", "leave one of them")
            return cls(name, data, tuple(variables), None, digests)
        check = check_store(data, name)
        return cls(name, data, check.variables, check)

    @property
    def form(self) -> str:
        """One of ``BUILDS``, or ``JSON``."""
        return JSON if self.check is None else SIZES[self.check.layout.size]

    @property
    def is_healthy(self) -> bool:
        """Whether firmware has no trouble with it."""
        return self.check is None or self.check.is_healthy

    def encode(self, variables: Iterable[Variable], digests: Mapping[Key, bytes] | None = None) -> bytes:
        """The file with these variables in place of its own; ``digests`` add to its own.

        Raises SpecError if they do not fit.
        """
        if self.check is None:
            return variables_to_json(variables, {**self.digests, **(digests or {})}).encode() + b"\n"
        return rewrite_store(self.data, self.check, variables)

    def convert(self, form: str) -> bytes:
        """The same variables in another form, one of ``BUILDS`` or ``JSON``.

        Raises SpecError if they do not fit, ImageError if the file holds code behind its variables, which has to be
        of the same build.
        """
        if form == self.form:
            return self.data
        if form == JSON:
            return variables_to_json(self.variables).encode() + b"\n"
        if self.check is not None and len(self.data) > self.check.layout.size:
            remedy = f"convert the store alone: its first {self.check.layout.size:#x} bytes"
            raise ImageError(self.name, f"firmware code of a {self.form} build follows the variables", remedy)
        authenticated = self.check is None or self.check.authenticated
        layout = BUILDS[form]
        for variable in self.variables:
            if size_fault := oversize(variable, layout, authenticated=authenticated):
                raise SpecError(size_fault, "delete it first, if the guest can do without")
        return build_volume(layout, self.variables, authenticated=authenticated)


def oversize(variable: Variable, layout: StoreLayout, *, authenticated: bool) -> str | None:
    """Why firmware of the build would not have stored such a variable itself, or None."""
    limits = LARGEST_SIGNED_VARIABLE if variable.attributes & Attributes.AT else LARGEST_VARIABLE
    size = header_size(authenticated) + 2 * len(variable.name) + 2 + len(variable.data)
    limit = limits[layout.size]
    if size <= limit:
        return None
    return f"{variable.label} has {size} bytes with its header and name, {SIZES[layout.size]} builds take {limit}"
