"""Images of more than 8 bits and files of several pages: what they become, and what is said of them."""

import numpy as np
import pytest
from image_folders import RED, classes, config, counts, fails, one, put
from PIL import Image

from pfgm_jax import config as config_lib
from pfgm_jax import data
from pfgm_jax import run as run_lib
from pfgm_jax.data import images, window


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix, capsys):
    values = np.array(
        [[0, 128, 129, 255], [257, 1000, 4095, 32767], [32768, 40000, 65278, 65279], [65535] * 4], np.uint16
    )
    path = put(tmp_path / f"a{suffix}", values)
    np.testing.assert_array_equal(one(path, 4)[..., 0], np.round(values / 257))
    made = data.load(config(tmp_path, size=8, val=0, test=0))
    said = "1 image of more than 8 bits, values 0 to 65535; 0 becomes black and 65535 white (the range of 16 bits)\n"
    assert made.shape == (8, 8, 1) and made.window == (0, 65535) and said in capsys.readouterr().err


def test_numbers_that_are_no_picture_are_skipped(tmp_path, capsys):
    put(tmp_path / "good.png")
    put(tmp_path / "float.tif", np.ones((8, 8), np.float32))
    put(tmp_path / "deep.tif", np.full((8, 8), 10**6, np.int32))
    data.load(config(tmp_path, val=0, test=0))
    said = capsys.readouterr().err
    assert "1 file of floating-point numbers (float.tif" in said and "1 file of values beyond 16 bits (deep.tif" in said
    assert "data.window=LOW,HIGH" in said


# ---- data.window


def scaled(values, low, high):
    """The oracle: NumPy, in float64."""
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize(
    "suffix, kind, low, high",
    [
        (".png", np.uint16, 0, 4095), (".tif", np.uint16, 100, 3000), (".tif", np.int32, -1000, 2000),
        (".tif", np.float32, -0.5, 1.5),
    ],
)  # fmt: skip
def test_a_window_scales_every_deep_type(tmp_path, suffix, kind, low, high, capsys):
    random = np.random.default_rng(0)
    spread = high - low
    values = random.uniform(low - 0.1 * spread, high + 0.1 * spread, (3, 8, 8))
    values = (values if kind == np.float32 else np.clip(values, 0 if kind == np.uint16 else -(2**31), None)).astype(
        kind
    )
    for i, image in enumerate(values):
        put(tmp_path / f"{i}{suffix}", image)
    put(tmp_path / "8bit.png", 77, mode="L")
    made = data.load(config(tmp_path, val=0, test=0, window=f"{low},{high}"))
    np.testing.assert_array_equal(made.train.images[:3, ..., 0], scaled(values, low, high))
    assert (made.train.images[3] == 77).all() and made.window == (low, high)
    said = capsys.readouterr().err
    assert f"3 images of more than 8 bits, values {values.min():g} to {values.max():g}; {low:g} becomes black" in said
    assert f"{high:g} white (data.window={low},{high})" in said and "3 images with values beyond" in said


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_an_automatic_window_is_of_the_whole_set(tmp_path, kind, capsys):
    values = np.random.default_rng(1).integers(50, 4000, (6, 20, 20)).astype(kind)
    values[2] //= 8  # a dark image stays dark
    for i, image in enumerate(values):
        put(tmp_path / f"{i}.tif", image)
    made = data.load(config(tmp_path, size=20, val=0, test=0, window="auto"))
    low, high = np.percentile(values.astype(np.float64), (0.1, 99.9))
    np.testing.assert_allclose(made.window, (low, high), rtol=1e-12)
    np.testing.assert_array_equal(made.train.images[..., 0], scaled(values, low, high))
    assert "data.window=auto: percentiles 0.1 and 99.9 of all of the set's values" in capsys.readouterr().err


def test_of_many_values_an_even_sample_counts(tmp_path, monkeypatch, capsys):
    values = np.random.default_rng(2).integers(0, 4096, (4, 64, 64)).astype(np.uint16)
    for i, image in enumerate(values):
        put(tmp_path / f"{i}.png", image)
    monkeypatch.setattr(window, "MOST_VALUES", 4096)
    low, high = data.load(config(tmp_path, val=0, test=0, window="auto")).window
    # Percentiles of 4096 uniform values: within five standard errors, √(p(1 − p)/4096) of the range.
    assert 0 <= low < 4096 * (0.001 + 5 * np.sqrt(0.001 / 4096)) and 0 < 4096 - high < 20
    assert "an even sample of the set's values" in capsys.readouterr().err


def test_a_true_sixteen_bit_file_does_not_hide_dark_ones(tmp_path, capsys):
    for i in range(3):
        put(tmp_path / f"dark{i}.png", np.full((8, 8), 3000 + 500 * i, np.uint16))
    put(tmp_path / "full.png", np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040)
    data.load(config(tmp_path, val=0, test=0))
    said = capsys.readouterr().err
    assert "3 images without a value above 4000, so nearly black: write data.window=0,4095, or auto" in said
    data.load(config(tmp_path, val=0, test=0, window="0,4095"))
    assert "nearly black" not in capsys.readouterr().err


def colours_of_16_bits(path, pixels):
    """A PNG of RGB, 16 bits a channel, which Pillow does not write: uint16 [h, w, 3]."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_deep_colours_are_told(tmp_path, capsys):
    bright = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3))
    colours_of_16_bits(tmp_path / "a.png", bright)
    colours_of_16_bits(tmp_path / "b.png", bright // 16)
    put(tmp_path / "c.png")
    made = data.load(config(tmp_path, val=0, test=0))
    np.testing.assert_array_equal(made.train.images[0], bright // 256)
    said = capsys.readouterr().err
    assert "2 images in colour of 16 bits a channel, of which the high 8 are read, without data.window" in said
    assert "1 image nearly black: scale to 8 bits first" in said


@pytest.mark.parametrize("text", ["0", "4095,0", "1,1", "a,b", "0,inf", "nan,1", "0,1,2", "Auto"])
def test_windows_that_are_none(tmp_path, text):
    put(tmp_path / "0.png")
    fails(tmp_path, f"data.window={text} is not possible: write LOW,HIGH", window=text)


def test_values_that_are_no_numbers_are_skipped(tmp_path, capsys):
    put(tmp_path / "0.tif", np.eye(8, dtype=np.float32))
    put(tmp_path / "1.tif", np.full((8, 8), np.nan, np.float32))
    assert counts(data.load(config(tmp_path, val=0, test=0, window="auto"))) == [1, 0, 0]
    assert "1 file with values that are not numbers (1.tif: NaN or infinite)" in capsys.readouterr().err


def test_the_window_is_recorded_with_the_run(tmp_path):
    for i in range(8):
        put(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 4096, (8, 8)).astype(np.uint16))
    made = config_lib.default()
    made.data.update(name="folder", dir=str(tmp_path), size=8, window="0,4095")
    made.train.batch = 4
    made.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), embedding_channels=16)
    assert run_lib.derive(made, data.load(made.data))["window"] == [0, 4095]


# ---- pages


def stack(path, pages, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others, **options)
    return path


def levels(n, start=0):
    return [np.full((8, 8), 10 * (start + i) + 5, np.uint8) for i in range(n)]


def test_the_first_page_is_read_and_the_others_are_told(tmp_path, capsys):
    stack(tmp_path / "a.tif", levels(4))
    stack(tmp_path / "b.gif", levels(3))
    put(tmp_path / "c.png", 99, mode="L")
    made = data.load(config(tmp_path, val=0, test=0))
    assert made.train.images[:, 0, 0, 0].tolist() == [5, 5, 99]
    said = capsys.readouterr().err
    assert "pages      2 files of several pages, 7 in all: the first of each is read; data.pages=all" in said


@pytest.mark.parametrize("lazy", [False, True])
def test_all_pages_are_images_of_their_class_in_one_split(tmp_path, lazy, capsys, monkeypatch):
    for i in range(10):
        suffix, options = ((".tif", {}), (".gif", {}), (".webp", {"lossless": True}), (".png", {}))[i % 4]
        stack(tmp_path / "ab"[i % 2] / f"{i}{suffix}", levels(2 + i % 3, start=2 * i), **options)
    if lazy:
        monkeypatch.setattr(images, "HOST_BYTES", 1)
    made = data.load(config(tmp_path, pages="all", val=0.2, test=0.2))
    seen = {}
    for name in ("train", "val", "test"):
        split = getattr(made, name)
        assert isinstance(split.images, data.LazyImages) == lazy
        for image, label in zip(split.images[:], split.labels, strict=True):
            seen.setdefault((int(image[0, 0, 0]), int(label)), set()).add(name)
    pages = [(10 * (2 * i + page) + 5, i % 2) for i in range(10) for page in range(2 + i % 3)]
    assert set(seen) == set(pages) and sum(counts(made)) == len(pages) == 29
    assert min(counts(made)[1:]) >= 2
    assert "29 images from files of several pages, which stay in one split each" in capsys.readouterr().err


def test_pages_of_a_file_stay_together(tmp_path):
    for i in range(12):
        stack(tmp_path / f"{i:02}.tif", [np.full((8, 8), 20 * i + page, np.uint8) for page in range(1 + i % 5)])
    made = data.load(config(tmp_path, pages="all", val=0.3, test=0.2))
    owners = [set((split.images[:, 0, 0, 0] // 20).tolist()) for split in (made.train, made.val, made.test)]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 12 and all(owners)


def test_pages_behind_damage_are_listed(tmp_path, capsys):
    whole = stack(tmp_path / "a.tif", [np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8) for i in range(3)])
    whole.write_bytes(whole.read_bytes()[:-1100])  # within the last page
    classes(tmp_path, {".": 1})
    made = data.load(config(tmp_path, pages="all", val=0, test=0))
    assert sum(counts(made)) == 3
    assert "1 page cut short or damaged (a.tif, page 3: " in capsys.readouterr().err
    assert sum(counts(data.load(config(tmp_path, val=0, test=0)))) == 2
    fails(tmp_path, "data.pages=al is not possible: write first or all; did you mean 'all'?", pages="al")


def test_a_photographs_preview_is_no_page(tmp_path):
    photo = Image.new("RGB", (8, 8), RED)
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo])
    assert images.count_pages(tmp_path / "a.jpg") == 1
