"""What recipes for one's own labels share: the network of ``init`` unless one is named, and few labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from geo3d.config import load_config
from geo3d.errors import InputError
from geo3d.methods.finetuning import TaskConfig, with_few_labels
from geo3d.models import family_of
from geo3d.recipes.init import encoder_of_file
from geo3d.recipes.pretrain import CONFIG
from geo3d.recipes.recipe import Recipe, RoomsRun

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(kw_only=True)
class TaskRun(RoomsRun):
    """A run that trains any encoder for a task."""

    method: TaskConfig

    def settled(self) -> TaskConfig:
        """The method with the network chosen: the one that is named, or that of the run which goes on, or of ``init``.

        Raises:
            InputError: `init` cannot be read, or holds what the task cannot do with.
        """
        method = self.method
        if method.settled:
            return method.settle()
        if self.out is not None and any((self.out / "checkpoints").glob("step_*")) and (self.out / CONFIG).is_file():
            stored = load_config(type(self), self.out / CONFIG).method
            return replace(method, model=stored.model, model_options=stored.model_options).settle()
        if self.init is None:
            return method.settle()
        model, options = encoder_of_file(self.init)
        family = family_of(model)
        if family.kind not in method.headed:
            raise InputError(
                f"init: {self.init} holds a model of the family {family.name!r}, which reads {family.kind}; "
                f"{method.task} takes those that read {' or '.join(method.headed)}"
            )
        return method.settle(model, options)

    def resolved(self) -> Self:
        """As :meth:`Run.resolved`, with the network chosen."""
        return replace(super().resolved(), method=self.settled())


class FewLabels(Recipe):
    """A recipe that learns from few labels where it is told to."""

    def learnt_from(self, train: Any) -> Any:
        """Some of the training items, drawn by the run's seed, of all classes alike where items have one."""
        return with_few_labels(train, self.config.method.labels, self.seed, self.item_classes(train))

    def item_classes(self, source: Any) -> np.ndarray | None:
        """(N,) class of each item of a source, where an item has one."""
        return None


__all__ = ["FewLabels", "TaskRun"]
