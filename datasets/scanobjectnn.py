"""ScanObjectNN: 2,902 objects of 15 categories, cut out of real scans.

Layout::

    main_split/training_objectdataset.h5, test_objectdataset.h5          data (N, 2048, 3), label (N,); y is up
               training_objectdataset_augmentedrot_scale75.h5, ...       the hardest variant (PB_T50_RS)
    main_split_nobg/                                                     the same without what lies behind the objects
"""

from __future__ import annotations

from pathlib import Path

from geo3d.datasets.hdf5_rows import HDF5Rows

#: In the order of the labels.
SCANOBJECTNN_CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)  # fmt: skip


class ScanObjectNN(HDF5Rows):
    """ScanObjectNN's objects as they were cut out."""

    kind = "scanobjectnn"
    categories = SCANOBJECTNN_CLASSES
    _variant = ""

    @classmethod
    def _files(cls, root: Path) -> list[Path]:
        names = (f"{subset}_objectdataset{cls._variant}.h5" for subset in ("training", "test"))
        return [root / name for name in names if (root / name).is_file()]

    @classmethod
    def detect(cls, root: Path) -> bool:
        return bool(cls._files(root))

    def files(self) -> list[Path]:
        return self._files(self.root)


class ScanObjectNNHardest(ScanObjectNN):
    """ScanObjectNN's hardest variant: moved, turned, scaled and cut off. Asked for by ``kind`` where both are there."""

    kind = "scanobjectnn_hardest"
    _variant = "_augmentedrot_scale75"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return bool(cls._files(root)) and not ScanObjectNN.detect(root)
