"""PCI configuration space, host bridges and ISA bridges (PCI Local Bus Specification 3.0)."""
