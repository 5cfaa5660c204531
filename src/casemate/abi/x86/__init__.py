"""The x86 architecture's registers and tables (Intel SDM, AMD APM)."""
