"""Guest memory: regions, their flat view, slots, and the protection of flash (QEMU docs/devel/memory.rst)."""
