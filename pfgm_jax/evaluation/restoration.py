"""`--mode=restore`: restored images with their uncertainty, of measured images or of clean ones that it measures."""

import pathlib
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from pfgm_jax import config, plots
from pfgm_jax.data import folder_listing, to_uint8, to_unit
from pfgm_jax.data import images as image_files
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.inference import restoration
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration import operators
from pfgm_jax.metrics.image_quality import psnr, ssim
from pfgm_jax.sampling import arguments
from pfgm_jax.storage import atomic, digests

WHITE = 0.5  # the standard deviation, in the unit scale, that is white in a map of uncertainty
SHOWN = 12  # images of the contact sheet
SHEET, STD = "sheet", "-std"  # names of files: of the contact sheet, and behind an image's for its uncertainty


class Source(NamedTuple):
    """The images of --source and what each is called."""

    images: np.ndarray
    names: list


def restore(workdir, source, overrides):
    """Restores the images of `source` by the run in `workdir`; returns the lines that say where they are.

    restored/TASK-KEY/ has NAME.png (the mean), NAME-std.png (uncertainty, WHITE of it white) and NAME.npz (draws, mean
    and std) for each image, and sheet.png. Images whose files are there are not restored again.

    Raises:
      UserError: no images, others than the task measures, or settings that do not fit the run.
    """
    generator = protocol.open_run(workdir, overrides, conditioned=True)
    settings = generator.config.restore
    if generator.derived.get("dtype", "uint8") != "uint8":
        raise UserError("this run makes points in the plane, and restoration is for images")
    how = _how(generator, overrides)
    task = restoration.task(settings.task, generator.shape, generator.process, condition=generator.run.condition, **how)
    given = read(source, generator.shape if settings.simulate else task.measured, _window(generator))
    label = _label(generator, settings.label)
    key = jax.random.key(settings.seed)
    measured = _simulated(given.images, task, key) if settings.simulate else to_unit(given.images)
    seen = None if task.mask is None else digests.sha256(np.asarray(task.mask))
    facts = [generator.step, generator.weights_digest, dict(settings), digests.sha256(given.images), given.names, seen]
    folder = atomic.writable(pathlib.Path(workdir, "restored", f"{settings.task}-{naming.key_of(facts)}"))
    with atomic.writing_to(folder):
        results = _each(generator, settings, how, measured, given.names, label, folder)
        return "\n".join(_report(settings, task, given, measured, results, folder))


_TASK_OF = {"mask": "inpaint", "factor": "superres", "width": "deblur"}


def _how(generator, overrides):
    """The arguments of `restoration.task` that the restore section says.

    An image-conditional network has values of its own, which only a setting that is given can contradict.

    Raises:
      UserError: a setting of another task, or a mask that is none.
    """
    settings, shape = generator.config.restore, generator.shape
    given = {key.removeprefix("restore.") for key in overrides}
    for name, task in _TASK_OF.items():
        if name in given and settings.task != task:
            raise UserError(
                f"restore.{name}={settings[name]} is for restore.task={task}, not for {settings.task}: leave it out"
            )
    if generator.run.condition:
        usual = config.default().restore
        names = ("noise", "level", "method", "steps", "sweeps", "resample", *_TASK_OF)
        asked = [name for name in names if name in given or settings[name] != usual[name]]
        how = {name: settings[name] for name in asked if settings[name] not in (None, "")}
        if generator.run.condition.value == "random":
            how["mask"] = settings.mask
        return how | ({"mask": mask_of(how["mask"], shape, settings.seed)} if "mask" in how else {})
    how = {"noise": settings.noise, "level": settings.level, "method": settings.method or None}
    how |= {name: settings[name] for name in ("steps", "sweeps", "resample") if settings[name] is not None}
    if settings.task == "superres":
        how["factor"] = settings.factor
    if settings.task == "deblur":
        how["width"] = settings.width
    if settings.task == "inpaint":
        how["mask"] = mask_of(settings.mask, shape, settings.seed)
    if settings.simulate and settings.level is None and settings.task == "denoise":
        raise UserError("restore.simulate=True adds noise: set its level, such as restore.level=0.3 in the unit scale")
    return how


def mask_of(text, shape, seed):
    """The mask [H, W] that restore.mask means: a name in `operators.MASKS`, or a picture, white where observed."""
    H, W = shape[:2]
    if text in operators.MASKS:
        return np.asarray(operators.named_mask(text, (H, W), jax.random.key(seed)))
    path = atomic.expanded(text)
    if not path.is_file():
        raise UserError(f"restore.mask={text} is neither one of {', '.join(operators.MASKS)} nor an image file")
    return read_image(path, (H, W, 1))[..., 0] > 127


def _window(generator):
    """The values that the run took for black and white in files of more than 8 bits, None for a whole type."""
    window = generator.derived.get("window")
    return window and tuple(window)


def _label(generator, text):
    """The class that the network is given, None for none."""
    if not text:
        if generator.needs_label:
            raise UserError("this network needs a label: set restore.label=NAME")
        return None
    if not generator.classes:
        raise UserError("this network was trained without labels: leave restore.label out")
    named = set(generator.labels(n=text.count(",") + 1, labels=text).tolist())
    if text in ("real", "balanced") or len(named) > 1:
        raise UserError(f"restore.label={text} is not one class: give the name or number of the class of all images")
    return named.pop()


def read(source, shape, window=None):
    """The Source of images of `shape` (H, W, C) in a folder, or in an npz file's `images`: bytes, or floats (npz).

    `window` is black and white of files of more than 8 bits, as `image_files.Square` takes it.

    Raises:
      UserError: no images there, or of another size or type.
    """
    path = atomic.expanded(source)
    if path.is_file() and path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as stored:
                if "images" not in stored:
                    raise UserError(f"{path} has {', '.join(stored)[:80]}: name the array of images `images`")
                images = stored["images"]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read as an npz file ({error})") from None
        images = images[..., None] if images.ndim == 3 else images
        arguments.images(images, shape)
        return Source(images, [f"{i:05d}" for i in range(len(images))])
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder of images nor an npz file with `images`")
    paths = folder_listing.find(path).paths
    if not paths:
        raise UserError(f"{path} holds no images ({', '.join(s[1:] for s in image_files.SUFFIXES)})")
    images = image_files.each(lambda i: read_image(paths[i], shape, window), len(paths), "reading images")
    names = [naming.safe(str(pathlib.Path(p).relative_to(path).with_suffix(""))) for p in paths]
    return Source(np.stack(images), _apart(names))


def _apart(names):
    """The names, with a number where two would share a file: NAME.png, NAME-std.png, or sheet.png."""
    taken, apart = {SHEET}, []
    for name in names:
        own, i = name, 1
        while {own, f"{own}{STD}"} & taken:
            own, i = f"{name}-{i}", i + 1
        taken |= {own, f"{own}{STD}"}
        apart.append(own)
    return apart


def read_image(path, shape, window=None):
    """uint8 [H, W, C] of an image file.

    Raises:
      UserError: a file that gives no image, or one of another size, or in colour where C = 1.
    """
    H, W, C = shape
    try:
        decoded = image_files.decode(path, image_files.Square(H, window=window, resample=Image.Resampling.NEAREST))
    except image_files.Unreadable as error:
        raise UserError(f"{path} cannot be read as an image ({', '.join(error.args)}): replace or remove it") from None
    if (decoded.height, decoded.width) != (H, W):
        raise UserError(f"{path} is {decoded.width}×{decoded.height} px, but this task takes {W}×{H}")
    if C == 1 and not (decoded.pixels == decoded.pixels[..., :1]).all():
        raise UserError(f"{path} is in colour, but this task takes grey images")
    return decoded.pixels[..., :C]


def _simulated(images, task, key):
    """Measurements of clean images, floats in the unit scale; image i's noise by (key, i)."""
    operator = operators.masked(jnp.asarray(task.mask)) if task.operator is None else task.operator
    clean = operator.forward(jnp.asarray(to_unit(images)))
    if not task.level:
        return np.asarray(clean)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 2**20), np.arange(len(images)))
    return np.asarray(noises.draw(task.kind, keys, jnp.full(len(images), task.level), clean))


def _each(generator, settings, how, measured, names, label, folder):
    """Restores what has no files yet, some images at a time; returns {draws, mean, std, level} of all."""
    size = min(max(1, settings.batch // settings.n), len(measured))
    starts = range(0, len(measured), size)
    path = lambda i: folder / f"{names[i]}.npz"
    generator = generator.with_overrides({"sample.batch": settings.batch})
    with tqdm(total=len(measured), desc=f"restoring, {settings.task}", unit="image", delay=1) as bar:
        for start in starts:
            part = range(start, min(start + size, len(measured)))
            if not all(path(i).exists() for i in part):
                key = jax.random.fold_in(jax.random.key(settings.seed), start)
                # The last ones are filled up: another number of images would be compiled again.
                some = measured[np.minimum(np.arange(start, start + size), len(measured) - 1)]
                result = generator.restore(some, settings.task, settings.n, key, label, progress=False, **how)
                for row, i in enumerate(part):
                    _save(result, row, path(i))
            bar.update(len(part))
    stored = [_stored(path(i)) for i in range(len(measured))]
    return {name: np.stack([each[name] for each in stored]) for name in stored[0]}


def _save(result, row, path):
    """The files of one image; the npz last, which says that they are there."""
    tile = lambda a: Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a)
    plots.save(tile(to_uint8(result.mean[row])), path.with_suffix(".png"))
    plots.save(tile(_map(result.std[row])), path.with_name(f"{path.stem}{STD}.png"))
    with atomic.replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, draws=result.draws[:, row], mean=result.mean[row], std=result.std[row], level=result.level[row]
        )


def _stored(path):
    with np.load(path, allow_pickle=False) as file:  # closed again: a process may hold 1024 files, and images are many
        return {name: file[name] for name in ("draws", "mean", "std", "level")}


def _map(std):
    """Uncertainty [..., H, W, C] as grey levels [..., H, W, 1]: the root mean square over channels, WHITE as 255."""
    rms = np.sqrt(np.mean(np.square(std), axis=-1, keepdims=True))
    return np.clip(np.round(255 * rms / WHITE), 0, 255).astype(np.uint8)


def sheet(measured, results, truth, mask, shape):
    """A contact sheet: a column an image, rows of what was measured, the mean, three draws, the uncertainty, the truth.

    Args:
      measured: [B, *M] in the unit scale, M an image or none that can be shown. results: as `_each` has them.
      truth: [B, H, W, C], bytes or floats in the unit scale, or None.
      mask: bool or None; what was not observed is grey.
    """
    rows, C = [], shape[-1]
    if measured.ndim == 4 and measured.shape[-1] == C and shape[0] % measured.shape[1] == 0:
        seen = to_uint8(measured if mask is None else np.where(mask, measured, 0))
        factor = shape[0] // seen.shape[1]
        rows.append(("measured", seen.repeat(factor, axis=1).repeat(factor, axis=2)))
    rows.append(("mean", to_uint8(results["mean"])))
    draws = results["draws"].swapaxes(0, 1)
    rows += [(f"draw {i + 1}", to_uint8(some)) for i, some in enumerate(draws[:3])]
    rows.append((f"std, white = {WHITE:g}", np.repeat(_map(results["std"]), C, axis=-1)))
    if truth is not None:
        rows.append(("truth", to_uint8(to_unit(truth))))
    return plots.labelled_rows([(text, images[:SHOWN]) for text, images in rows])


def in_range(draws, truth):
    """The share of values [n, …] of draws whose range holds the truth; exchangeable draws give (n − 1)/(n + 1)."""
    return float(np.mean((draws.min(axis=0) <= truth) & (truth <= draws.max(axis=0))))


def _report(settings, task, given, measured, results, folder):
    truth = given.images if settings.simulate else None
    plots.save(sheet(measured, results, truth, task.mask, results["mean"].shape[1:]), folder / f"{SHEET}.png")
    n, level = results["draws"].shape[1], results["level"]
    options = ", ".join(f"{name} {value}" for name, value in task.options)
    lines = [
        f"{len(measured)} images restored: {settings.task} by {task.method} ({options}), {n} draws each, "
        f"{task.kind} noise of level {level.mean():.3g}{' (estimated)' if task.level is None else ''}"
    ]
    if truth is not None:
        mean, clean = results["mean"], to_unit(np.asarray(truth))
        hidden = np.ones(clean.shape, bool) if task.mask is None else ~np.broadcast_to(task.mask, clean.shape)
        figures = {"psnr": psnr(mean, clean, 2), "ssim": ssim(mean, clean, 2)}
        figures = {name: float(np.mean(values)) for name, values in figures.items()}
        if n > 1:
            draws = results["draws"].swapaxes(0, 1)
            figures |= {"in range": in_range(draws[:, hidden], clean[hidden]), "expected": (n - 1) / (n + 1)}
        _say_figures(lines, figures, n)
        protocol.save_record(folder / "figures.json", {"protocol": lines[0], "figures": figures})
    lines += [f"  sheet      {folder / 'sheet.png'}", f"  each image {folder}/NAME.png, NAME-std.png, NAME.npz"]
    return lines


def _say_figures(lines, figures, n):
    lines.append(f"  the mean against the truth: PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.3f}")
    if n > 1:
        lines.append(
            f"  the range of {n} draws holds {figures['in range']:.1%} of the values that were not observed; "
            f"calibrated draws hold {figures['expected']:.1%}"
        )
