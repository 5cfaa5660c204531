"""A KVM host in software: memory slots over real host mappings, the Unicorn engine as its CPU."""
