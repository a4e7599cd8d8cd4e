"""Streams of random numbers: every draw comes from a seed, the name of its stream and counters, nothing else.

Two streams of one seed share no number, so that what is measured is never drawn as what is trained on.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np


@unique
class Stream(IntEnum):
    """Who draws. A number once given stays, since it is part of what makes a run repeatable.

    A stream is drawn from once, or at counters, not both: the draw without a counter is that of counter 0.
    """

    SYNTHETIC_ROOMS = 0
    SYNTHETIC_OBJECTS = 1
    HOLD_OUT = 101
    MEASURE_CROCO = 102
    MEASURE_SPARK = 103
    MEASURE_SPARK3D = 104
    MEASURE_POINTMAPS = 112
    PROBE_VALIDATION = 105
    PROBE_VOXELS = 106
    PROBE_SPLITS = 140
    PROBE_RESAMPLING = 141
    PROBE_ROTATIONS = 142
    PROBE_CORRUPTION = 143
    PROBE_PAIRS = 144
    PROBE_QUERIES = 145
    PROBE_LABELS = 146
    FEW_LABELS = 147
    FEW_POINTS = 148
    MEASURE = 107
    MEASURED_PASSES = 108
    MEASURED_ORDER = 109
    MEASURE_MULTIVIEW = 110
    SURFACE_SAMPLES = 120
    OBJECT_CLOUDS = 130
    SYNTHETIC_SHAPES = 131
    SYNTHETIC_PAIRS = 132
    RADIANCE_FIELD = 150
    POINTMAPS = 160


@unique
class TrainingStream(IntEnum):
    """Who draws in the training loop; children of the seed, which lie apart from all of :class:`Stream`."""

    ORDER = 0
    SAMPLE = 1
    STEP = 2
    SHARED = 3


def stream_generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """Generator of a stream, of draw ``counters`` of it where it makes several.

    Args:
        seed: of the run, 0 or more.
        stream: who draws.
        counters: such as the number of an item.
    """
    return np.random.default_rng([seed, int(stream), *counters])


def stream_seed(seed: int, stream: Stream, *counters: int) -> int:
    """Seed, in [0, 2^63), of a generator of torch's that draws from a stream."""
    return int(stream_generator(seed, stream, *counters).integers(2**63))


def training_sequence(seed: int, stream: TrainingStream, *counters: int) -> np.random.SeedSequence:
    """Whence the training loop draws: of a sample, the epoch and the position in it; of a step, its number."""
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *counters))
