# %% [markdown]
# # Five minutes
# Weights that come with the package, samples, and what happens on the way. Nothing is downloaded.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import pfgm_jax as pf
from pfgm_jax import plots

g = pf.load("pretrained:digits")
g

# %% [markdown]
# `sample` draws images and says what they cost: `nfe` counts evaluations of the network. Sample i depends
# on (key, i) alone.

# %%
images, stats = g.sample(jax.random.key(0), 40)
print(f"{images.shape} {images.dtype}, {stats.nfe} evaluations")
plots.grid(images, columns=10)

# %% [markdown]
# Fewer evaluations: fixed-step solvers. 35 of Heun are EDM's recipe, `dpmpp_3m` and `ipndm` need about ten.

# %%
for solver, steps in [("heun", 18), ("dpmpp_3m", 10), ("ipndm", 6)]:
    images, stats = g.sample(jax.random.key(0), 10, solver=solver, steps=steps)
    print(f"{solver}, {stats.nfe} evaluations")
    display(plots.grid(images, columns=10))  # noqa: F821  (a notebook has it)

# %% [markdown]
# ## From the prior to a digit
# Ten states of the same solve. At the largest σ the data look like one charge, and a sample is a draw from its kernel.

# %%
_, stats = g.sample(jax.random.key(0), 8, solver="heun", steps=18, frames=10)
scale = np.sqrt(g.derived["std"] ** 2 + stats.sigmas**2)  # what a pixel's spread is at each level
states = [pf.to_uint8(0.7 * state / s) for state, s in zip(stats.trajectory, scale, strict=True)]
print("σ:", ", ".join(f"{sigma:.3g}" for sigma in stats.sigmas))
plots.grid(np.stack(states, axis=1).reshape(-1, *g.shape), columns=len(states))

# %% [markdown]
# ## Ask for a class
# A network trained with `:conditional` is conditioned on a class. This one has a minute of training: its digits are
# rough.

# %%
settings = {"train.images": 25_600, "train.eval_every": 25_600, "sample.solver": "heun"}
config = pf.load_config("digits:conditional", settings)
pf.train(config, "runs/digits_by_class")
by_class = pf.load("runs/digits_by_class")
images, _ = by_class.sample(jax.random.key(0), 40, labels=list(range(10)) * 4, guidance=1.5)
plots.grid(images, columns=10)

# %%
plt.close("all")
