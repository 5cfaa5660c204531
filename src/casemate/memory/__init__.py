"""Guest memory: regions, the flat view of them, slots, and the write protection of flash (QEMU docs/devel/memory.rst)."""
