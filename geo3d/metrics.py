"""Figures that several rooms measure by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Ratio to the truth below which a depth counts as right.
_RIGHT = 1.25
#: Smallest depth, metres, that a prediction counts as.
_NEAREST = 1e-3
#: Of flow and disparity, errors count as outliers beyond these pixels and this share of the true length (KITTI).
_OUTLIER_PIXELS, _OUTLIER_SHARE = 3.0, 0.05
#: Label of what has no class and does not count.
IGNORED = -1


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: points of each true class (row) by predicted class; unlabelled ones are left out."""
    labelled = labels != IGNORED
    pairs = labels[labelled] * classes + predicted[labelled]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """``miou`` (mean intersection over union of the classes that are there), ``accuracy``, and ``majority``.

    ``majority`` is the accuracy of the baseline that always names the most frequent class. All
    are 0 without a labelled point.
    """
    total = max(int(confusion.sum()), 1)
    hits, truth = confusion.diagonal().double(), confusion.sum(1)
    union = truth + confusion.sum(0) - confusion.diagonal()
    iou = hits[truth > 0] / union[truth > 0]
    return {
        "miou": iou.mean().item() if len(iou) else 0.0,
        "accuracy": hits.sum().item() / total,
        "majority": truth.max().item() / total,
    }


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of colours in [0, 1], dB; at most 100, of equal images.

    Args:
        image, truth: of the same shape.
    """
    error = (image.double() - truth.double()).square().mean().item()
    return -10 * math.log10(max(error, 1e-10))


def accuracy(labels: Tensor, predicted: Tensor) -> Tensor:
    """Share of the labelled rows that are named right, a scalar; 0 where nothing is labelled."""
    labelled = labels != IGNORED
    return ((predicted == labels) & labelled).sum() / labelled.sum().clamp_min(1)


def intersection_and_union(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of two bool tensors are set in both, and how many in either; sums over batches are allowed."""
    return (predicted & truth).sum(), (predicted | truth).sum()


def intersection_over_union(predicted: Tensor, truth: Tensor) -> Tensor:
    """Overlap of two bool tensors, a scalar of 0 to 1; 0 where both are empty."""
    both, either = intersection_and_union(predicted, truth)
    return both / either.clamp_min(1)


def average_precision(overlaps: Sequence[Tensor], scores: Sequence[Tensor], threshold: float) -> float:
    """Area under the curve of precision over recall, all points of it, of objects found in some scenes.

    Found objects are gone through from the highest score. One is right if the true object that it overlaps most is
    overlapped by at least ``threshold`` and was not found before; precision at a recall is the highest at that recall
    or beyond.

    Args:
        overlaps: of each scene (P, T): overlap of each of the P found objects with each of the T true ones, 0 to 1.
        scores: of each scene (P,).
        threshold: least overlap.

    Returns:
        0 to 1; 0 where there is no true object.
    """
    truths = sum(overlap.shape[1] for overlap in overlaps)
    found = sum(len(score) for score in scores)
    if not truths or not found:
        return 0.0
    right = torch.zeros(found, dtype=torch.bool)
    order = torch.cat([score.detach().cpu() for score in scores]).argsort(descending=True, stable=True)
    scene = torch.cat([torch.full((len(score),), number) for number, score in enumerate(scores)]).tolist()
    best = [overlap.cpu().max(1) if overlap.shape[1] else None for overlap in overlaps]
    first = torch.tensor([0, *(len(score) for score in scores)]).cumsum(0).tolist()
    taken: set[tuple[int, int]] = set()
    for place, number in enumerate(order.tolist()):
        of = best[scene[number]]
        if of is None:
            continue
        row = number - first[scene[number]]
        match = scene[number], int(of.indices[row])
        if of.values[row] >= threshold and match not in taken:
            taken.add(match)
            right[place] = True
    hits = right.cumsum(0).double()
    precision = (hits / torch.arange(1, found + 1)).flip(0).cummax(0).values.flip(0)
    return (precision[right].sum() / truths).item()


def box_recall(overlaps: Sequence[Tensor], threshold: float) -> float:
    """Share of the true objects of some scenes that a found one overlaps by at least ``threshold``.

    Args:
        overlaps: of each scene (P, T), as :func:`average_precision` takes them.
        threshold: least overlap.

    Returns:
        0 to 1; 0 where there is no true object.
    """
    truths = sum(overlap.shape[1] for overlap in overlaps)
    found = sum(int((overlap >= threshold).any(0).sum()) for overlap in overlaps)
    return found / max(truths, 1)


def detection_scores(overlaps: Sequence[Tensor], scores: Sequence[Tensor]) -> dict[str, float]:
    """Figures by which detection of objects is told, of 0 to 1.

    ``ap25``, ``ap50``, ``ap75``: :func:`average_precision` at overlaps of 0.25, 0.5, 0.75; ``recall25``, ``recall50``:
    :func:`box_recall`; ``ar``: the mean recall at overlaps of 0.5, 0.55, ... 0.95. All found objects count.

    Args:
        overlaps, scores: of each scene, as :func:`average_precision` takes them.
    """
    recalls = [box_recall(overlaps, percent / 100) for percent in range(50, 100, 5)]
    return {
        **{f"ap{percent}": average_precision(overlaps, scores, percent / 100) for percent in (25, 50, 75)},
        "recall25": box_recall(overlaps, 0.25),
        "recall50": recalls[0],
        "ar": sum(recalls) / len(recalls),
    }


def stereo_errors(disparity: Tensor, truth: Tensor, bounds: Sequence[float] = (0.5, 1.0, 2.0, 3.0)) -> dict[str, float]:
    """Figures of disparities: means over images of each one's own.

    Args:
        disparity, truth: (B, 1, H, W) pixels; the truth is not finite where it is not known.
        bounds: of the errors that are counted, pixels.

    Returns:
        ``average_error`` (which is the end-point error of stereo) and ``rmse``, pixels; ``bad@<bound>``, percent of the
        pixels that are known whose error is larger. NaN where nothing is known.
    """
    figures = []
    for error in _lengths_of_errors(disparity, truth):
        one = {"average_error": error.mean().item(), "rmse": error.square().mean().sqrt().item()}
        figures.append(one | _beyond(error, bounds))
    return _mean_of(figures)


def flow_errors(flow: Tensor, truth: Tensor, bounds: Sequence[float] = (1.0, 3.0, 5.0)) -> dict[str, float]:
    """Figures of optical flow: means over images of each one's own.

    Args:
        flow, truth: (B, 2, H, W) pixels; the truth is not finite where it is not known.
        bounds: of the errors that are counted, pixels.

    Returns:
        ``l1_error`` (sum over both channels) and ``epe``, the length of the error, pixels; ``bad@<bound>``, percent of
        the pixels that are known whose error is longer. NaN where nothing is known.
    """
    figures = []
    sums = _lengths_of_errors(flow, truth, order=1)
    for error, summed in zip(_lengths_of_errors(flow, truth), sums, strict=True):
        figures.append({"l1_error": summed.mean().item(), "epe": error.mean().item()} | _beyond(error, bounds))
    return _mean_of(figures)


def _lengths_of_errors(values: Tensor, truth: Tensor, order: int = 2) -> list[Tensor]:
    """Lengths of the errors at the known pixels of each image of a batch that has one; of none, one that is empty."""
    known = truth.isfinite().all(1)
    errors = torch.linalg.vector_norm((values - truth).double(), ord=order, dim=1)
    found = [error[inside] for error, inside in zip(errors, known, strict=True) if inside.any()]
    return found or [errors.new_zeros(0)]


def _beyond(error: Tensor, bounds: Sequence[float]) -> dict[str, float]:
    return {f"bad@{float(bound)}": 100 * (error > bound).double().mean().item() for bound in bounds}


def _mean_of(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}


def outliers(values: Tensor, truth: Tensor) -> float:
    """Percent of the known pixels whose error is beyond 3 pixels and 5 % of the true length, as KITTI counts them.

    Args:
        values, truth: (B, C, H, W) disparity or flow, pixels; the truth is not finite where it is not known.

    Returns:
        Of all images together (F1-all, D1-all); NaN where nothing is known.
    """
    known = truth.isfinite().all(1)
    length = torch.linalg.vector_norm(truth.double(), dim=1)[known]
    error = torch.linalg.vector_norm((values - truth).double(), dim=1)[known]
    return 100 * ((error > _OUTLIER_PIXELS) & (error > _OUTLIER_SHARE * length)).double().mean().item()


def depth_errors(depth: Tensor, truth: Tensor) -> dict[str, float]:
    """:func:`depth_figures` of depth maps, over all their known pixels.

    Args:
        depth, truth: (B, 1, H, W) metres; the truth is not finite where it is not known. Depths below 1 mm, and
            negative ones, count as 1 mm.
    """
    known = truth.isfinite()
    return depth_figures(depth[known].double().clamp_min(_NEAREST).log(), truth[known].double().log())


def depth_figures(logs: Tensor, truth: Tensor) -> dict[str, float]:
    """``rmse`` (metres), ``abs_rel``, ``delta1`` and ``rmse_log`` of logarithms of depths (M,) beside true ones."""
    off = logs - truth
    error = logs.exp() - truth.exp()
    return {
        "rmse": error.square().mean().sqrt().item(),
        "abs_rel": (error.abs() / truth.exp()).mean().item(),
        "delta1": (off.abs() < math.log(_RIGHT)).double().mean().item(),
        "rmse_log": off.square().mean().sqrt().item(),
    }
