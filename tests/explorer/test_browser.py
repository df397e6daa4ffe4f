"""The explorer in a headless Chromium: driven by mouse, touch and keys, read, timed and photographed."""

import json
import statistics

import browser
import numpy as np
import pytest
from PIL import Image

from pfgm_jax import explorer
from pfgm_jax.explorer import presets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium: apt-get install chromium"),
]
WIDE, PHONE = (1280, 860), (380, 800)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    explorer.write(folder)
    return folder / explorer.FILE


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile"), timeout=120) as running:
        yield running


def opened(page, file, name, size=WIDE, scheme="light", motion="reduce"):
    page.size(*size, prefers_color_scheme=scheme, prefers_reduced_motion=motion)
    page.open(file, f"#{name}")


def settled(page):
    """Does the scene's work at once, and waits for the frame that shows it; a still page may need no second one."""
    page.until("explorer.frames.length > 0")
    page.run("while (explorer.scene.work(1000));")
    page.until("explorer.working === false && !explorer.dirty && !explorer.playing")


def place(page, x, y):
    """The window's pixel of a world point."""
    return page.run(
        f"(() => {{ const [x, y] = explorer.painter.screen({x}, {y}); const b = canvas.getBoundingClientRect();"
        " return [b.left + x, b.top + y]; })()"
    )


def charges(page):
    return np.array(page.run("explorer.state.charges"))


def test_mouse_puts_drags_draws_and_erases(page, file):
    opened(page, file, "superposition")
    page.mouse("mousePressed", *place(page, 0.7, -0.4))
    page.mouse("mouseMoved", *place(page, 1.0, 0.1))
    page.mouse("mouseReleased", *place(page, 1.0, 0.1))
    np.testing.assert_allclose(charges(page)[1], [1.0, 0.1], atol=0.02)
    page.mouse("mousePressed", *place(page, -1.2, 0))
    for x in np.linspace(-1.2, -0.6, 12):
        page.mouse("mouseMoved", *place(page, x, 0))
    page.mouse("mouseReleased", *place(page, -0.6, 0))
    drawn = charges(page)
    assert len(drawn) > 8 and np.abs(drawn[4:, 1]).max() < 0.02
    page.run("explorer.put('tool', 'erase')")
    page.mouse("mousePressed", *place(page, 1.0, 0.1))
    page.mouse("mouseReleased", *place(page, 1.0, 0.1))
    assert len(charges(page)) == len(drawn) - 1
    assert page.run("document.getElementById('count').textContent") == f"({len(drawn) - 1})"


def test_touch_draws(page, file):
    opened(page, file, "superposition", PHONE)
    x, y = place(page, 0.0, 0.0)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + 30, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert len(charges(page)) == 6


def test_keys_move_put_and_remove(page, file):
    opened(page, file, "superposition")
    page.run("canvas.focus()")
    for key in ("n", "n", "ArrowUp"):
        page.key(key)
    assert charges(page)[1, 1] > -0.4
    assert "charge 2 of 4" in page.run("document.getElementById('said').textContent")
    page.key("Delete")
    assert len(charges(page)) == 3
    for key in ("ArrowRight", "Enter"):
        page.key(key)
    assert len(charges(page)) == 4 and charges(page)[3, 0] > 0


def test_samples_land_where_the_solver_says(page, file):
    opened(page, file, "hemisphere")
    settled(page)
    ends = np.array(page.run(
        "Array.from({length: 2000}, (_, i) => explorer.scene.cloud[2 * (Scene.FRAMES * (i + 1) - 1)])"
    ))  # fmt: skip
    at = charges(page)[:, 0]
    share = np.bincount(np.abs(ends[:, None] - at).argmin(axis=1), minlength=5) / 2000
    # Equal charges get equal flux; 5 standard deviations of 2000 draws.
    np.testing.assert_allclose(share, 0.2, atol=5 * np.sqrt(0.16 / 2000))
    assert float(page.run("document.getElementById('nfe').textContent")) > 20
    assert float(page.run("document.getElementById('error').textContent")) < 1e-2
    assert "flux 1.0000" in page.run("document.getElementById('meter').textContent")


def test_without_z_the_disk_collapses(page, file):
    last = "2 * Scene.FRAMES * (i + 1)"
    radius = f"Math.hypot(explorer.scene.cloud[{last} - 2], explorer.scene.cloud[{last} - 1])"
    mean = {}
    for name in ("collapse", "cure"):
        opened(page, file, name)
        settled(page)
        mean[name] = np.mean(page.run(f"Array.from({{length: 2000}}, (_, i) => {radius})"))
    assert mean["collapse"] < 0.1
    assert mean["cure"] == pytest.approx(2 / 3, abs=0.03)


def test_a_link_opens_the_same_state(page, file):
    opened(page, file, "solvers")
    page.run("explorer.put('D', Infinity), explorer.put('u', 0.3)")
    page.run("explorer.state.charges.push([0.5, -0.25]), explorer.state.set = ''")
    page.run("document.getElementById('copy').click()")
    state, link = page.run("explorer.state"), page.run("location.hash")
    page.open(file, link)
    back = page.run("explorer.state")
    np.testing.assert_allclose(back.pop("charges"), state.pop("charges"), atol=6e-4)
    assert back == state
    assert page.run("explorer.state.D === Infinity")


def test_it_plays_but_not_for_those_who_asked_for_stillness(page, file):
    opened(page, file, "flow", motion="no-preference")
    assert page.run("explorer.playing")
    page.until("explorer.state.u > 0.02")
    page.run("document.getElementById('play').click()")
    assert not page.run("explorer.playing")
    opened(page, file, "flow")
    assert page.run("!explorer.playing && explorer.state.u === 1")


def test_everything_has_a_name(page, file):
    opened(page, file, "flow")
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, select, canvas')]"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert page.run("document.querySelectorAll('[role=status]').length") == 1


def test_names_do_not_run_as_code(page, tmp_path):
    np.save(tmp_path / "<img onerror=alert(1) src=x>.npy", np.zeros((3, 2)))
    explorer.write(tmp_path, tmp_path / "<img onerror=alert(1) src=x>.npy")
    page.open(tmp_path / explorer.FILE)
    assert page.run("document.images.length") == 0
    assert page.run("explorer.state.set") == "own"


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_pictures(page, file, size, tmp_path):
    """Every preset in both themes: nothing wider than the window, ink on the canvas, a picture to look at."""
    for scheme in ("light", "dark"):
        for name in [preset.name for preset in presets.PRESETS]:
            opened(page, file, name, size, scheme)
            settled(page)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.run("document.documentElement.dataset.theme") == scheme
            path = tmp_path / f"{name}-{size[0]}-{scheme}.png"
            page.picture(path)
            with Image.open(path) as picture:
                assert picture.size == size and len(picture.convert("RGB").getcolors(1 << 20)) > 30


def timed(page, name, go_on):
    """Milliseconds of script a frame, by the thread's clock, of at least 100 frames while `go_on(k)` is called."""
    page.run("explorer.frames.length = 0")
    begun, k = page.script_seconds(), 0
    while page.run("explorer.frames.length") < 100:
        go_on(k)
        k += 1
    spent, frames = page.script_seconds() - begun, page.run("explorer.frames")
    each = 1000 * spent / len(frames)
    median = statistics.median(frames)
    print(f"{name}: {each:.1f} ms of script a frame by its thread's clock, median {median:.1f} by the wall's")
    return each


def test_script_time_of_a_frame(page, file):
    """200 charges and 2000 particles, at most 8 ms: while the samples play, and while a charge is dragged."""
    opened(page, file, "cure", motion="no-preference")
    assert len(charges(page)) == 200 and page.run("Scene.PARTICLES") == 2000

    def play(k):
        if page.run("!explorer.playing"):
            page.run("explorer.state.u = 0, explorer.playing = true")

    assert timed(page, "playing", play) < 8
    page.run("explorer.playing = false, explorer.put('u', 0.6)")
    x, y = place(page, *charges(page)[120])
    page.mouse("mousePressed", x, y)
    drag = lambda k: page.mouse("mouseMoved", x + 40 * np.sin(k / 9), y + 40 * np.cos(k / 9))
    assert timed(page, "dragging", drag) < 8
    page.mouse("mouseReleased", x, y)


def test_nothing_was_fetched_or_failed(page):
    requested = {message["params"]["request"]["url"].split(":")[0] for message in page.messages
                 if message["method"] == "Network.requestWillBeSent"}  # fmt: skip
    assert requested <= {"file", "about", "data"}
    errors = [m for m in page.messages if m["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not errors, json.dumps(errors)[:2000]
