"""The `geo3d` command."""
