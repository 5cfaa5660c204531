"""The firmware configuration device of QEMU (QEMU docs/specs/fw_cfg.rst)."""
