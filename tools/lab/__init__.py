"""A real kvm_amd without such hardware: Linux in an emulated AMD processor (docs/design/lab.md)."""
