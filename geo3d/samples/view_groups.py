"""ViewGroups: the sample source of methods that read two or more views of one scene."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from geo3d.samples.pairs import ViewPairs


class ViewGroups(ViewPairs):
    """Groups of views that see each other, grown around view pairs; an item is the pair that a group begins with.

    Nothing but the pairs is mined or stored: two views see each other where they are a pair, and a group is a connected
    part of the graph whose edges are the pairs of its scene. All that :class:`ViewPairs` can be made from, this can.
    """

    kind = "view groups"

    @cached_property
    def _by_scene(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the pairs, sorted by scene, and where each scene's begin (S + 1)."""
        order = np.argsort(self.items.scene, kind="stable")
        return order, np.searchsorted(self.items.scene[order], np.arange(len(self.scenes) + 1))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_by_scene"}

    def edges(self, index: int) -> np.ndarray:
        """(E, 2) the pairs of the scene of an item, as view numbers."""
        order, start = self._by_scene
        scene = int(self.items.scene[self.row(index)])
        rows = order[start[scene] : start[scene + 1]]
        return np.stack([self.items.first[rows], self.items.second[rows]], 1)

    def group_of_views(self, index: int, count: int, rng: np.random.Generator) -> list[int]:
        """Views of a group that is drawn around an item.

        It begins with the item's pair, in random order. Each further view is drawn among those that are a pair with
        one of the group, the more likely the more pairs it is in with the group.

        Args:
            index: of the item.
            count: views that are wanted, 2 or more.
            rng: draws them.

        Returns:
            Numbers of the views in their scene; fewer than ``count`` where no more are connected.
        """
        chosen = list(self.views(index))
        if rng.random() < 0.5:
            chosen.reverse()
        edges = self.edges(index)
        while len(chosen) < count:
            inside = np.isin(edges, chosen)
            touching = inside.any(1) & ~inside.all(1)
            neighbours = edges[touching][~inside[touching]]
            if not len(neighbours):
                break
            chosen.append(int(neighbours[int(rng.integers(len(neighbours)))]))
        return chosen

    def images_of(self, index: int, views: list[int]) -> list[Image.Image]:
        """Images of some views of the scene of an item, not yet decoded where the scene's reader is lazy.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        scene = self.opened(index)
        return [scene.image(view) for view in views]


__all__ = ["ViewGroups"]
