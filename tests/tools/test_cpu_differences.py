"""The differential check of the processor: a short pass of it, and what it would notice (docs/design/cpu.md)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.cpu_differences.hosts import HOSTS, Host, on_model
from tools.cpu_differences.monitor import Batch, Result
from tools.cpu_differences.report import Report, available, run
from tools.cpu_differences.streams import Stream, decoded, make_streams, mnemonic_name

ROOT = Path(__file__).parents[2]
SEED, STREAMS = 1, 200


def report_of(hosts: Mapping[str, Host], count: int = STREAMS) -> Report:
    """Of the first streams."""
    report = Report(SEED, hosts, {})
    for _ in run(report, 0, count):
        pass
    return report


def test_random_instructions_differ_from_other_processors_in_known_ways_alone() -> None:
    hosts, missing = available(HOSTS)
    if len(hosts) < 2:
        pytest.skip(f"there is nothing to compare with: {missing}")
    report = report_of(hosts)
    assert report.new == [], report.text()
    assert report.streams == STREAMS
    assert report.instructions > 5 * STREAMS


def test_streams_depend_on_seed_and_number_alone() -> None:
    assert list(make_streams(SEED, 7, 1)) == list(make_streams(SEED, 0, 8))[7:]
    assert list(make_streams(SEED, 0, 1)) != list(make_streams(SEED + 1, 0, 1))


def test_streams_are_valid_and_of_many_instructions() -> None:
    seen = set()
    for stream in make_streams(SEED, 0, 1000):
        for code in stream.code:
            instruction = decoded(stream.bits, code)
            assert not instruction.is_invalid
            assert instruction.len == len(code)
            seen.add(mnemonic_name(instruction.mnemonic))
    assert len(seen) > 400


def test_a_wrong_result_is_laid_to_the_first_instruction_that_makes_it() -> None:
    def wrong_by_imul(batch: Batch) -> list[Result]:
        results = zip(batch.streams, on_model(batch), strict=True)
        return [
            spoiled(result) if result.at_end and has_imul(stream) else result for stream, result in results
        ]

    report = report_of({"model": wrong_by_imul, "kvm": on_model}, 400)
    assert {(difference.mnemonic, difference.kind) for difference in report.new} == {("imul", "memory")}
    assert not report.known
    first = report.document()["new"][0]
    assert first["groups"] == [["model"], ["kvm"]]
    assert "imul" in first["instruction"]


def has_imul(stream: Stream) -> bool:
    """Whether it is among its instructions."""
    return any(mnemonic_name(decoded(stream.bits, code).mnemonic) == "imul" for code in stream.code)


def spoiled(result: Result) -> Result:
    """The same with another byte in memory."""
    return result._replace(memory=bytes((result.memory[0] ^ 1,)) + result.memory[1:])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--hosts", "model", "--streams", "1"], 5, "one host cannot be compared"),
        (["--hosts", "model,vax"], 2, "there is no host 'vax'"),
        (["--streams", "-1"], 2, "-1 is less than 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    arguments: list[str], code: int, words: str
) -> None:
    line = [sys.executable, "-m", "tools.cpu_differences", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code
    assert words in done.stderr
