"""Every probe and task of every family at its small setting: `python tools/results.py` makes docs/results.md.

Each family is pre-trained for some minutes, with several seeds, on synthetic rooms or objects; every probe that reads
it compares the checkpoint with fresh weights of the same network, on other rooms and objects. What was done is kept in
a folder, and a command that is called again goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import hardware
from result_figures import Figure, verdict
from result_tasks import STARTS, Task, make_images, table, tasks_of
from result_tasks import train as finetune

from geo3d.cli import command_line
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least

#: Seeds of the rooms and objects that are pre-trained on, and of those that are probed.
_TRAINED_ON, _PROBED_ON = 0, 1000
#: Part of the folder for files of what is made.
_DATA = "data"


_LABELS = tuple(Figure(f"mIoU, {share} of labels", ("miou", n)) for n, share in enumerate(("1 %", "10 %", "100 %")))
_MATCH = (
    *(Figure(f"recall, {name} distance", ("recall", n)) for n, name in enumerate(("smallest", "middle", "largest"))),
    Figure("precision of mutual neighbours", ("precision", 1)),
)
#: Probe -> its figures; the first is the one that is compared seed by seed.
FIGURES: dict[str, tuple[Figure, ...]] = {
    "linear": (Figure("mean IoU", ("miou",)), Figure("accuracy", ("accuracy",))),
    "segment": _LABELS,
    "match": (_MATCH[1], _MATCH[0], *_MATCH[2:]),
    "depth": (
        Figure("RMSE, m", ("rmse",), percent=False, higher=False),
        Figure("absolute relative error", ("abs_rel",), percent=False, higher=False),
        Figure("delta < 1.25", ("delta1",)),
    ),
    "retrieve": (Figure("mAP", ("mean_average_precision",)), Figure("recall at 1", ("recall_at_1",))),
    "svm": (Figure("accuracy, stored", ("accuracy", "stored")), Figure("rotated", ("accuracy", "rotated"))),
    "robustness": (
        Figure("half cut away", ("accuracy", "half cut away")),
        Figure("hidden side cut away", ("accuracy", "hidden side cut away")),
        Figure("noise 3 %", ("accuracy", "noise 3 %")),
        Figure("outliers 10 %", ("accuracy", "outliers 10 %")),
        Figure("256 points", ("accuracy", "256 points")),
    ),
}


@dataclass(frozen=True)
class Family:
    """How a family is pre-trained and probed.

    Args:
        title: for people.
        recipe: of `geo3d pretrain`, at its first preset.
        steps: of the pre-training.
        data: what it reads: ``rooms``, ``objects`` or ``grids``.
        probes: name -> options beside those that all have.
    """

    title: str
    recipe: str
    steps: int
    data: str
    probes: dict[str, dict[str, Any]]


_VOXELS = {"linear": {}, "segment": {"most": 20_000}, "match": {"pairs": 8, "points": 1500}}
_IMAGES = {"linear": {}, "segment": {}, "depth": {}, "retrieve": {}, "match": {"pairs": 25}}
_OBJECTS = {
    "svm": {"per_class": 3, "resamplings": 1, "poses": ("stored", "rotated")},
    "robustness": {"per_class": 3, "counts": (256,), "noise": (0.03,), "outliers": (0.1,)},
    "retrieve": {},
}
FAMILIES = {
    "croco": Family("CroCo", "croco", 330, "rooms", _IMAGES),
    "spark": Family("SparK", "spark", 170, "rooms", {name: o | {"side": 96} for name, o in _IMAGES.items()}),
    "swin3d": Family("Swin3D, trained with labels", "swin3d", 260, "rooms", _VOXELS),
    "spark3d": Family("SparK in true 3D", "spark3d", 280, "rooms", _VOXELS),
    "i2p_mae": Family("I2P-MAE", "i2p_mae", 150, "objects", _OBJECTS),
    "nerf_mae": Family("NeRF-MAE", "nerf_mae", 130, "grids", {"linear": {}, "segment": {"most": 20_000}}),
}


@dataclass(frozen=True)
class Sizes:
    """How much is made and done.

    Args:
        trained_rooms, probed_rooms: synthetic rooms to pre-train on, and to probe on: half of these are learnt from.
        trained_objects, probed_objects: synthetic objects, likewise.
        views: of a room.
        grid: voxels along the longest side of radiance grids.
        steps: of the pre-training; None: as the family says.
    """

    trained_rooms: int = 24
    probed_rooms: int = 16
    trained_objects: int = 1500
    probed_objects: int = 522
    views: int = 20
    grid: int = 64
    steps: int | None = None


QUICK = Sizes(10, 10, 87, 174, views=4, grid=16, steps=2)
#: Options that make probes quick, too.
_QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {"voxels_per_scene": 100},
    "segment": {"most": 500},
    "match": {"pairs": 1},
    "svm": {"per_class": 1, "points": 64, "splits": 2, "objects": 87},
    "robustness": {"per_class": 1, "points": 64, "splits": 2},
    "retrieve": {"points": 64},
}


@dataclass(frozen=True)
class ResultsConfig:
    """Pre-train every family for minutes, probe it beside fresh weights, and write the tables."""

    out: Path = Path("docs") / "results.md"
    """Page to write; a JSON file of all figures goes beside it."""
    folder: Path = Path("runs") / "results"
    """Where data, runs and figures are kept; what is there already is not done again."""
    seeds: int = 3
    """Pre-trainings of each family (count), which differ in weights, order and masks; the data stay."""
    processes: int = 2
    """Processes of one thread side by side."""
    families: tuple[str, ...] = ()
    """Families to do, such as croco; none: all."""
    collect: bool = False
    """Do nothing more, and write the page of what is done: of each family the seeds that are whole."""
    quick: bool = False
    """A few steps on little data, in a folder of its own: to see that all works; the figures say nothing."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "seeds", "processes")
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown:
            raise InputError(f"families: there is no {unknown[0]!r}; known: {', '.join(FAMILIES)}")

    @property
    def sizes(self) -> Sizes:
        """How much is done."""
        return QUICK if self.quick else Sizes()

    @property
    def place(self) -> Path:
        """The folder, absolute; quick runs have one of their own."""
        return (self.folder / "quick" if self.quick else self.folder).absolute()

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the families."""
        return self.families or tuple(FAMILIES)


def data_folders(place: Path, kind: str, sizes: Sizes) -> tuple[Path, Path]:
    """Folders of what is pre-trained on and of what is probed, of a kind of data."""
    of = "objects" if kind in ("objects", "images") else "rooms"
    parts = f"trained_{of}", f"probed_{of}"
    counts = (getattr(sizes, part) for part in parts)
    name = f"grids_{sizes.grid}" if kind == "grids" else kind
    return tuple(
        place / _DATA / f"{name}_{count}_seed_{seed}" for count, seed in zip(counts, (_TRAINED_ON, _PROBED_ON))
    )


def make_data(place: Path, kind: str, part: int, sizes: Sizes) -> None:
    """Make what is pre-trained on (part 0) or probed (part 1), unless it is there; returns nothing."""
    folder, seed = data_folders(place, kind, sizes)[part], (_TRAINED_ON, _PROBED_ON)[part]
    done = folder / "done"
    if done.is_file():
        return
    if kind == "rooms":
        from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

        count = (sizes.trained_rooms, sizes.probed_rooms)[part]
        config = SyntheticConfig(folder, count, 0, views=sizes.views, seed=seed, workers=1)
        print(write_synthetic(config, lambda *_: None).report())
    elif kind == "grids":
        from geo3d.reconstruction.make_grids import GridsConfig, prepare_grids
        from geo3d.reconstruction.routes import get_route

        scans = data_folders(place, "rooms", sizes)[part] / "scannet"
        options = get_route("depth_fusion").config_type()(longest_side=sizes.grid)
        config = GridsConfig((scans,), folder, "depth_fusion", previews=False)
        print(prepare_grids(config, options, lambda _: None).report())
    elif kind == "images":
        make_images(dataset_root(data_folders(place, "objects", sizes)[part], "objects"), folder)
    else:
        from geo3d.datasets.synthetic.objects import make_objects

        here = Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)  # under which they are made
        try:
            make_objects((sizes.trained_objects, sizes.probed_objects)[part], seed, print)
        finally:
            os.chdir(here)
    done.touch()


def dataset_root(folder: Path, kind: str) -> Path:
    """The root of the dataset in a folder of data."""
    if kind == "rooms":
        return folder / "scannet"
    if kind in ("grids", "images"):
        return folder
    from geo3d.datasets.synthetic.objects import objects_folder

    count, seed = folder.name.removeprefix("objects_").split("_seed_")
    return folder / objects_folder(int(count), int(seed))


def run_folder(place: Path, family: str, seed: int) -> Path:
    """Where the pre-training and the figures of a family and seed are."""
    return place / f"{family}-seed-{seed}"


def do_family(place: Path, name: str, seed: int, quick: bool) -> None:
    """Pre-train a family with a seed, and run its probes; what is done already is kept."""
    family, sizes = FAMILIES[name], QUICK if quick else Sizes()
    folder = run_folder(place, name, seed)
    trained, probed = (dataset_root(path, family.data) for path in data_folders(place, family.data, sizes))
    steps = sizes.steps or family.steps
    trained_as = {"steps": steps, "sizes": asdict(sizes)}
    _once(folder / "pretrain.done.json", trained_as, lambda: _pretrain(family, folder, trained, seed, steps))
    for probe, options in family.probes.items():
        options = options | (_QUICK_OPTIONS.get(probe, {}) if quick else {})
        asked = {"options": {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}, **trained_as}
        do = partial(_probe, probe, options, folder, probed, seed)
        _once(folder / f"{probe}.done.json", asked, do)
    for task in tasks_of(name):
        root = dataset_root(data_folders(place, task.data, sizes)[1], task.data) if task.data else None
        asked = {"task": json.loads(json.dumps(asdict(task))), **trained_as}
        for start in STARTS.values():
            do = partial(finetune, task, start, folder, root, seed, quick)
            _once(note_of(folder, task, start), asked, do)


def note_of(folder: Path, task: Task, start: str) -> Path:
    """The file that tells that a family was fine-tuned for a task from a start, and what came of it."""
    return folder / f"{task.name}-{start}.done.json"


def _once(note: Path, asked: dict[str, Any], do: Callable[[], Any]) -> None:
    """Do something unless a note says that it was done as it is asked for now; note how long it took."""
    if note.is_file() and json.loads(note.read_text())["asked"] == asked:
        return
    cpu, wall = time.process_time(), time.perf_counter()
    result = do()
    taken = {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.perf_counter() - wall, 1)}
    note.write_text(json.dumps({"asked": asked, **taken, "result": result}, indent=1) + "\n")
    print(
        f"{note.parent.name} {note.name.removesuffix('.done.json')}: {taken['cpu_seconds']:.0f} s of a core", flush=True
    )


def _pretrain(family: Family, folder: Path, data: Path, seed: int, steps: int) -> dict[str, Any]:
    from geo3d.recipes import get_recipe, pretrain

    run = get_recipe(family.recipe).preset(next(iter(get_recipe(family.recipe).presets)))
    run.data, run.out, run.held_out = (data,), folder / "run", 0.0
    if family.data == "objects":
        run.held_out = 0.02  # an SVM tells them apart before and after: of all it takes longer than training
    run.train.steps, run.train.seed, run.train.workers, run.train.accelerator = steps, seed, 0, "cpu"
    if run.out.is_dir() and any(path.name.endswith(".done.json") for path in folder.iterdir()):
        shutil.rmtree(run.out)  # of another number of steps
    result, figures = pretrain(family.recipe, run, log=lambda line: None)
    return {"checkpoint": str(result.checkpoint), "report": figures}


def _probe(probe: str, options: Mapping[str, Any], folder: Path, data: Path, seed: int) -> dict[str, Any]:
    from geo3d.probe import get_probe, run_probe

    settings = get_probe(probe).settings
    common = {"checkpoint": folder / "run", "seed": seed, "out": folder / f"{probe}.json", "data": (data,)}
    if "held_out" in settings.__dataclass_fields__ and probe not in ("match", "retrieve"):
        common["held_out"] = 0.5
    elif "test_data" in settings.__dataclass_fields__ and "rooms" in str(data):
        common |= {"data": (), "test_data": (data,)}  # nothing is learnt: all of them are measured on
    scores = run_probe(probe, settings(**common | dict(options)), log=lambda line: None)
    return {name: score.as_dict() for name, score in scores.items()}


def do_all(config: ResultsConfig) -> float:
    """Make the data, pre-train and probe, in processes side by side; returns the seconds that it took."""
    start, place = time.perf_counter(), config.place
    tasks = [task for name in config.wanted for task in tasks_of(name)]
    kinds = {FAMILIES[name].data for name in config.wanted} | {task.data for task in tasks}
    rooms, objects = bool(kinds & {"rooms", "grids"}), bool(kinds & {"objects", "images"})
    first = [["data", "rooms", str(part)] for part in (0, 1) if rooms]
    first += [["data", "objects", str(part)] for part in (0, 1) if objects]
    second = [["data", "grids", str(part)] for part in (0, 1)] if "grids" in kinds else []
    second += [["data", "images", "1"]] if "images" in kinds else []
    third = [["family", name, str(seed)] for seed in range(config.seeds) for name in config.wanted]
    place.mkdir(parents=True, exist_ok=True)
    for jobs in (first, second, third):
        with ThreadPoolExecutor(config.processes) as pool:
            for failed in pool.map(lambda job: _call(config, job), jobs):
                if failed:
                    raise InputError(failed)
    return time.perf_counter() - start


def _call(config: ResultsConfig, job: Sequence[str]) -> str:
    """Do a job in a process of one thread; returns what went wrong, if anything did."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GOMP_SPINCOUNT": "2000"}
    command = [sys.executable, __file__, *job, str(config.place), "quick" if config.quick else "whole"]
    log = config.place / f"{'-'.join(job)}.log"
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True, check=False)
    print(done.stdout, end="", flush=True)
    return "" if done.returncode == 0 else f"{' '.join(job)} failed, {log}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    return ([""] + [line for line in log.read_text().splitlines() if line.strip()])[-1]


def collected(config: ResultsConfig) -> dict[str, Any]:
    """All figures and times, as they go into the JSON: family -> seed -> probe.

    Raises:
        InputError: nothing is done yet.
    """
    found: dict[str, Any] = {}
    for name in config.wanted:
        done = ("pretrain", *FAMILIES[name].probes)
        for seed in range(config.seeds):
            folder = run_folder(config.place, name, seed)
            if config.collect and not all((folder / f"{part}.done.json").is_file() for part in done):
                continue
            notes = {part: json.loads((folder / f"{part}.done.json").read_text()) for part in done}
            trained = notes.pop("pretrain")
            found.setdefault(name, {})[str(seed)] = {
                "pretrain": {key: trained[key] for key in ("cpu_seconds", "seconds")} | trained["asked"],
                "probes": {p: {key: n[key] for key in ("cpu_seconds", "asked", "result")} for p, n in notes.items()},
                "tasks": _tasks_done(folder, name),
            }
    if not found:
        raise InputError(f"{config.place}: no family is done yet; leave out --collect")
    return found


def _tasks_done(folder: Path, family: str) -> dict[str, Any]:
    """Task -> start -> time and report, of the tasks that a family was fine-tuned for from all starts."""
    found = {}
    for task in tasks_of(family):
        notes = {row: note_of(folder, task, start) for row, start in STARTS.items()}
        if all(note.is_file() for note in notes.values()):
            read = {row: json.loads(note.read_text()) for row, note in notes.items()}
            for note in read.values():  # of the run that was started from, which lies elsewhere on other machines
                note["result"].pop("initial_weights", None)
            found[task.name] = {r: {key: n[key] for key in ("cpu_seconds", "asked", "result")} for r, n in read.items()}
    return found


def representation(name: str) -> str:
    """The row of a table that figures of a probe go into."""
    if name.startswith("fresh weights"):
        return "fresh weights"
    return "pre-trained" if name == "checkpoint" else name


def gathered(seeds: Mapping[str, Any], probe: str, figure: Figure) -> dict[str, list[float]]:
    """Row -> the figure of each seed."""
    rows: dict[str, list[float]] = {}
    for found in seeds.values():
        for name, figures in found["probes"][probe]["result"].items():
            rows.setdefault(representation(name), []).append(figure.value(figures))
    return rows


def page(found: Mapping[str, Any], config: ResultsConfig, seconds: float) -> str:
    """The page, in markdown."""
    every = [seed for family in found.values() for seed in family.values()]
    spent = sum(s["pretrain"]["cpu_seconds"] + sum(p["cpu_seconds"] for p in s["probes"].values()) for s in every)
    tuned = (start for seed in every for task in seed.get("tasks", {}).values() for start in task.values())
    spent += sum(start["cpu_seconds"] for start in tuned)
    tasks = table(found, {name: family.title for name, family in FAMILIES.items()})
    return "\n".join([*_beginning(config, seconds, spent), *_gains(found), *tasks, *_tables(found)]) + "\n"


def _beginning(config: ResultsConfig, seconds: float, spent: float) -> list[str]:
    """What was done, on what, and how it is to be read."""
    sizes = config.sizes
    quick = " `--quick`, whose figures say nothing" if config.quick else ""
    return [
        "# Results",
        "",
        f"Made by `python tools/results.py`{quick}; `{config.out.with_suffix('.json').name}` beside this page has all "
        "figures.",
        "",
        f"{hardware()}; {config.processes} processes of one thread; {spent / 60:.0f} minutes of a core for all that is "
        f"below{f', {seconds / 60:.0f} minutes in the last call' if seconds > 60 else ''}.",
        "",
        "What frozen features tell after minutes of pre-training at each family's small setting, beside fresh weights",
        f"of the same network and what both are handed. Pre-trained on {sizes.trained_rooms} synthetic rooms, on grids",
        f"of them, or on {sizes.trained_objects} synthetic objects; probed on {sizes.probed_rooms} rooms and "
        f"{sizes.probed_objects} objects of another seed,",
        "which no pre-training saw: of read-outs that learn, half of these rooms are learnt from and half are measured",
        "on. Each seed has weights, order and draws of its own; the last column of the first table says how many there",
        "are. Figures are means over seeds, ± their sample deviation; gains are means, ± their standard error, where",
        "there are several. The published recipes train thousands of times longer: these tables tell",
        "whether minutes teach anything of use, not how good a method is. [probe.md](probe.md) says how that is done.",
        "",
    ]


def _gains(found: Mapping[str, Any]) -> list[str]:
    """The first figure of every probe of every family."""
    lines = [
        "## Does pre-training help?",
        "",
        "| family | probe | figure | inputs | fresh weights | pre-trained | gain | better in |",
        "|---" * 8 + "|",
    ]
    for name, seeds in found.items():
        for probe in FAMILIES[name].probes:
            figure = FIGURES[probe][0]
            rows = gathered(seeds, probe, figure)
            wins, gain = verdict(rows, figure)
            texts = [figure.text(rows[row]) for row in ("input features", "fresh weights", "pre-trained")]
            cells = [FAMILIES[name].title, probe, figure.title, *texts, gain, wins]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _tables(found: Mapping[str, Any]) -> list[str]:
    """All figures of each family."""
    lines = []
    for name, seeds in found.items():
        family, steps = FAMILIES[name], next(iter(seeds.values()))["pretrain"]["steps"]
        taken = statistics.mean(seed["pretrain"]["cpu_seconds"] for seed in seeds.values())
        command = f"`geo3d pretrain {family.recipe} --train.steps {steps}`"
        lines += ["", f"## {family.title}", "", f"{command}: {taken:.0f} s of a core."]
        for probe, options in family.probes.items():
            said = ", ".join(f"{key} {value}" for key, value in options.items())
            figures = FIGURES[probe]
            titles = " | ".join(figure.title for figure in figures)
            lines += ["", f"**{probe}**" + (f" ({said})" if said else ""), "", f"| | {titles} |"]
            lines.append("|---" * (len(figures) + 1) + "|")
            columns = [gathered(seeds, probe, figure) for figure in figures]
            for row in columns[0]:
                cells = " | ".join(figure.text(values[row]) for figure, values in zip(figures, columns))
                lines.append(f"| {row} | {cells} |")
    return lines


def main(args: list[str], program: str) -> None:
    """Do one job of a process, or all of it."""
    if args and args[0] in ("data", "family"):
        task, name, number, place, extent = args
        if task == "data":
            make_data(Path(place), name, int(number), QUICK if extent == "quick" else Sizes())
        else:
            do_family(Path(place), name, int(number), extent == "quick")
        return
    config = command_line.parse(ResultsConfig, args, program)
    if not config.out.absolute().parent.is_dir():
        raise InputError(f"out: there is no folder {config.out.parent}")
    seconds = 0.0 if config.collect else do_all(config)
    found = collected(config)
    figures = {"hardware": hardware(), "families": found}
    config.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    config.out.write_text(page(found, config, seconds))
    print(f"{config.out}: {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    command_line.run(main, "results.py")
