"""Serial ports (National Semiconductor PC16550D data sheet)."""
