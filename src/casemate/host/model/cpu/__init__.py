"""The modelled CPU: the Unicorn engine and what it leaves to its user."""
