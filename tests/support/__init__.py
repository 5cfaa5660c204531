"""What tests of more than one folder use: an assembler for guests, rigs to run them in, launches, real firmware."""
