"""What sources of labelled scenes share: all scenes are labelled with the same classes."""

from __future__ import annotations

from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.samples.source import SampleSource, folders


def common_classes(source: SampleSource) -> tuple[str, ...]:
    """Names of the classes of a source's scenes, in the order of the labels.

    Raises:
        InputError: datasets that do not name their classes, or are labelled with different ones.
    """
    used = [source.datasets[number] for number in sorted({number for number, _ in source.scenes})]
    for dataset in used:
        if not dataset.classes:
            raise InputError(
                f"{dataset.root}: its scenes are labelled, but {type(dataset).__name__} does not name the classes; "
                "set its attribute classes, as docs/datasets.md says"
            )
    named = {tuple(dataset.classes) for dataset in used}
    if len(named) > 1:
        raise InputError(f"{folders(used)}: labelled with different classes; give datasets of the same classes")
    return named.pop()


def require_labels(labels: Tensor, classes: tuple[str, ...], scene: Scene) -> None:
    """Raise InputError unless a scene's labels, of any shape, are those of classes, or -1."""
    if not -1 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(f"scene {scene.name} ({scene.root}) has labels outside -1 to {len(classes) - 1}")
