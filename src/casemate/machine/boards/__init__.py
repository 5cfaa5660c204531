"""Boards as tables of addresses."""
