"""The authors' file layouts, read safely."""

from geo3d.checkpoints.loading import load_exactly, read_weight_file, save_model

__all__ = ["load_exactly", "read_weight_file", "save_model"]
