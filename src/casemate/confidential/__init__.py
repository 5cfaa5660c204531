"""Launches of confidential guests: what is asked for, the plan, its execution between the machine's stages."""
