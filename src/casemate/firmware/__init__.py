"""Firmware files as data: images, volumes, tables, variable stores; pure."""
