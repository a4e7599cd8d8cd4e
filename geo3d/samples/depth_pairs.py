"""DepthPairs: view pairs whose surface is known in both views, for methods that learn geometry."""

from __future__ import annotations

from geo3d.samples.pairs import ViewPairs


class DepthPairs(ViewPairs):
    """View pairs of scenes whose views have poses and depth; pairs of other scenes are left out.

    Args:
        datasets, scenes, items, both_orders: as :class:`ViewPairs` takes them.

    Raises:
        InputError: no pair.
    """

    kind = "view pairs with depth"
    holds = "posed views with depth"
    needs = ("views", "poses", "depth")
    one_of = ()

    def is_metric(self, index: int) -> bool:
        """Whether the lengths of a pair's scene are metres."""
        return self.opened(index).metric


__all__ = ["DepthPairs"]
