"""Guests as QEMU's command line and libvirt's domain XML ask for them (QEMU docs/system/invocation)."""
