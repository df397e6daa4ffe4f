# %% [markdown]
# # The field, in two dimensions
# Data are charges on the line z = 0. Their field leads away from them, and generation walks it backwards.
# Everything here is the package's own field and solvers; the data are few enough to see all of it.

# %%
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import pfgm_jax as pf
from pfgm_jax import lessons
from pfgm_jax.lessons import hemisphere, shapes

points = shapes.heart(300).astype(np.float32)
points = shapes.heart(300).astype(np.float32)

# %% [markdown]
# ## One formula
# dx/dσ = (x − E[y | x, σ]) / σ, with σ = z at D = 1. `exact_denoiser` is E[y | x, σ] of the points, without a network.


# %%
def arrows(D, sigma, ax):
    side = np.linspace(-2, 2, 21, dtype=np.float32)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    d = np.asarray(pf.exact_denoiser(points, D)(x, sigma))
    ax.quiver(*x.T, *(d - x).T / np.linalg.norm(d - x, axis=1), np.linalg.norm(d - x, axis=1), cmap="viridis", scale=28)
    ax.plot(*points.T, ".", ms=2, color="black")
    ax.set(title=f"D = {D:g}, σ = {sigma:g}", aspect="equal", xticks=[], yticks=[])


figure, axes = plt.subplots(2, 3, figsize=(9, 6.2))
for row, sigma in zip(axes, (1.0, 0.2), strict=True):
    for ax, D in zip(row, (1.0, 128.0, np.inf), strict=True):
        arrows(D, sigma, ax)
plt.show()

# %% [markdown]
# ## A cloud falls onto the charges
# Points drawn from the prior of each D follow the flow down. All of them end on the heart.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for ax, D in zip(axes, (1.0, 128.0, np.inf), strict=True):
    process = pf.pfgmpp(D=D, sigma_max=20.0)
    x = pf.prior(process, jax.random.split(jax.random.key(0), 400), (2,))
    samples, stats = pf.rk45(process, pf.exact_denoiser(points, D), x, frames=40)
    for path in np.asarray(stats.trajectory)[:, :60].swapaxes(0, 1):
        ax.plot(*path.T, lw=0.5, color="0.7")
    ax.plot(*np.asarray(samples).T, ".", ms=3)
    ax.set(
        title=f"D = {D:g}, {int(stats.nfe)} evaluations",
        xlim=(-3, 3),
        ylim=(-3, 3),
        aspect="equal",
        xticks=[],
        yticks=[],
    )
plt.show()

# %% [markdown]
# ## Lessons, with their text
# `--mode=lessons` draws twelve of them; any one can be drawn alone.

# %%
with tempfile.TemporaryDirectory() as folder:
    lesson = lessons.draw(hemisphere.back_to_the_data, folder, quick=True)
    print(lesson.title, "\n", lesson.text, "\n", lesson.formula)
    for name in lesson.pictures:
        display(Image(filename=f"{folder}/{name}"))
