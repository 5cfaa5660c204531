"""What a matrix's file may say, and what it is told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.errors import SpecError
from casemate.matrix.plan import load_matrix

AXES = """
[axes]
kind = ["plain", "sev", "snp"]
vcpus = [1, 2]
[axes.image.stock]
code = "code.fd"
bios = "whole.fd"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "m.toml"
    path.write_text(text)
    return path


def test_cells_are_the_product_of_the_axes_without_what_is_excluded(tmp_path: Path) -> None:
    text = AXES + '[[exclude]]\nkind = "snp"\nvcpus = 2\n'
    matrix = load_matrix(write(tmp_path, text))
    names = [cell.name for cell in matrix.cells]
    assert names == ["plain 1 stock", "plain 2 stock", "sev 1 stock", "sev 2 stock", "snp 1 stock"]
    assert matrix.cells[0].settings["code"] == str(tmp_path / "code.fd")


def test_an_include_adds_a_cell_with_settings_of_its_own(tmp_path: Path) -> None:
    text = AXES + '[[include]]\nkind = "sev"\nvcpus = 2\nimage = "stock"\nset = { memory = "1G" }\n'
    cell = load_matrix(write(tmp_path, text)).cells[-1]
    assert (cell.name, cell.settings["memory"]) == ("sev 2 stock memory=1G", "1G")


def test_later_expectations_overrule_earlier_ones(tmp_path: Path) -> None:
    text = AXES + '[[expect]]\noutcome = "until"\nviolations = 0\n'
    text += '[[expect]]\nwhere = { kind = ["snp"] }\noutcome = "launched"\n'
    wanted = {cell.name: cell.wanted for cell in load_matrix(write(tmp_path, text)).cells}
    assert wanted["plain 1 stock"] == {"outcome": "until", "violations": 0}
    assert wanted["snp 1 stock"] == {"outcome": "launched", "violations": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[axes\n", "line 1"),
        (AXES + "[setings]\n", "unknown table 'setings'; did you mean 'settings'"),
        (AXES + "[settings]\ntimout = 1\n", "unknown setting 'timout'; did you mean 'timeout'"),
        (AXES + "[settings]\ntimeout = 0\n", "a number of seconds"),
        ('[axes]\nkind = ["sev-se"]\n', "did you mean 'sev-es'"),
        ("[axes]\nknid = [1]\n", "no such setting; did you mean 'kind'"),
        (AXES + '[[exclude]]\nknd = "sev"\n', "no axis 'knd'; did you mean 'kind'"),
        (AXES + '[[exclude]]\nkind = "se"\n', "kind has no 'se'; did you mean 'sev'"),
        (AXES + '[[expect]]\noutcme = "until"\n', "did you mean 'outcome'"),
        (AXES + '[[expect]]\nviolations = "none"\n', "the number of violations at most"),
        (AXES + '[settings]\nwork = ["lint"]\n', "give QEMU's command line as command = [...]"),
        (AXES + '[[exclude]]\nimage = "stock"\n', "every cell is excluded"),
        ("name = 1\n[axes]\nvcpus = [1]\n", "give a text"),
        ("[settings]\n", "there are no axes"),
        ('[axes]\nkind = ["sev", "sev"]\n', "a value is there twice"),
        ('[axes]\nkind = ["sev"]\n', "give code, bios, kernel or vmm"),
        ("axes = 1\n", "write a table: [axes]"),
        (AXES + "[[expect]]\nslower = { than = 1 }\n", "slower"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_what_was_meant(text: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as raised:
        load_matrix(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
