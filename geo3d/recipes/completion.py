"""What recipes share whose networks fill in masked views: what the true other views are worth beside others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from geo3d.errors import InputError
from geo3d.recipes.pairs import PairsRecipe
from geo3d.samples.pairs import ViewPairs
from geo3d.samples.readable import Readable

#: Items of other scenes that are tried for views to put in the place of the true ones.
_TRIES = 100


class CompletionRecipe(PairsRecipe):
    """A recipe on view pairs, or on groups made of them, whose method fills in masked views."""

    loss_name = "masked loss"

    def prepare_measuring(self, source: ViewPairs, measured: ViewPairs) -> None:
        """Measure held-out items, and the same with views of any other scene."""
        super().prepare_measuring(source, measured)
        self._all = self.method.samples(source)
        self.several_scenes = source.group_count > 1
        self._others = Readable(
            self.config.strict, self.log, "another scene's view takes the place of one that cannot be read"
        )

    def of_another_scene(
        self,
        item: int,
        scene: int,
        rng: np.random.Generator,
        draw: Callable[[Any, int, np.random.Generator], dict[str, Any]],
    ) -> dict[str, Any]:
        """A sample of another scene than that of a measured item.

        Of those that cannot be read the next one of another scene is taken.

        Args:
            item: number of the measured item, for messages.
            scene: its group.
            rng: draws which sample, and the sample.
            draw: draws a sample of the samples of all scenes.

        Raises:
            InputError: none can be read.
        """
        elsewhere = np.flatnonzero(self._all.source.items.group != scene)
        first = int(rng.choice(len(elsewhere)))
        for other in elsewhere.take(range(first, first + min(_TRIES, len(elsewhere))), mode="wrap").tolist():
            describe = partial(self._all.describe, other)
            found = self._others.read(other, partial(draw, self._all, other, rng), describe)
            if found is not None:
                return found
        raise InputError(f"{self.measured.describe(item)}: no view of another scene can be read beside it")

    def comparison(self, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        """By how much the loss has changed."""
        return {"change_percent": 100 * (after["loss"] / before["loss"] - 1)}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Loss before and after, with the change."""
        return f"{super().text(before, after)} ({self.comparison(before, after)['change_percent']:+.1f} %)"


__all__ = ["CompletionRecipe"]
