"""What recipes on view pairs share: pairs are mined once, into an index in the run's folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geo3d.datasets.pair_mining import PairOptions, PairsConfig, mine_pairs
from geo3d.progress import Log, progress_line
from geo3d.recipes.recipe import Recipe, RoomsRun
from geo3d.samples.pairs import ViewPairs

_PAIRS = "pairs.tsv"


@dataclass(kw_only=True)
class PairsRun(RoomsRun):
    """A run on view pairs."""

    pairs: Path | None = None
    """Index of view pairs, as `geo3d prepare pairs` writes it. None: pairs are mined from the data at the start."""

    mining: PairOptions = field(default_factory=PairOptions)
    """Which pairs, where they are mined."""

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        self.mining.check()


def near_pairs() -> PairOptions:
    """Pairs of views near each other, for what is to learn in minutes."""
    return PairOptions(min_overlap=0.6)


class PairsRecipe(Recipe):
    """A recipe whose samples are view pairs; ``method_class.source`` is a kind of :class:`ViewPairs`."""

    run = PairsRun
    items = "pairs"

    @classmethod
    def prepare(cls, config: PairsRun, folder: Path, log: Log, fresh: bool) -> None:
        """Make synthetic rooms where no data is given, and mine pairs where no index is."""
        if config.pairs is not None:
            return
        roots = config.data or (cls.make_data(config, log),)
        if fresh:
            mined = PairsConfig(data=roots, out=folder / _PAIRS, strict=config.strict, **asdict(config.mining))
            log(str(mine_pairs(mined, progress_line("scene"))))

    def find_source(self) -> ViewPairs:
        """The pairs of the index."""
        source: Any = self.method_class.source
        return source.from_index(self.config.pairs or self.folder / _PAIRS)


__all__ = ["PairsRecipe", "PairsRun", "near_pairs"]
