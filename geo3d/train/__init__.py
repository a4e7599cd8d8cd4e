"""The training loop: optimizer, schedule, precision, several processes, exact resume, logging."""

from geo3d.train.config import TrainConfig
from geo3d.train.result import RunResult
from geo3d.train.trainer import Trainer, TrainingDiverged

__all__ = ["RunResult", "TrainConfig", "Trainer", "TrainingDiverged"]
