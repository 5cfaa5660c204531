"""Tiny guests, a few bytes of machine code each, that probe and prove."""
