"""Synthetic rooms and objects: procedural, textured and lit, written as ScanNet and MVImgNet write theirs.

    >>> from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
    >>> write_synthetic(SyntheticConfig(out=Path("data/synthetic"), scenes=10, objects=12))

The readers of ScanNet and MVImgNet then read them. Needs the extra ``synthetic`` (embreex, for casting rays).
"""

from geo3d.datasets.synthetic.generate import SyntheticConfig, SyntheticSummary, write_synthetic

__all__ = ["SyntheticConfig", "SyntheticSummary", "write_synthetic"]
