"""The machine's own KVM by ioctl (Linux Documentation/virt/kvm/api.rst)."""
