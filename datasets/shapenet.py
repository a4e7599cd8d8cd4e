"""ShapeNet-55: 52,470 objects of 55 categories, 8,192 points each.

Layout::

    <root>/ShapeNet-55/train.txt, test.txt        lists of the files; where there are none, all files are used
           shapenet_pc/<taxonomy>-<model>.npy     (8192, 3)
"""

from __future__ import annotations

from pathlib import Path

from geo3d.datasets.files import list_line, looked_at, numeric_order, read_text
from geo3d.datasets.objects import ObjectFile
from geo3d.datasets.plain_text import split_lines
from geo3d.datasets.scene import SceneDataset

_CLOUDS, _LISTS = "shapenet_pc", "ShapeNet-55"
#: Number of each of the 55 taxonomies and what it is called.
TAXONOMY = {
    "02691156": "airplane", "02747177": "trash bin", "02773838": "bag", "02801938": "basket", "02808440": "bathtub",
    "02818832": "bed", "02828884": "bench", "02843684": "birdhouse", "02871439": "bookshelf", "02876657": "bottle",
    "02880940": "bowl", "02924116": "bus", "02933112": "cabinet", "02942699": "camera", "02946921": "can",
    "02954340": "cap", "02958343": "car", "02992529": "cellphone", "03001627": "chair", "03046257": "clock",
    "03085013": "keyboard", "03207941": "dishwasher", "03211117": "display", "03261776": "earphone",
    "03325088": "faucet", "03337140": "file cabinet", "03467517": "guitar", "03513137": "helmet", "03593526": "jar",
    "03624134": "knife", "03636649": "lamp", "03642806": "laptop", "03691459": "loudspeaker", "03710193": "mailbox",
    "03759954": "microphone", "03761084": "microwave", "03790512": "motorbike", "03797390": "mug", "03928116": "piano",
    "03938244": "pillow", "03948459": "pistol", "03991062": "pot", "04004475": "printer", "04074963": "remote",
    "04090263": "rifle", "04099429": "rocket", "04225987": "skateboard", "04256520": "sofa", "04330267": "stove",
    "04379243": "table", "04401088": "telephone", "04460130": "tower", "04468005": "train", "04530566": "vessel",
    "04554684": "washer",
}  # fmt: skip


class ShapeNet55(SceneDataset):
    """ShapeNet-55, as the point clouds that Point-BERT published; y is up, and coordinates are as stored."""

    kind = "shapenet55"
    folder_scenes = False

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / _CLOUDS).is_dir()

    def names(self) -> list[str]:
        listed = {subset: self._listed(subset) for subset in ("train", "test")}
        if any(listed.values()):
            self._subsets = {name: subset for subset, names in listed.items() for name in names}
        else:
            files = sorted(
                (e.name for e in looked_at(self.root / _CLOUDS) if e.name.endswith(".npy")), key=numeric_order
            )
            self._subsets = dict.fromkeys((file.removesuffix(".npy") for file in files), "")
        self._taxonomies = sorted({name.partition("-")[0] for name in self._subsets} | TAXONOMY.keys())
        self.categories = tuple(TAXONOMY.get(number, number) for number in self._taxonomies)
        self._category = {number: row for row, number in enumerate(self._taxonomies)}
        return list(self._subsets)

    def _listed(self, subset: str) -> list[str]:
        """Names of the objects that a list holds; none where there is no list."""
        path = self.root / _LISTS / f"{subset}.txt"
        if not path.is_file():
            return []
        lines = (list_line(line) for line in split_lines(read_text(path, subset)))
        return [line.removesuffix(".npy") for line in lines if line]

    def open(self, name: str) -> ObjectFile:
        category = self._category[name.partition("-")[0]]
        return ObjectFile(name, self.root / _CLOUDS / f"{name}.npy", category, self._subsets[name])
