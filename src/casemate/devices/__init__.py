"""Devices of the PC platform that firmware needs."""
