"""Firmware flash: an Intel NOR flash whose array is guest memory (JEDEC JESD68, QEMU pflash_cfi01.c)."""
