"""Settings of all tests; lying here it also lets them import ``firmware_images`` (pytest, conftest.py)."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("casemate", derandomize=True, deadline=None)
settings.load_profile("casemate")
