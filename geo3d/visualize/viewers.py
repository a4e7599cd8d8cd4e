"""`--web` and `--rerun` of `geo3d visualize`: a page for the browser, and a file for rerun's viewer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from geo3d.errors import InputError
from geo3d.progress import progress_line
from geo3d.visualize.coloring import FEATURES
from geo3d.visualize.explore import Explored, explore
from geo3d.visualize.features import FeaturesOptions
from geo3d.visualize.options import DrawingOptions
from geo3d.visualize.rerun_file import write_rerun
from geo3d.visualize.similarity import SimilarityOptions
from geo3d.visualize.web import WebPage
from geo3d.viz.picture import Picture3D


def show(config: DrawingOptions, draw: Callable[[Any], Picture3D], log: Callable[[str], None]) -> None:
    """Write the file for rerun, and serve the page until Ctrl-C, as the options ask for.

    Args:
        config: of a kind of pictures; of ``features`` and ``similarity`` the scene is shown with every checkpoint.
        draw: of the same kind.
        log: takes a line for people.

    Raises:
        InputError: options that go with still pictures alone, or as `draw`, :func:`explore`, :func:`write_rerun` and
            :class:`WebPage`.
    """
    _check(config)
    if isinstance(config, FeaturesOptions | SimilarityOptions):
        explored = explore(config, config.checkpoints, progress_line("state"))
    else:
        explored = Explored(draw(config), None, (), None)
    seen_from = {"azimuth": config.azimuth, "elevation": config.elevation}
    more = (explored.timeline, explored.colorings)
    if config.rerun is not None:
        write_rerun(explored.picture, config.rerun, *more, **seen_from)
        log(f"file: {config.rerun}; `rerun {config.rerun}` opens it")
    if not config.web:
        return
    start = None if explored.timeline is None else FEATURES
    with WebPage(explored.picture, *more, start=start, host=config.host, port=config.port, **seen_from) as page:
        if explored.selected is not None:
            page.select(explored.selected)
        with contextlib.suppress(KeyboardInterrupt):  # from the moment on at which people are told of it
            log(f"page: {page.address} (Ctrl-C ends it)")
            page.wait()


def _check(config: DrawingOptions) -> None:
    still = {"--out": config.out, "--close-after": config.close_after}
    still |= {"--projection": getattr(config, "projection", None)}
    still |= {"--save-projection": getattr(config, "save_projection", None)}
    still |= {"--renderer": None if config.renderer == "auto" else config.renderer}
    given = [name for name, value in still.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)}: of still pictures and windows; leave it out with --web and --rerun")


__all__ = ["show"]
