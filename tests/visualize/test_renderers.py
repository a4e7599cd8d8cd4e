"""Every renderer draws the same picture; a window is shown, clicked into and closed, under Xvfb."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from picture_checks import check_picture
from PIL import Image, ImageGrab

from geo3d.errors import InputError
from geo3d.viz import render as rendering
from geo3d.viz.open3d_process import picked
from geo3d.viz.picture import Picture3D
from geo3d.viz.render import render

_ESCAPE = 9  # the key's code on X servers
_PATIENCE = 120  # seconds for a window to appear, on a busy machine


@pytest.fixture
def without_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def test_own_projection(picture: Picture3D, tmp_path: Path) -> None:
    drawn = render(picture, tmp_path / "own.png", "own")
    assert drawn.told() == f"picture: {tmp_path / 'own.png'}, drawn by geo3d's own projection"
    check_picture(tmp_path / "own.png", 0.2)


@pytest.mark.usefixtures("without_display")
def test_offscreen_agrees_with_own_projection(picture: Picture3D, tmp_path: Path, capfd) -> None:
    pytest.importorskip("open3d")
    try:
        drawn = render(picture, tmp_path / "offscreen.png", "offscreen")
    except InputError as error:
        pytest.skip(f"Open3D cannot draw off-screen here: {error}")
    assert drawn.renderer == "offscreen"
    assert capfd.readouterr() == ("", "")  # Open3D and its engine print much
    other = check_picture(tmp_path / "offscreen.png", 0.2)
    own = render(picture, tmp_path / "own.png", "own").pixels
    assert own.shape == other.shape
    shown = [(image < 250).any(-1) for image in (own, other)]
    # The same places are covered, up to rims of dots, and by the same colours.
    assert (shown[0] & shown[1]).sum() > 0.95 * (shown[0] | shown[1]).sum()
    both = shown[0] & shown[1]
    assert np.median(np.abs(own.astype(int) - other)[both]) <= 2


@pytest.mark.usefixtures("without_display")
def test_what_was_used_is_told_where_open3d_fails(
    picture: Picture3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "open3d"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libusb-1.0.so.0: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")]))
    drawn = render(picture, tmp_path / "x.png")
    assert drawn.renderer == "own"
    assert "Open3D cannot be used: OSError: libusb-1.0.so.0: cannot open shared object file" in drawn.told()
    with pytest.raises(InputError, match="--renderer offscreen cannot be used: OSError: libusb"):
        render(picture, tmp_path / "x.png", "offscreen")
    (broken / "__init__.py").write_text("import os\nos.abort()\n")
    assert "it ended by SIGABRT" in render(picture, tmp_path / "x.png").told()
    with pytest.raises(InputError, match="there is no display; take offscreen or own"):
        render(picture, None, "window")


@pytest.mark.usefixtures("without_display")
def test_without_display_and_file_a_png_is_written(
    picture: Picture3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_offscreen", lambda *_: pytest.fail("own is asked for"))
    assert render(picture, None, "own", default=tmp_path / "kind.png").path == tmp_path / "kind.png"


def test_a_click_means_the_nearest_point_that_is_seen_there() -> None:
    xyz = np.array([[0, 0, -5], [0, 0, -9], [2, 0, -5], [0, 0, 5.0]])
    projection = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, -0.2], [0, 0, -1, 0.0]])
    look = {"view": np.eye(4), "projection": projection, "size": (200, 200)}
    assert picked((101, 99), xyz, **look) == 0  # not the one behind it, and none behind the eye
    assert picked((141, 100), xyz, **look) == 2
    assert picked((10, 10), xyz, **look) is None
    assert picked((10, 10), xyz[:0], **look) is None


def test_a_window_shows_a_picture_and_reacts_to_a_click(picture: Picture3D, tmp_path: Path) -> None:
    pytest.importorskip("open3d")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    display = _free_display()
    server = subprocess.Popen(
        ["Xvfb", display, "-screen", "0", "1280x800x24", "-nolisten", "tcp"], stderr=subprocess.DEVNULL
    )
    code = (
        "import pickle, sys; from geo3d.viz.render import render\n"
        "drawn = render(pickle.load(open(sys.argv[1], 'rb')), None, 'window', close_after=float(sys.argv[2]))\n"
        "print(drawn.told())"
    )
    (tmp_path / "picture.pickle").write_bytes(pickle.dumps(picture))
    environment = {name: value for name, value in os.environ.items() if name != "WAYLAND_DISPLAY"}
    shown = None
    try:
        shown = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "picture.pickle", "40"],
            env=environment | {"DISPLAY": display},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        screen = _screen_when(display, lambda pixels: _share(pixels, (150, 90, 40)) > 0.02, shown)
        if screen is None and "cannot be used" in shown.communicate(timeout=60)[1]:
            pytest.skip("Open3D opens no window here")
        assert screen is not None, "no window was shown"
        Image.fromarray(screen).save(tmp_path / "window.png")
        check_picture(tmp_path / "window.png", 0.2)
        assert _share(screen, (40, 80, 200)) > 0.02  # the wall, as blue as it is
        v, u = (int(part.mean()) for part in np.nonzero((screen[:, :880] == (150, 90, 40)).all(-1)))
        if _press(display, place=(u, v)):
            clicked = _screen_when(display, lambda pixels: _share(pixels, (253, 231, 37)) > 0.02, shown)
            assert clicked is not None, "the click changed nothing"
            assert _share(clicked, (150, 90, 40)) < 0.001
            _press(display, _ESCAPE)
        out, err = shown.communicate(timeout=60)
        assert (out, err, shown.returncode) == ("shown in a window of Open3D\n", "", 0)
    finally:
        for process in (shown, server):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)


def _free_display() -> str:
    number = next(n for n in range(120, 400) if not Path(f"/tmp/.X11-unix/X{n}").exists())
    return f":{number}"


def _share(pixels: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((np.abs(pixels.astype(int) - color).max(-1) <= 3).mean())


def _screen_when(display: str, wanted, process: subprocess.Popen) -> np.ndarray | None:
    """The screen as soon as it is as wanted; None where the process ends before."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            pixels = np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))
        except OSError:  # the server is not there yet
            time.sleep(0.2)
            continue
        if wanted(pixels):
            return pixels
        time.sleep(0.3)
    return None


def _press(display: str, key: int | None = None, place: tuple[int, int] | None = None) -> bool:
    """Press and release a key, or the mouse at a place; False where X's library for that is missing."""
    try:
        x11, test = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
    except OSError:
        return False
    x11.XOpenDisplay.restype = ctypes.c_void_p
    connection = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    if not connection:
        return False
    if place is not None:
        test.XTestFakeMotionEvent(connection, -1, *place, 0)
        x11.XSync(connection, 0)
        time.sleep(0.5)
    for pressed in (1, 0):
        if place is not None:
            test.XTestFakeButtonEvent(connection, 1, pressed, 0)
        else:
            test.XTestFakeKeyEvent(connection, key, pressed, 0)
        x11.XSync(connection, 0)
        time.sleep(0.3)
    x11.XCloseDisplay(connection)
    return True
