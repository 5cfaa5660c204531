"""KVM's numbers, in its own words (Linux include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h)."""
