"""Recipe: everything a method needs to be pre-trained by name, and its config as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch

from geo3d.checkpoints.hub import absolute
from geo3d.config import coerce
from geo3d.datasets.quarantine import log_broken
from geo3d.datasets.rooms import make_rooms, rooms_folder, split_scenes
from geo3d.errors import InputError, did_you_mean
from geo3d.methods.checks import check_at_least, check_below_one
from geo3d.methods.method import Method, SampleSet
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator, stream_seed
from geo3d.samples.readable import Readable
from geo3d.train.config import TrainConfig
from geo3d.train.sharding import gathered

Result = TypeVar("Result")

#: What is measured: this many small items, this many at a time; or this many scenes.
_MEASURED, MEASURED_BATCH, MEASURED_SCENES = 256, 64, 16


@dataclass(kw_only=True)
class Run:
    """What every pre-training run says; methods add their own fields."""

    data: tuple[Path, ...] = ()
    """Folders of scenes, in any layout of docs/datasets.md. None: synthetic ones are made under `data`."""

    out: Path | None = None
    """Run folder; training goes on where it left off if it holds a run. None: a new numbered folder under `runs`."""

    held_out: float = 0.1
    """Share of the scenes kept out of training for the report (0 to 1); none are where there are fewer than ten."""

    strict: bool = False
    """Stop at the first broken scene or sample instead of leaving it out and naming it in the run folder."""

    init: Path | None = None
    """Weights to start from: a run or checkpoint folder, a file of geo3d, one of the network's authors, the name of a
    model whose weights come with geo3d, or hf://owner/repository/file[@revision]. The rest is drawn anew; the log and
    report.json say what was taken. A run that is continued does not read it again."""

    init_part: Literal["whole", "encoder"] = "whole"
    """What to take of `init`: all that fits, or the encoder's weights alone."""

    measure_every: int | None = None
    """Optimizer steps between measurements on held-out data, for metrics.jsonl and the curve; the best checkpoint is
    then the best measured one. None: only before and after training."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""

    def resolved(self) -> Run:
        """The same run with absolute paths of what it reads, so that it is the same from wherever it is started."""
        paths = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        single = {name: absolute(value) for name, value in paths.items() if isinstance(value, Path)}
        return dataclasses.replace(self, **single, data=tuple(folder.resolve() for folder in self.data))

    def check(self) -> None:
        """Raise :class:`InputError` naming the first field whose value makes no sense."""
        for folder in self.data:
            if not folder.is_dir():
                raise InputError(f"data: {folder} is not a folder; give the root of a dataset")
        check_below_one(self, "held_out")
        check_at_least(self, 1, "measure_every")
        self.train.check()


@dataclass(kw_only=True)
class RoomsRun(Run):
    """A run that is on synthetic rooms where it is given no data."""

    rooms: int = 32
    """Synthetic rooms to make where `data` is empty (count)."""

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        check_at_least(self, 1, "rooms")


class Recipe:
    """How a method is pre-trained by name; an instance is the method with its data, ready for one run.

    A recipe names its parts as class attributes, and overrides what differs: by default the method is built from
    ``Run.method``, its samples are found under ``Run.data``, and its loss on held-out samples is measured.

    Args:
        config: of the run.
        folder: of the run.
        log: takes lines for people.

    Raises:
        InputError: no data that the method reads; or ``held_out`` leaves none to train on.
    """

    #: One line of help.
    summary: ClassVar[str]
    #: The command that it belongs to: `geo3d pretrain`, or `geo3d finetune` where it trains for a task.
    purpose: ClassVar[Literal["pretrain", "finetune"]] = "pretrain"
    #: Config class.
    run: ClassVar[type[Run]] = RoomsRun
    #: Name -> factory of a config; the first is the default.
    presets: ClassVar[dict[str, Callable[[], Any]]]
    #: Built as ``method_class(run.method, generator=generator)`` unless :meth:`build_method` is overridden.
    method_class: ClassVar[type[Method]]
    #: What samples are called, and what they are held out by.
    items: ClassVar[str] = "scenes"
    groups: ClassVar[str] = "scenes"
    #: What the report calls the loss.
    loss_name: ClassVar[str] = "loss"
    #: Entry of ``report.json`` that says whether they were held out.
    measured_key: ClassVar[str] = "scenes"
    #: Figure by which the best checkpoint is told where ``Run.measure_every`` is given, and whether it is to rise; an
    #: instance may choose another in :meth:`prepare_measuring`.
    best: str = "loss"
    higher_is_better: bool = False
    #: Whence measured samples are drawn, and how many at a time.
    stream: ClassVar[Stream] = Stream.MEASURE
    measured_batch: ClassVar[int] = MEASURED_BATCH

    method: Method
    samples: SampleSet

    # Before there is data

    @classmethod
    def preset(cls, name: str) -> Any:
        """The config of a preset.

        Raises:
            InputError: there is none of that name.
        """
        if name not in cls.presets:
            near = did_you_mean(name, cls.presets)
            raise InputError(f"unknown preset {name!r}; known: {', '.join(cls.presets)}{near}")
        config = cls.presets[name]()
        config.train.usual_warmup = config.train.warmup_epochs, config.train.warmup_steps
        return config

    @classmethod
    def check(cls, config: Any) -> Method:
        """Tell what is wrong with a config before any data is made: returns the method that it gives, without memory.

        Raises:
            InputError: a value makes no sense, or settings do not fit each other.
        """
        if not isinstance(config, cls.run):
            raise InputError(f"this recipe is configured by {cls.run.__name__}, got {type(config).__name__}")
        coerce(config)  # from Python, values of any type come
        config.check()
        if not config.data:
            split_scenes(cls.made_count(config), config.held_out, config.train.seed)
        with torch.device("meta"):
            return cls.build_method(config, None, None)

    @classmethod
    def build_method(cls, config: Any, source: Any | None, generator: torch.Generator | None) -> Method:
        """The method of a config, newly built.

        Args:
            config: of the run.
            source: what its samples come from; None where settings are checked before there is any.
            generator: draws the initial weights.
        """
        return cls.method_class(config.method, generator=generator)

    @classmethod
    def prepare(cls, config: Any, folder: Path, log: Log, fresh: bool) -> None:
        """Make what the run needs on disk, in the first process alone: synthetic scenes where no data is given.

        ``fresh`` says whether the run begins; what a run that is continued has made already is to be kept.
        """
        if not config.data:
            cls.make_data(config, log)

    # Where no data is given: synthetic rooms, unless a recipe says otherwise

    @classmethod
    def made_count(cls, config: Any) -> int:
        """How many scenes are made."""
        return config.rooms

    @classmethod
    def made_data(cls, config: Any) -> Path:
        """The folder that they are in."""
        return rooms_folder(config.rooms, config.train.seed)

    @classmethod
    def make_data(cls, config: Any, log: Log) -> Path:
        """Make them, or find those made before; returns their folder."""
        return make_rooms(config.rooms, config.train.seed, log)

    # With data, in every process

    def __init__(self, config: Any, folder: Path, log: Log) -> None:
        self.config, self.folder, self.log = config, folder, log
        self.seed: int = config.train.seed
        #: What cannot be read of the samples that are measured.
        self.readable = Readable(config.strict, log, "left out of the report")
        #: What the report calls the network before training.
        self.beginning = "untrained" if config.init is None else "at the start"
        source = self.find_source()
        if config.strict and (broken := [entry for d in source.datasets for entry in d.quarantine.entries]):
            raise broken[0]
        log_broken(source.datasets, log)
        self.method = self.build_method(config, source, torch.Generator().manual_seed(self.seed))
        numbers, held = self.split(source)
        train = self.learnt_from(source.of_groups(numbers) if len(held) else source)
        self.samples = self.method.samples(train)
        #: Whether held-out samples are measured, or those of training where there are too few to hold any out.
        self.measured_on = "held-out" if len(held) else "training"
        self.prepare_measuring(source, source.of_groups(held) if len(held) else source)
        of_groups = f" of {train.group_count} {self.groups}" if self.items != self.groups else ""
        log(
            f"{len(train)} {self.items}{of_groups} to train on; the report is on {self.measured_count} "
            f"{self.measured_on} {self.items}{self.describe()}"
        )

    def find_source(self) -> Any:
        """Where samples come from: what the method reads under the folders of data."""
        folders = self.config.data or (self.made_data(self.config),)
        return self.method_class.source.find(folders, strict=self.config.strict)

    def split(self, source: Any) -> tuple[Any, Any]:
        """Numbers of the groups to train on, and of those that are held out, of which there may be none."""
        return split_scenes(source.group_count, self.config.held_out, self.seed)

    def learnt_from(self, train: Any) -> Any:
        """What is trained on, of the part of the source that is not held out: all of it, unless labels are few."""
        return train

    def describe(self) -> str:
        """What else the log says of the data, after the numbers of samples."""
        return ""

    # What is measured, before, while and after training

    def prepare_measuring(self, source: Any, measured: Any) -> None:
        """Choose what is measured.

        Args:
            source: all samples.
            measured: those that are held out, or those of training where there are too few to hold any out.
        """
        self.measured = self.method.samples(measured)

    @property
    def planned_count(self) -> int:
        """How many samples are to be measured, before it is known which of them can be read."""
        return min(_MEASURED, len(self.measured))

    @property
    def measured_count(self) -> int:
        """How many samples are measured, without those that turned out not to be readable."""
        return self.planned_count - len(self.readable.left_out)

    def measure(self) -> dict[str, float]:
        """Figures of the network as it is now, on data and masks that are the same at every call.

        Samples that cannot be read are named, left out and counted as ``left_out``; they are an error where the run is
        ``strict``, or where there is no other.
        """
        with self.method.measuring(), gathered(self.method):
            figures = self.figures() | {"left_out": len(self.readable.left_out)}
        if self.best not in figures:
            raise ValueError(f"{type(self).__name__}.best names {self.best!r}, but figures() gives {sorted(figures)}")
        return {name: value if isinstance(value, int) else float(value) for name, value in figures.items()}

    def figures(self) -> dict[str, float]:
        """What is measured, in evaluation mode and without gradients: the mean loss, and of how many samples."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, Stream.MEASURED_PASSES))
        return self.means(lambda batch: {"loss": self.method(batch, generator).loss.item()})

    def means(
        self, figures: Callable[[dict[str, Any]], dict[str, float] | list[dict[str, float]]], least: int = 0
    ) -> dict[str, float]:
        """Means over all measured samples, each of which counts once, and how many they are.

        Args:
            figures: of a batch, means over its samples, or those of each sample; some may lack one.
            least: as :meth:`batches` takes it.
        """
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch, count in self.batches(least):
            found = figures(batch)
            for part, weight in [(found, count)] if isinstance(found, dict) else [(one, 1) for one in found]:
                for name, value in part.items():
                    sums[name] = sums.get(name, 0.0) + value * weight
                    counts[name] = counts.get(name, 0) + weight
        return {name: sums[name] / counts[name] for name in sums} | {self.items: self.measured_count}

    def batches(self, least: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Batches of the measured samples that can be read, on the method's device, each with its number of them.

        Args:
            least: samples to draw at least; where there are fewer each is drawn several times, and as often as others.

        Raises:
            InputError: none can be read.
        """
        every = stream_generator(self.seed, Stream.MEASURED_ORDER).permutation(len(self.measured))
        order = every[: self.planned_count]
        items = np.tile(order, max(1, -(-least // len(order))))
        read = 0
        for start in range(0, len(items), self.measured_batch):
            drawn = []
            for n in range(start, min(start + self.measured_batch, len(items))):
                item, rng = int(items[n]), stream_generator(self.seed, self.stream, n)
                describe = partial(self.measured.describe, item)
                sample = self.readable.read(item, partial(self.draw_measured, item, rng), describe)
                drawn += [sample] if sample is not None else []
            if drawn:
                yield self.on_device(self.method.collate(drawn)), len(drawn)
            read += len(drawn)
        if not read:
            raise self.unreadable()

    def pictured(self, first: int, count: int) -> dict[str, Any]:
        """A batch of measured samples to draw a picture of, on the method's device; they are the same at every call.

        Args:
            first: which of them it begins with; after the last one come the first again.
            count: how many; fewer where there are fewer, or some cannot be read.

        Raises:
            InputError: none of them can be read.
        """
        drawn = []
        for n in range(first, first + min(count, len(self.measured))):
            item = n % len(self.measured)
            rng = stream_generator(self.seed, self.stream, item)
            sample = self.readable.read(
                item, partial(self.draw_measured, item, rng), partial(self.measured.describe, item)
            )
            drawn += [sample] if sample is not None else []
        if not drawn:
            raise self.unreadable()
        return self.on_device(self.method.collate(drawn))

    def unreadable(self) -> InputError:
        """That nothing which is to be measured can be read."""
        reasons = list(self.readable.left_out.values())
        return InputError(f"none of the {len(reasons)} {self.items} to measure can be read, the first: {reasons[0]}")

    def first_readable(self, samples: SampleSet, read: Callable[[int], Result], most: int) -> list[Result]:
        """What ``read`` makes of the first samples that can be read, ``most`` at most; of others it raises InputError.

        Raises:
            InputError: a sample cannot be read and the run is ``strict``, or none can.
        """
        found: list[Result] = []
        for index in range(len(samples)):
            result = self.readable.read(index, partial(read, index), partial(samples.describe, index))
            found += [result] if result is not None else []
            if len(found) == most:
                break
        if not found:
            raise self.unreadable()
        return found

    def draw_measured(self, item: int, rng: np.random.Generator) -> dict[str, Any]:
        """A measured sample; raises InputError where it cannot be read."""
        return self.measured.draw(item, rng)

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch where the method is."""
        device = next(self.method.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}

    # What is reported

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """What was learnt: figures for ``report.json``, and lines for people.

        Args:
            before: what :meth:`measure` gave of the untrained network.
            after: of the trained one.
        """
        figures = {self.measured_key: self.measured_on, "before": before, "after": after}
        figures |= {"left_out": list(self.readable.left_out.values())}
        lines, left_out = self.text(before, after), len(self.readable.left_out)
        if left_out:
            lines += f"\n{left_out} {self.items} cannot be read and are left out of this: report.json names them"
        return figures | self.comparison(before, after), lines

    def comparison(self, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        """Further figures of the report, made of those before and after."""
        return {}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Lines for people; pictures of the trained network are drawn into the run's folder beside them."""
        return (
            f"{self.loss_name} on {self.measured_count} {self.measured_on} {self.items}: "
            f"{before['loss']:.4f} {self.beginning}, {after['loss']:.4f} trained"
        )
