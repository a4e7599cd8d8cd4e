"""The page for the browser, in a real one: Chromium without a window, which draws by software."""

from __future__ import annotations

import io
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.visualize.coloring import FEATURES, SIMILARITY, Coloring
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.visualize.web import WebPage, nearest_to_ray, shrunk
from geo3d.viz.feature_colors import similarity_colors
from geo3d.viz.picture import Frustum, ImagePanel, Lines, Marker, Picture3D, Points, Space, Surface

pytest.importorskip("viser", reason="viser is not installed: pip install 'geo3d[web]'")

_FLOOR, _RED, _BLUE = (150, 150, 150), (200, 40, 40), (40, 60, 200)
_WINDOW = "1100,700"
_PATIENCE = 60  # seconds; a loaded machine draws one frame in several
#: By which a channel of a pixel may differ from the point's colour: its neighbour's dot, 4 cm on, may lie over it.
_NEAR = 24


def _grid(low: tuple[float, float, float], high: tuple[float, float, float], step: float = 0.04) -> np.ndarray:
    """(N, 3) points of the surface of a box."""
    axes = [np.linspace(a, b, max(2, round((b - a) / step) + 1)) if b > a else np.array([a]) for a, b in zip(low, high)]
    xyz = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    edge = [(xyz[:, i] == low[i]) | (xyz[:, i] == high[i]) for i in range(3)]
    return xyz[np.any(edge, 0)]


_PARTS = (_grid((0, 0, 0), (4, 3, 0)), _grid((0.6, 0.6, 0.02), (1.6, 1.6, 1)), _grid((2.4, 1.2, 0.02), (3.4, 2.2, 0.7)))
_XYZ = np.concatenate(_PARTS)
#: What each point is part of: the floor, a red box, a blue box.
_PART = np.repeat(np.arange(3), [len(part) for part in _PARTS])
_COLORS = np.array([_FLOOR, _RED, _BLUE], np.uint8)[_PART]
_LABELS = np.array([(10, 200, 10), (200, 10, 200), (10, 200, 200)], np.uint8)


def _features(step: int) -> np.ndarray:
    """Of three states: the first does not tell the parts apart, the last does; both layers have four channels.

    They change slowly from place to place, so that the dot beside a point has nearly its colour.
    """
    slow = np.c_[np.sin(_XYZ / 2 + step), np.ones(len(_XYZ))]
    apart = np.eye(4)[_PART] * step + 0.3 * slow
    return np.concatenate([apart, apart[:, ::-1] ** 2 + 0.1], 1)


def _timeline() -> FeatureTimeline:
    layers = {"fine": slice(0, 4), "coarse": slice(4, 8)}
    return FeatureTimeline(["fresh weights", "step 10", "step 20"], [0, 10, 20], layers, _features)


def _picture() -> Picture3D:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), (2, 0.2, 1)
    image = np.full((30, 40, 3), (255, 200, 0), np.uint8)
    frustum = Frustum(pose, Camera(40, 30, 40.0, 40.0, 19.5, 14.5), 0.2, image=image, name="photo")
    return Picture3D("two <boxes> {on} a floor", (Space("boxes", (Points(_XYZ, _COLORS),), cameras=(frustum,)),))


def _page(**options: Any) -> WebPage:
    legend = (("floor", tuple(_LABELS[0].tolist())), ("red box", tuple(_LABELS[1].tolist())))
    return WebPage(_picture(), _timeline(), [Coloring("labels", _LABELS[_PART], legend)], port=0, **options)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium or its chromedriver is not installed (packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    flags = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "use-gl=angle", "use-angle=swiftshader")
    for flag in (*flags, "enable-unsafe-swiftshader", f"window-size={_WINDOW}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser: Any) -> Iterator[tuple[WebPage, Any]]:
    """The page, and the browser that shows it."""
    with _page() as page:
        browser.get(page.address)
        _wait(lambda: page.server.get_clients(), "the browser to connect")
        yield page, browser


@pytest.fixture
def shown(opened: tuple[WebPage, Any]) -> tuple[WebPage, Any]:
    """The same, as it was at first."""
    page, _ = opened
    page.select(None)
    page.coloring, page.step, page.layer = "colours", 2, "fine"
    return opened


def _wait(until: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := until():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {_PATIENCE} s for {what}")


def _pixels(browser: Any) -> np.ndarray:
    """(H, W, 3) uint8 of what the browser shows."""
    return np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))


def _places(page: WebPage, xyz: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of points in the browser's window, by the camera that it reports, as a pinhole has them."""
    (client,) = page.server.get_clients().values()
    camera = client.camera
    w, x, y, z = camera.wxyz
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    seen = (xyz - camera.position) @ rotation
    focal = camera.image_height / 2 / np.tan(camera.fov / 2)
    return seen[:, :2] / seen[:, 2:] * focal + np.array([camera.image_width, camera.image_height]) / 2


def _top(part: int) -> np.ndarray:
    """Numbers of points well inside the upper face of a box, or of the free floor: what is seen from above."""
    xyz = _XYZ[part == _PART]
    if part == 0:
        inside = (np.abs(xyz[:, 0] - 3) < 0.8) & (np.abs(xyz[:, 1] - 0.5) < 0.3)
    else:
        low, high = xyz.min(0), xyz.max(0)
        inside = (xyz[:, 2] == high[2]) & ((xyz[:, :2] > low[:2] + 0.15) & (xyz[:, :2] < high[:2] - 0.15)).all(1)
    return np.flatnonzero(part == _PART)[inside]


def _is_drawn(page: WebPage, browser: Any, colors: np.ndarray, parts: tuple[int, ...] = (0, 1, 2)) -> bool:
    """Whether the pixels of the boxes' tops and of the floor have the colours that are given for all points."""
    numbers = np.concatenate([_top(part) for part in parts])
    at = _places(page, _XYZ[numbers]).round().astype(int)
    pixels = _pixels(browser)
    found = pixels[at[:, 1], at[:, 0]].astype(int)
    near = np.abs(found - colors[numbers]).max(1) <= _NEAR
    return near.mean() > 0.97  # of a few pixels a neighbour's dot is in front


def test_the_first_view_shows_all_points_in_their_colours_z_up(shown: tuple[WebPage, Any]) -> None:
    page, browser = shown
    _wait(lambda: _is_drawn(page, browser, _COLORS), "points in their colours")
    pixels, (client,) = _pixels(browser), page.server.get_clients().values()
    at = _places(page, _XYZ)
    assert (at > 0).all()
    assert (at < [pixels.shape[1], pixels.shape[0]]).all()
    spread = np.ptp(at, axis=0) / [pixels.shape[1], pixels.shape[0]]
    assert spread.max() > 0.6  # and the picture is filled
    higher = _places(page, np.array([[1.1, 1.1, 0.0], [1.1, 1.1, 1.0]]))
    assert higher[1, 1] < higher[0, 1] - 50  # what is higher is further up, and straight above
    assert np.allclose(client.camera.up_direction, (0, 0, 1), atol=1e-6)
    assert client.camera.position[2] > 1  # from above, so that the floor lies below


def test_a_click_on_a_point_colours_all_by_likeness_and_a_click_beside_goes_back(shown: tuple[WebPage, Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page, browser = shown
    numbers = _top(2)
    wanted = numbers[np.linalg.norm(_XYZ[numbers] - _XYZ[numbers].mean(0), axis=1).argmin()]

    def click(x: int, y: int) -> None:
        pointer = ActionChains(browser)
        pointer.w3c_actions.pointer_action.move_to_location(x, y)
        pointer.w3c_actions.pointer_action.click()
        pointer.perform()

    _wait(lambda: _is_drawn(page, browser, _COLORS), "the page")
    click(*_places(page, _XYZ[wanted][None])[0].round().astype(int).tolist())
    _wait(lambda: page.selected is not None and page.likeness is not None, "a point to be selected")
    assert np.linalg.norm(_XYZ[page.selected] - _XYZ[wanted]) < 0.05
    assert page.coloring == SIMILARITY
    values, colors = similarity_colors(_features(2)[:, :4].astype(np.float32), page.selected)
    assert np.allclose(page.likeness, values)
    assert (page.colors == colors).all()
    assert values[_PART == 2].min() > values[_PART != 2].max()
    # The mark, a red ball, hides points beside the one that was clicked.
    mark = _places(page, _XYZ[page.selected][None])[0].round().astype(int)
    _wait(lambda: _is_red(_pixels(browser)[mark[1], mark[0]]), "the mark")
    _wait(lambda: _is_drawn(page, browser, colors, parts=(0, 1)), "colours of likeness")

    click(*_beside(page))
    _wait(lambda: page.selected is None, "nothing to be selected")
    assert page.coloring == "colours"
    assert page.likeness is None
    _wait(lambda: _is_drawn(page, browser, _COLORS), "colours as before")


def _apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether a picture in one set of colours cannot be taken for one in the other."""
    numbers = np.concatenate([_top(part) for part in range(3)])
    return (np.abs(first[numbers].astype(int) - second[numbers]).max(1) > 2 * _NEAR).mean() > 0.1


def _beside(page: WebPage) -> tuple[int, int]:
    """A pixel below the scene, where nothing is."""
    at = _places(page, _XYZ)
    return int(np.median(at[:, 0])), int(at[:, 1].max()) + 10


def _is_red(pixel: np.ndarray) -> bool:
    red, green, blue = pixel.astype(int)
    return red > 120 and red > 2 * max(green, blue)


def test_the_slider_moves_through_checkpoints(shown: tuple[WebPage, Any]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page, browser = shown
    page.coloring = FEATURES
    timeline = _timeline()
    for step in (1, 2):  # else nothing would be seen to move
        assert _apart(timeline.colors(step - 1, "fine"), timeline.colors(step, "fine"))
    assert _apart(timeline.colors(0, "coarse"), timeline.colors(0, "fine"))
    _wait(lambda: _is_drawn(page, browser, timeline.colors(2, "fine")), "features of the last state")

    def slider() -> Any:
        found = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
        return next((one for one in found if one.get_attribute("aria-valuemax") == "2"), None)

    handle = _wait(slider, "the slider")
    for step in (1, 0):
        handle.send_keys(Keys.ARROW_LEFT)
        _wait(lambda step=step: page.step == step, "the slider to tell the server")
        _wait(lambda step=step: _is_drawn(page, browser, timeline.colors(step, "fine")), f"features of state {step}")
        assert (page.colors == timeline.colors(step, "fine")).all()
        name = timeline.steps[step]
        _wait(lambda name=name: name in browser.find_element(By.TAG_NAME, "body").text, "the name of the state")
    page.layer = "coarse"
    _wait(lambda: _is_drawn(page, browser, timeline.colors(0, "coarse")), "features of the other layer")


def test_the_panel_says_what_is_shown(shown: tuple[WebPage, Any]) -> None:
    from selenium.webdriver.common.by import By

    page, browser = shown
    page.coloring = "labels"
    _wait(lambda: _is_drawn(page, browser, _LABELS[_PART]), "labels")
    text = _wait(
        lambda: (t := browser.find_element(By.TAG_NAME, "body").text) and "red box" in t and t, "the legend of labels"
    )
    assert "two <boxes> {on} a floor" in text  # and not as tags or as code
    assert "Click a point" in text
    assert "Cameras" in text
    assert "Dot size" in text
    page.select(int(_top(1)[0]))
    _wait(lambda: "red box" in browser.find_element(By.TAG_NAME, "body").text, "what the point is")


def test_the_console_holds_no_error(shown: tuple[WebPage, Any]) -> None:
    page, browser = shown
    _wait(lambda: _is_drawn(page, browser, _COLORS), "the page")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_every_kind_of_thing_is_shown_one_space_at_a_time(browser: Any) -> None:
    surface = Surface(
        np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0]], float), np.array([[0, 1, 2]]), np.full((3, 3), 200, np.uint8)
    )
    lines = Lines(np.array([[[0, 0, 0], [1, 1, 1]]], float), np.array([[255, 0, 0]], np.uint8))
    features = np.eye(4)[_PART]
    picture = Picture3D(
        "several",
        (
            Space("surface", surfaces=(surface,), lines=(lines,), markers=(Marker(np.array([1, 1, 0.5]), "here"),)),
            Space("surface", (Points(_XYZ[:900], _COLORS[:900]), Points(_XYZ[900:], _COLORS[900:]))),
            Space("with features", (Points(_XYZ, _COLORS, features=features),)),
        ),
        (ImagePanel("an image", np.zeros((600, 800, 3), np.uint8)),),
    )
    with WebPage(picture, port=0) as page:
        browser.get(page.address)
        _wait(lambda: page.server.get_clients(), "the browser to connect")
        page.space = "surface (2)"
        _wait(lambda: _is_drawn(page, browser, _COLORS), "points of the second space")
        page.hide_above(-1.0)
        _wait(lambda: not _is_drawn(page, browser, _COLORS), "all points to be hidden")
        page.hide_above(None)
        page.select(5)  # without features there is nothing to compare
        assert page.coloring == "colours"
        assert page.likeness is None
        page.space = "with features"
        page.select(int(_top(2)[0]))
        assert page.coloring == SIMILARITY
        assert np.allclose(page.likeness, _PART == 2)
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_a_page_that_is_closed_listens_no_more_and_a_taken_port_is_passed_over(capfd: pytest.CaptureFixture) -> None:
    with _page() as page:
        port = page.server.get_port()
        assert page.address == f"http://localhost:{port}"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20) as answer:
            assert answer.status == 200
        with WebPage(_picture(), port=port) as other:
            assert other.server.get_port() != port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert capfd.readouterr().out == ""  # the one line with the address is the command's


def test_an_old_viser_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viser.__version__", "0.2.23")
    with pytest.raises(InputError, match=r"newer viser than 0.2.23: pip install --upgrade 'geo3d\[web\]'"):
        WebPage(_picture(), port=0)


def test_what_cannot_be_shown_is_one_line() -> None:
    with pytest.raises(InputError, match="nothing in 3D"):
        WebPage(Picture3D("images alone"), port=0)
    with pytest.raises(InputError, match="cannot listen there"):
        WebPage(_picture(), host="192.0.2.1", port=0)  # an address that is nobody's, by RFC 5737
    with pytest.raises(InputError, match=r"features are of 10; make both of one cloud"):
        WebPage(_picture(), FeatureTimeline(["a"], [0], {"x": slice(None)}, lambda _: np.eye(10)), port=0)
    with _page() as page, pytest.raises(InputError, match="there is no point"):
        page.select(len(_XYZ))


def test_the_foremost_point_near_a_ray_is_the_one_that_is_meant() -> None:
    xyz = np.array([[0, 0, 5.0], [0, 0, 2.0], [0.04, 0, 2.02], [1, 0, 1.0], [0, 0, -1.0]])
    origin, direction = np.zeros(3), np.array([0, 0, 3.0])
    assert nearest_to_ray(xyz, origin, direction, 0.1) == 1
    assert nearest_to_ray(xyz, origin, np.array([0.04, 0, 2.02]), 0.1) == 2  # both are hit, this one in the middle
    assert nearest_to_ray(xyz, origin, np.array([1.0, 0, 1.0]), 0.1) == 3
    assert nearest_to_ray(xyz, origin, np.array([0, 1.0, 0]), 0.1) is None
    assert nearest_to_ray(np.zeros((0, 3)), origin, direction, 0.1) is None


def test_images_are_made_no_larger() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    assert shrunk(image, 80) is image
    assert shrunk(image, 40).shape == (30, 40, 3)
