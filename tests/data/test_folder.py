"""Folders of images: how classes and splits are told, what files of every kind become, and what is skipped and said."""

import os
import struct
import zlib

import numpy as np
import pytest
from image_folders import RED, classes, config, counts, fails, one, put
from PIL import Image

from configs import folder as folder_config
from pfgm_jax import config_rules, data, models
from pfgm_jax import run as run_lib
from pfgm_jax.data import dataset as dataset_module
from pfgm_jax.data import images
from pfgm_jax.errors import UserError

# ---- layouts


def test_classes_by_subfolder_split_by_seed(tmp_path, capsys):
    classes(tmp_path, {"cat": 40, "dog": 20, "10": 10, "9": 10})
    put(tmp_path / "dog" / "deep" / "er" / "more.JPG")
    made = data.load(config(tmp_path, val=0.2))
    assert made.classes == ("9", "10", "cat", "dog") and made.shape == (8, 8, 3)
    assert counts(made) == [56, 17, 8]  # a fifth and a tenth of 81, rounded up
    by_class = np.stack([np.bincount(split.labels) for split in (made.train, made.val, made.test)])
    np.testing.assert_array_equal(by_class.sum(axis=0), [10, 10, 40, 21])
    assert np.abs(by_class[1] - 0.2 * by_class.sum(axis=0)).max() <= 1
    said = capsys.readouterr().err
    assert "81 images, classes by subfolder, val and test by seed" in said and "skipped" not in said

    again, other = data.load(config(tmp_path, val=0.2)), data.load(config(tmp_path, val=0.2, split_seed=1))
    np.testing.assert_array_equal(made.val.images, again.val.images)
    assert (made.val.images != other.val.images).any()
    # No image is lost or doubled.
    together = np.concatenate([split.images for split in (made.train, made.val, made.test)]).reshape(81, -1)
    whole = data.load(config(tmp_path, val=0, test=0))
    assert counts(whole) == [81, 0, 0]
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole.train.images.reshape(81, -1)))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("TRAIN", "validation", "tests"),
        ("train", "dev", "evaluation"),
        ("training", "Dev", "Eval"),
    ],  # fmt: skip
)
def test_splits_by_subfolder(tmp_path, names, capsys):
    for name, count in zip(names, (5, 2, 3), strict=True):
        classes(tmp_path / name, {"a": count, "b": count})
    made = data.load(config(tmp_path))
    assert counts(made) == [10, 4, 6] and made.classes == ("a", "b")
    assert "classes and splits by subfolder\n" in capsys.readouterr().err


def test_classes_that_are_called_like_splits_are_told(tmp_path, capsys):
    classes(tmp_path, {"train": 10, "car": 10})
    assert data.load(config(tmp_path)).classes == ("car", "train")
    assert "note       train is a class, not a split: splits are train beside val or test" in capsys.readouterr().err


def test_names_that_are_not_utf8(tmp_path, capsys):
    for i in range(8):
        folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9" if i % 2 else b"\x1b[31m")
        os.makedirs(folder, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 9, 9)).save(
            os.path.join(folder, b"\xe9%d.png" % i).decode("utf-8", "surrogateescape")
        )
    made = data.load(config(tmp_path, val=0, test=0))
    assert set(made.classes) == {r"\x1b[31m", r"caf\udce9"}
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"caf\udce9" in said
    said.encode()


def test_special_files_never_block(tmp_path, capsys):
    classes(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "a" / "zero.tif")
    assert sum(counts(data.load(config(tmp_path, val=0, test=0)))) == 4
    assert "2 special files such as a pipe (a/pipe.png)" in capsys.readouterr().err
    with pytest.raises(images.Unreadable, match="pipe, socket or device"):
        one(tmp_path / "a" / "pipe.png")


def test_a_class_that_is_called_images(tmp_path):
    """As detection sets lie: train/images, val/images; or a class of that name beside others."""
    for split in ("train", "val", "test"):
        classes(tmp_path / "alone" / split, {"images": 3})
        classes(tmp_path / "beside" / split, {"images": 3, "cats": 2})
    alone, beside = (data.load(config(tmp_path / name)) for name in ("alone", "beside"))
    assert alone.classes == ("images",) and counts(alone) == [3, 3, 3]
    assert beside.classes == ("cats", "images") and counts(beside) == [5, 5, 5]


def test_two_folders_of_one_split_are_both_read(tmp_path):
    for split, count in {"train": 3, "val": 2, "validation": 4}.items():
        classes(tmp_path / split, {"cat": count, "dog": 1})
    assert counts(data.load(config(tmp_path, test=0))) == [4, 8, 0]


def test_splits_without_classes_and_without_val(tmp_path, capsys):
    classes(tmp_path, {"train": 18, "test": 4, "masks": 3})
    put(tmp_path / "loose.png")
    made = data.load(config(tmp_path, val=0.5))
    assert counts(made) == [9, 9, 4] and made.classes == ("images",)
    said = capsys.readouterr().err
    assert "one class, splits by subfolder, val by seed" in said
    assert "1 folder beside those of the splits (masks)" in said
    assert "1 image beside the folders of the splits (loose.png)" in said


def test_one_class_of_images_in_one_folder_of_one_folder(tmp_path):
    classes(tmp_path, {"archive/photos": 10})
    made = data.load(config(tmp_path))
    assert counts(made) == [8, 1, 1] and made.classes == ("images",)


def test_images_beside_class_folders_are_listed(tmp_path, capsys):
    classes(tmp_path, {"a": 10, "b": 10})
    put(tmp_path / "loose.png")
    (tmp_path / "c").mkdir()
    assert sum(counts(data.load(config(tmp_path)))) == 20
    said = capsys.readouterr().err
    assert "1 image beside the class folders (loose.png)" in said and "1 folder without images (c)" in said


# ---- what cannot be read


def test_folders_that_are_none(tmp_path, monkeypatch):
    fails("", "give the folder of the images")
    fails(tmp_path / "absent", "absent does not exist")
    fails(tmp_path, "holds no images (png, jpg", "nothing of a known type")
    (tmp_path / "notes.txt").write_text("x")
    fails(tmp_path, "1 file of another type (.txt) (notes.txt)")
    fails(tmp_path / "notes.txt", "is a file: give the folder")
    for name, words in (("a.zip", "extract it"), ("a.npz", "data.name=npz")):
        (tmp_path / name).write_text("x")
        fails(tmp_path / name, words)
    for size in (0, -3, 4097, 10**6):
        fails(tmp_path, f"data.size={size} is not possible: give the side in pixels, 1 to 4096", size=size)

    def listdir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", listdir)  # root may read everything
    fails(tmp_path, f"data.dir={tmp_path} cannot be read", "Permission denied")


def bomb(width=60_000, height=60_000):
    """A PNG that declares more pixels than it has bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_files_that_give_no_image_are_skipped_and_listed(tmp_path, capsys, monkeypatch):
    classes(tmp_path, {"a": 10, "b": 10})
    whole = {kind: put(tmp_path / f"whole.{kind}", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
             for kind in ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm")}  # fmt: skip
    for kind, path in whole.items():
        content = path.read_bytes()
        path.unlink()
        (tmp_path / "a" / f"cut.{kind}").write_bytes(content[: len(content) // 2])
        (tmp_path / "b" / f"empty.{kind}").write_bytes(b"")
    (tmp_path / "a" / "text.png").write_text("<html>404</html>")
    (tmp_path / "a" / "huge.png").write_bytes(bomb())
    (tmp_path / "a" / "large.png").write_bytes(bomb(10_001, 10_000))  # below Pillow's own limit
    (tmp_path / "a" / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / ".hidden.png").write_text("x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b", target_is_directory=True)
    made = data.load(config(tmp_path))
    assert sum(counts(made)) == 20
    said = capsys.readouterr().err
    for words in ("7 files cut short or damaged (a/cut.bmp: ", "7 files of 0 bytes (b/empty.bmp)",
                  "2 files without an image (a/program.jpg)", "2 files of more than 100 million pixels (a/huge.png: ",
                  "1 file unreadable (a/gone.png: ", "1 file of another type (.txt) (a/notes.txt)",
                  "1 folder read already, through a link (b/loop)",
                  "skipped    21"):  # fmt: skip
        assert words in said, said
    # Without them the splits are the same: they may be deleted, and a run continued.
    for path in (*tmp_path.glob("a/[!0-9]*"), *tmp_path.glob("b/[!0-9]*")):
        path.unlink()
    np.testing.assert_array_equal(data.load(config(tmp_path)).train.images, made.train.images)


def test_a_huge_declaration_takes_no_memory(tmp_path):
    import tracemalloc

    (tmp_path / "huge.png").write_bytes(bomb())
    tracemalloc.start()
    with pytest.raises(images.Unreadable, match="more than 100 million pixels"):
        images.decode(tmp_path / "huge.png", images.Square(8))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_folder_below_that_cannot_be_read_is_listed(tmp_path, capsys, monkeypatch):
    classes(tmp_path, {"a": 10, "b": 10})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert data.load(config(tmp_path)).classes == ("a",)
    assert "1 unreadable folder (b)" in capsys.readouterr().err


def test_a_class_that_a_split_lacks(tmp_path, capsys):
    classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "test/b": 1, "test/c": 1})
    data.load(config(tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert "folder: no train image of 1 class (c)" in said and "folder: no val image of 2 classes (b, c)" in said


# ---- what pixels become


def test_every_type_of_file(tmp_path):
    for suffix in images.SUFFIXES:
        path = put(tmp_path / f"a{suffix}", 137 if suffix == ".pgm" else (137, 137, 137),
                   mode="L" if suffix == ".pgm" else "RGB")  # fmt: skip
        # JPEG and lossy WebP give a flat grey back within a level.
        np.testing.assert_allclose(one(path), np.full((8, 8, 3), 137), atol=1, err_msg=suffix)


def test_transparency_lies_on_white(tmp_path):
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, 4:] = (200, 0, 0, 255)
    half[:, :2, 3] = 128
    for path in (put(tmp_path / "a.png", half), put(tmp_path / "a.webp", half, lossless=True)):
        got = one(path)
        assert got[0, 0].tolist() == [127] * 3 and got[0, 3].tolist() == [255] * 3 and got[0, 5].tolist() == [200, 0, 0]
    grey = np.stack([np.full((8, 8), 9, np.uint8), np.full((8, 8), 0, np.uint8)], axis=-1)
    assert (one(put(tmp_path / "la.png", grey)) == 255).all()
    palette = Image.fromarray(half).convert("P")
    palette.putpalette([0, 0, 255] * 256)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((5, 5)))
    got = one(tmp_path / "p.png")
    assert got[0, 5].tolist() == [255] * 3 and got[0, 3].tolist() == [0, 0, 255]
    palette.save(tmp_path / "p.gif")
    assert one(tmp_path / "p.gif")[0, 0].tolist() == [0, 0, 255]


def test_cmyk_and_one_bit(tmp_path):
    got = one(put(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK", quality=100))
    np.testing.assert_allclose(got, np.broadcast_to([255, 0, 0], got.shape), atol=2)
    bits = np.eye(8, dtype=bool)
    np.testing.assert_array_equal(one(put(tmp_path / "a.png", bits))[..., 0], bits * 255)


@pytest.mark.parametrize(
    "orientation, turned",
    [
        (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)  # fmt: skip
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".png", ".webp"):
        options = {"lossless": True} if suffix == ".webp" else {}
        path = put(tmp_path / f"a{suffix}", pixels, exif=exif, **options)
        np.testing.assert_array_equal(one(path), turned(pixels))


def test_damaged_exif_is_no_reason_to_skip(tmp_path):
    put(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    np.testing.assert_allclose(one(tmp_path / "a.jpg"), np.broadcast_to(RED, (8, 8, 3)), atol=3)


def test_the_centre_is_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 13, 3), np.uint8)
    np.testing.assert_array_equal(one(put(tmp_path / "wide.png", pixels)), pixels[:, 2:10])
    tall = np.swapaxes(pixels, 0, 1).copy()
    np.testing.assert_array_equal(one(put(tmp_path / "tall.png", tall)), tall[2:10])


def lanczos(pixels, size):
    """Separable Lanczos-3 of one channel, stretched to the reduction so that it averages: float64."""
    scale = len(pixels) / size
    centres = (np.arange(size) + 0.5) * scale
    offsets = (np.arange(len(pixels)) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(offsets) < 3, np.sinc(offsets) * np.sinc(offsets / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ pixels.astype(np.float64) @ weights.T


def test_resizing_averages(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 196, (40, 40), np.uint8)  # no overshoot is clipped
    path = put(tmp_path / "a.png", pixels)
    # Rounded after each direction: half a level, which the second makes up to 1.4 times larger, and another half.
    np.testing.assert_allclose(one(path)[..., 0], lanczos(pixels, 8), atol=1.21)
    chess = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inner = one(put(tmp_path / "chess.png", chess), 8)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 127.5, atol=3)  # a resize that leaves pixels out gives 0 or 255


def test_a_large_jpeg_decoded_at_a_fraction_is_nearly_the_same(tmp_path):
    y, x = np.mgrid[:640, :640] / 640
    pixels = (127 + 100 * np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * x * y)], axis=-1)).astype(np.uint8)
    path = put(tmp_path / "a.jpg", pixels, quality=95)
    difference = one(path, 32, shrink=True).astype(int) - one(path, 32)
    assert 0 < np.abs(difference).max() <= 3  # levels: block averages in place of Lanczos' filter, on a smooth image


def test_grey_where_all_are(tmp_path, capsys):
    put(tmp_path / "a.png", 7, mode="L")
    put(tmp_path / "b.png", (9, 9, 9))
    options = dict(val=0, test=0)
    made = data.load(config(tmp_path, **options))
    assert made.shape == (8, 8, 1) and made.train.images[:, 0, 0, 0].tolist() == [7, 9]
    assert "0 in colour, 2 grey; read as grey" in capsys.readouterr().err
    assert data.load(config(tmp_path, channels=3, **options)).shape == (8, 8, 3)
    put(tmp_path / "c.png", RED)
    assert data.load(config(tmp_path, **options)).shape == (8, 8, 3)
    grey = data.load(config(tmp_path, channels=1, **options)).train.images
    assert grey[:, 0, 0, 0].tolist() == [7, 9, round(0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2])]


def test_the_inventory_tells_sizes(tmp_path, capsys):
    for i, size in enumerate([(4, 6), (10, 10), (100, 20)]):
        put(tmp_path / f"{i}.png", size=size)
    data.load(config(tmp_path, val=0, test=0))
    said = capsys.readouterr().err
    assert "4×6 (smallest), 10×10 (median), 100×20 (largest)" in said and "1 smaller image enlarged" in said


# ---- more than fits in memory


def test_what_does_not_fit_stays_in_its_files(tmp_path, monkeypatch):
    classes(tmp_path, {"a": 10, "b": 10})
    in_memory = data.load(config(tmp_path))
    monkeypatch.setattr(images, "HOST_BYTES", 20 * 8 * 8 * 3 - 1)
    made = data.load(config(tmp_path))
    for split in ("train", "val", "test"):
        lazy, whole = getattr(made, split), getattr(in_memory, split)
        assert isinstance(lazy.images, data.LazyImages) and isinstance(whole.images, np.ndarray)
        np.testing.assert_array_equal(lazy.images[:], whole.images)
        np.testing.assert_array_equal(lazy.labels, whole.labels)
    np.testing.assert_array_equal(made.train.images[[5, 2]], in_memory.train.images[[5, 2]])
    assert data.moments(made.train.images) == data.moments(in_memory.train.images)
    for path in tmp_path.glob("a/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a/\d.png cannot be read as an image \(of 0 bytes\): replace it"):
        made.train.images[:]


def test_no_more_is_kept_than_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(images.parallel, "host_memory", lambda: 1000)
    assert images.fits(5, (10, 10, 1)) and not images.fits(6, (10, 10, 1))


def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    classes(tmp_path, {"a": 2, "b": 2})
    monkeypatch.setattr(Image.Image, "load", full)
    fails(tmp_path, "reading images takes more memory than is free: lower data.size")


def test_grey_ones_that_fit_after_all(tmp_path, monkeypatch):
    for i in range(10):
        put(tmp_path / f"{i}.png", i, mode="L")
    monkeypatch.setattr(images, "HOST_BYTES", 10 * 8 * 8)
    made = data.load(config(tmp_path, val=0, test=0))
    assert isinstance(made.train.images, np.ndarray) and made.train.images[:, 0, 0, 0].tolist() == list(range(10))
    assert dataset_module.HOST_BYTES == 4 * 2**30


# ---- the config


@pytest.mark.parametrize("size", [8, 9, 28, 33, 64, 100, 224, 300, 512])
@pytest.mark.parametrize("kind", ["", ",cpu"])
def test_a_network_for_any_size(size, kind):
    made = folder_config.get_config(f"dir=x,size={size},conditional{kind}")
    config_rules.check(made)
    assert (made.data.name, made.data.dir, made.data.size, made.model.conditional) == ("folder", "x", size, True)
    model = run_lib.make_model(made, {"shape": (size, size, 3), "classes": ["a", "b"], "sigma_data": 0.5})
    sides = [side for side, _ in model.check_size((size, size))]
    attended = set(made.model.attention)
    assert attended <= set(sides) and max(attended, default=0) <= 32
    assert attended or (kind and size == 224)  # 56 px is much for a CPU


def test_the_presets_are_those_of_medmnist():
    for side in (28, 64, 128, 224):
        for kind in ("medical", "cpu"):
            assert folder_config.network(kind, side) == models.preset(f"{kind}_{side}")


def test_arguments_of_the_config():
    made = folder_config.get_config("dir=/data/mine.npz,size=32,process=pfgm,quick")
    config_rules.check(made)
    assert (made.data.name, made.process.name, made.train.large_batch) == ("npz", "pfgm", 64)
    with pytest.raises(UserError, match="images of 8 px or more"):
        folder_config.get_config("size=4")
