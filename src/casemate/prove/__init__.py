"""Attacks on protected memory by tiny guests, run on the hosts that are here, to see whether protection holds."""
