"""Encoders and decoders, one file a published family."""

from geo3d.models import (
    classifier,
    croco,
    croco_downstream,
    dust3r,
    i2p_mae,
    multiview,
    nerf_mae,
    nerf_mae_downstream,
    segmenter,
    spark,
    sparse_resnet,
    swin3d,
)
from geo3d.models.encoder import Encoder, StageInfo
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.registry import (
    ModelInfo,
    create_encoder,
    create_model,
    encoder_of,
    family_of,
    first_model,
    list_models,
    model_info,
    model_options,
    register_family,
)

register_family(croco.FAMILY)
register_family(multiview.FAMILY)
register_family(croco_downstream.FAMILY)
register_family(dust3r.FAMILY)
register_family(dust3r.MAST3R_FAMILY)
register_family(swin3d.FAMILY)
register_family(spark.FAMILY)
register_family(spark.RESNET_FAMILY)
register_family(spark.CONVNEXT_FAMILY)
register_family(sparse_resnet.FAMILY)
register_family(i2p_mae.FAMILY)
register_family(i2p_mae.CLASSIFIER_FAMILY)
register_family(nerf_mae.FAMILY)
register_family(nerf_mae_downstream.FPN_FAMILY)
register_family(nerf_mae_downstream.DETECTOR_FAMILY)
register_family(nerf_mae_downstream.SEMANTIC_FAMILY)
register_family(segmenter.VOXEL_FAMILY)
register_family(segmenter.POINT_FAMILY)
register_family(classifier.VOXEL_FAMILY)
register_family(classifier.CLOUD_FAMILY)
register_family(classifier.IMAGE_FAMILY)

__all__ = [
    "Encoder",
    "Family",
    "ModelInfo",
    "ReleasedFile",
    "StageInfo",
    "classifier",
    "create_encoder",
    "create_model",
    "croco",
    "croco_downstream",
    "dust3r",
    "encoder_of",
    "family_of",
    "first_model",
    "i2p_mae",
    "list_models",
    "model_info",
    "model_options",
    "multiview",
    "nerf_mae",
    "nerf_mae_downstream",
    "register_family",
    "segmenter",
    "spark",
    "sparse_resnet",
    "swin3d",
]
