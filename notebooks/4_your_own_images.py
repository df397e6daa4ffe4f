# %% [markdown]
# # Your own images
# From a folder of files to an exported generator. Here the folder is made of handwritten digits, a subfolder a class;
# put yours in its place. Every step is a command too: `run` takes what is typed behind `python -m pfgm_jax.main`.

# %%
import pathlib
import re

from IPython.display import Image, Markdown, display
from PIL import Image as Pillow

import pfgm_jax as pf
from pfgm_jax.main import run

folder = pathlib.Path("digits_as_files")
digits = pf.load_data(pf.default_config().data).train
for i, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
    path = folder / f"digit_{label}" / f"{i:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image[..., 0]).save(path)
config = f"folder:dir={folder},size=8,conditional,cpu"

# %% [markdown]
# ## What is there
# A data card: classes and their tail, constants that the data imply, exact copies, pictures.

# %%
run(["--mode=data", f"--config={config}", "--workdir=cards/mine"])
for picture in sorted(pathlib.Path("cards/mine").rglob("*.png"))[:2]:
    display(Image(filename=str(picture)))

# %% [markdown]
# ## Is the plan any good?
# Twenty seconds of the run itself: memory, speed, hours, and what to change. Images of 8 px need a small network only;
# for photographs leave these settings out.

# %%
small = ["--config.model.channels=16", "--config.model.multipliers=1,2", "--config.model.blocks=1",
         "--config.model.attention=", "--config.optim.lr=3e-3", "--config.train.images=25600",
         "--config.train.ema_halflife=5000", "--config.train.eval_every=12800", "--config.train.sample_every=25600",
         "--config.train.save_every=12800", "--config.sample.solver=heun"]  # fmt: skip
run(["--mode=advise", f"--config={config}", *small])

# %% [markdown]
# ## Train, sample, measure

# %%
run([f"--config={config}", "--workdir=runs/mine", *small])
Image(filename="runs/mine/curves.png")

# %%
run(["--mode=sample", "--workdir=runs/mine", "--config.sample.labels=balanced", "--config.sample.n=40"])
Image(filename=str(next(pathlib.Path("runs/mine/samples").glob("*_classes.png"))))

# %%
run(
    ["--mode=evaluate", "--workdir=runs/mine", "--config.evaluate.features=pixels", "--config.evaluate.num_samples=180"]
)

# %% [markdown]
# ## Share it
# safetensors, the config, a model card and a picture; `pfgm_jax.load` opens the folder like a run. Before that a gate
# looks for copies of training images among as many samples as it is given (3421 where nothing is said).

# %%
run(["--mode=export", "--workdir=runs/mine", "--config.export.samples=180"])
card = pathlib.Path("runs/mine/export/README.md")
parts = re.split(r"!\[.*\]\((.*)\)", card.read_text())  # texts and the names of pictures in turn
display(*(Image(card.parent / part) if i % 2 else Markdown(part) for i, part in enumerate(parts)))
