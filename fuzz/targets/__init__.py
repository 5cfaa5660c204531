"""What is fuzzed: one module for each target, with its ``TARGET`` (docs/design/fuzzing.md)."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(_TESTS), *(str(_TESTS / name) for name in ("host", "advise", "linux"))]
