"""One question of many combinations of firmware, guest kind and kernel (docs/design/matrix.md)."""
