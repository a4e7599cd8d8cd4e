"""Encoders and decoders, one file a published family."""

from geo3d.models import croco, spark, sparse_resnet, swin3d  # register their models
from geo3d.models.registry import create_model, list_models

__all__ = ["create_model", "croco", "list_models", "spark", "sparse_resnet", "swin3d"]
