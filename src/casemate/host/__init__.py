"""What runs a guest: the protocols both hosts implement, KVM's in spirit (Linux Documentation/virt/kvm/api.rst)."""
