"""Launch digests predicted from files; pure."""
