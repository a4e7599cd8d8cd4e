"""Frozen image networks that guide the pre-training of point encoders: features and saliency of views."""

from geo3d.models.teachers.clip import ClipTeacher
from geo3d.models.teachers.efficientnet_lite import EfficientNetLite0Teacher
from geo3d.models.teachers.hog import HogTeacher
from geo3d.models.teachers.own import OwnTeacher
from geo3d.models.teachers.registry import create_teacher, get_teacher, list_teachers, register_teacher
from geo3d.models.teachers.store import StoredTargets, TargetStore, content_key
from geo3d.models.teachers.teacher import Teacher, TeacherOptions, TeacherOutput
from geo3d.models.teachers.timm_teacher import TimmTeacher

for _kind in (HogTeacher, EfficientNetLite0Teacher, ClipTeacher, OwnTeacher, TimmTeacher):
    register_teacher(_kind.name, _kind)

__all__ = [
    "StoredTargets",
    "TargetStore",
    "Teacher",
    "TeacherOptions",
    "TeacherOutput",
    "content_key",
    "create_teacher",
    "get_teacher",
    "list_teachers",
    "register_teacher",
]
