# %% [markdown]
# # Comparing two runs, honestly
# The same network, budget, data order and seed; one difference. Figures come with intervals, with the figure that real
# images reach, and with the protocol; a difference whose interval holds 0 is called not resolved.

# %%
import pathlib

import jax
from IPython.display import Image

import pfgm_jax as pf
from pfgm_jax import plots
from pfgm_jax.main import run

short = {"train.images": "25600", "train.eval_every": "25600", "train.sample_every": "25600", "sample.solver": "heun"}
for name, arguments in {"pfgmpp": "D=128", "edm": "process=edm"}.items():
    pf.train(pf.load_config(f"digits:{arguments}", short), f"runs/{name}")

# %% [markdown]
# ## Look first
# The same keys: at D = 128 and D = ∞ the priors are not the same, so the digits are others.

# %%
for name in ("pfgmpp", "edm"):
    print(name)
    display(plots.grid(pf.load(f"runs/{name}").sample(jax.random.key(0), 20)[0], columns=20))  # noqa: F821

# %% [markdown]
# ## Then measure
# In pixels, which serve as features for images this small, and by one protocol for both.

# %%
run(["--mode=compare", "--workdir=runs/pfgmpp", "--source=runs/edm", "--config.evaluate.num_samples=360"])

# %% [markdown]
# ## Quality against evaluations
# Which solver, with how many evaluations, for this run.

# %%
sweep = ["--config.evaluate.solvers=heun,dpmpp_2m", "--config.evaluate.steps=5,9"]
run(["--mode=curve", "--workdir=runs/pfgmpp", "--config.evaluate.num_samples=360", *sweep])
Image(filename=str(sorted(pathlib.Path("runs/pfgmpp/results").glob("curve*.png"))[0]))
