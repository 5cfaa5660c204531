"""Words of scripts, with bash as judge of what they expand to."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import SpecError
from casemate.qemu.shell import LONGEST_TEXT, Word, words_of_script

SCRIPTS = [
    "run -m 1G -drive 'a b,c=d' \"x y\"",
    'A="-m 1G"; B="$A -S"\nrun $B "$B"',
    'A=(-m 1G)\nA+=(-smp "2 3")\nrun "${A[@]}" ${A[@]}',
    "A=x; A+=y; run ${A}z \"${A}\" '$A' \\$A",
    'run ${NONE:-default} "${NONE:-two words}"',
    "export A=1\nreadonly B=2; run $A$B",
    "run a \\\n  b # comment\n",
    "run 2>&1 a 3>/dev/null b </dev/null",
    "cat >/dev/null <<EOF\nrun not this\nEOF\nrun this",
    'A=; run $A x "$A" y',
    'run "a\\"b" a\\ b "a\\nb"',
    "if true; then run yes; fi",
    "A='two words'; run pre$A",
    "f() { run inside; }; f",
    "run a;run b&&run c",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_those_of_bash(script: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash to compare with")
    text = f'run() {{ printf \'%s\\0\' "$#" "$@"; }}\n{script}'
    out = subprocess.run([bash, "-c", text], capture_output=True, check=True).stdout
    said = out.decode().split("\0")[:-1]
    found = [
        text
        for words in words_of_script(script)
        if words[0].text == "run"
        for text in (str(len(words) - 1), *(word.text for word in words[1:]))
    ]
    assert found == said


def only(script: str) -> list[Word]:
    (words,) = words_of_script(script)
    return words


def test_words_know_their_place() -> None:
    words = only("A=1\n  run 'x' \\\n   -m ${A}G")
    assert [(word.text, word.line, word.column) for word in words] == [
        ("run", 2, 3), ("x", 2, 7), ("-m", 3, 4), ("1G", 3, 7),
    ]  # fmt: skip
    assert [word.is_plain for word in words] == [True, False, True, False]


@pytest.mark.parametrize(
    ("script", "unknown"),
    [
        ("run $A", ("$A",)),
        ("run a$A,b=$(nproc)", ("$A", "$(nproc)")),
        ("test -f x && A=1; run $A", ("$A",)),
        ("if x; then A=1; else A=2; fi; run $A", ("$A",)),
        ('A="$1"; run x=$A', ("$1",)),
        ("run `id -u`", ("`id -u`",)),
        ("for A in 1 2; do B=$A; done; run $B", ("$B",)),
    ],
)
def test_what_only_a_shell_could_know_is_unknown(script: str, unknown: tuple[str, ...]) -> None:
    words = list(words_of_script(script))[-1]
    assert words[-1].unknown == unknown


def test_expansion_has_an_end() -> None:
    bomb = "A=xxxxxxxxxx\n" + "A=$A$A\n" * 40 + "run $A"
    with pytest.raises(SpecError, match="expand to over"):
        list(words_of_script(bomb))
    with pytest.raises(SpecError, match="characters"):
        list(words_of_script("x" * (LONGEST_TEXT + 1)))


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([*"aA=-$ \n'\"\\;&|()<>{}`#[]@+:/", "$A", "A=(", "<<E\n", "fi"]), max_size=40)
)
def test_any_text_gives_words_with_places(pieces: list[str]) -> None:
    text = "".join(pieces)
    lines = text.split("\n")
    for words in words_of_script(text):
        for word in words:
            assert 1 <= word.line <= len(lines)
            assert 1 <= word.column <= len(lines[word.line - 1]) + 1
            if word.is_plain:
                assert lines[word.line - 1][word.column - 1 :].startswith(word.text)
