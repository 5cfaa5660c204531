"""Timings of casemate beside other programs, in one run, as ratios (./dev bench)."""
