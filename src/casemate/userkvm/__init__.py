"""KVM's interface for other monitors, on the modelled host, in their own process (docs/design/user-space-kvm.md)."""
