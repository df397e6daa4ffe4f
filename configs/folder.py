"""Your own images: PFGM++ (arXiv 2302.04265), D = 128, on a folder of image files or an npz file.

    python -m pfgm_jax.main --config=configs/folder.py:dir=PATH,size=64 --workdir=runs/mine
    python -m pfgm_jax.main --config=configs/folder.py:dir=PATH,size=64 --dry_run  # what is read, and what is skipped

A folder holds png, jpg, webp, bmp, gif, tiff, ppm or pgm files of any sizes, which are cut to their central square and
resized. Classes and splits come from

    PATH/CLASS/a.png                         subfolders, one a class
    PATH/train/CLASS/a.png, PATH/val/…       subfolders train, val (or dev) and test (or testing, eval), with classes in
                                             them, with a labels.csv each, or without
    PATH/labels.csv                          a table with the columns file,label or file,label,split, and patient
    PATH/a.png                               nothing: one class

and splits that are not there are taken from the training images (--config.data.val=0.1, --config.data.test=0.1,
--config.data.split_seed=0). What cannot be read is skipped and listed. --config.data.channels=1 makes images grey, 3
keeps grey ones in three channels. --config.data.window=LOW,HIGH, or auto, says which values of images of more than 8
bits become black and white; --config.data.pages=all reads every page of multi-page TIFFs and animations, not the first
alone; --config.data.group=REGEX finds the patient in a file's path, whose images then stay in one split.

A PATH that ends in .npz is a file with images, uint8 [n, size, size] or [n, size, size, 3], and labels [n]; or with
train_images, train_labels and so on.

Arguments: dir=PATH (without commas; or --config.data.dir=PATH), size=64 (8 to 4096 px), process=pfgmpp|pfgm|edm|ve|vp|
subvp|ddpm, D=128 (pfgmpp only), network=ddpmpp|… (one of `presets.PRESETS`; without, one that fits the size),
conditional (class-conditional, with 10 % label dropout), balanced (train on every class as often), augment (as EDM
does, with probability 0.12: with augmentation labels), remat (recompute in the backward pass what would not fit in
memory), cpu (a network and budget for two CPU cores), quick (a smoke test).

The budget is 5 million images in batches of 128, of 32 above 128 px. On a few hundred images a network learns them by
heart long before: watch eval/gap, the loss on validation images less that on training images.
"""

from pfgm_jax import recipes
from pfgm_jax.config import default, parse_arg
from pfgm_jax.presets import attend_alike, level_sizes, preset


def get_config(arg=None):
    args = parse_arg(
        arg,
        dir="",
        size=64,
        process="pfgmpp",
        D=float,
        network="",
        conditional=False,
        balanced=False,
        augment=False,
        remat=False,
        cpu=False,
        quick=False,
    )
    config = default()
    config.data.update(name="npz" if args.dir.endswith(".npz") else "folder", size=args.size, dir=args.dir)
    config.process.update(name=args.process, D=recipes.asked_D(args.process, args.D))
    kind = "cpu" if args.cpu or args.quick else "medical"
    fields = recipes.published_network(args.network, args.size) if args.network else network(kind, args.size)
    config.model.update(fields | dict(remat=args.remat))
    batch = 128 if args.size <= 128 else 32
    config.optim.update(lr=1e-3, lr_batch=512, warmup=250_000, clip=1.0)
    config.train.update(
        images=5_000_000,
        batch=batch,
        ema_halflife=250_000,
        log_every=25_600,
        eval_every=250_000,
        sample_every=250_000,
        save_every=250_000,
    )
    recipes.variations(config, args)
    if args.process == "pfgm":
        config.train.large_batch = 8 * batch
    if args.cpu:
        recipes.two_cores(config)
    if args.quick:
        recipes.smoke_test(config)
    return config


def network(kind, size):
    """Fields of config.model for images of `size` px: the preset for the next size above, attending where that does.

    28 px stands for up to 32, of which it has three levels as well. Above 224 px come levels of the last width until
    the coarsest has 32 px or less, on which it attends.
    """
    made_for = next((side for side, most in ((28, 32), (64, 64), (128, 128)) if size <= most), 224)
    fields = preset(f"{kind}_{made_for}")
    if size <= 224:
        return attend_alike(fields, made_for, size)
    widths = list(fields["multipliers"])
    while (coarsest := level_sizes((size, size), len(widths))[-1][0]) > 32:
        widths.append(widths[-1])
    return fields | dict(multipliers=tuple(widths), attention=(coarsest,))
