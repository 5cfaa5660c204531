"""What a cell reads of a VMM that is judged."""

from __future__ import annotations

import json

import pytest

from casemate.matrix.vmm import last_document

DOCUMENT = {"exit_code": 0, "vms": [{"rules": [{"rule": "armed", "verdict": "kept"}]}]}


@pytest.mark.parametrize(
    "before", ["", "Shell> \n", "Shell> ", "Shell> \x1b[1;37m", '{\n  "of": "another"}\n']
)
def test_the_document_is_found_behind_a_guests_output(before: str) -> None:
    assert last_document(before + json.dumps(DOCUMENT, indent=2) + "\n") == DOCUMENT


@pytest.mark.parametrize("said", ["", "Shell> ", '{\n  "exit_code": '])
def test_none_is_an_error(said: str) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        last_document(said)
