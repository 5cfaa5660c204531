"""Modelled SEV and SEV-ES: secure processor, save areas, GHCB (AMD 55766, 56421)."""
