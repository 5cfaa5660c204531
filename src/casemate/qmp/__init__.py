"""QEMU's machine protocol, so that programs made for QEMU can drive a guest (QEMU docs/interop/qmp-spec)."""
