"""Damaged images never raise and never take long; ``fuzz_inspect.py`` tries as many as one likes."""

from __future__ import annotations

import pytest
from fuzz_inspect import images, inspect_all


@pytest.mark.parametrize(("count", "real"), [(150, 0.0), (5, 1.0)])
def test_damaged_image_is_inspected_within_a_second(count: int, real: float) -> None:
    assert max(inspect_all(data) for data in images(count, seed=7, real=real)) < 1.0
