# %% [markdown]
# # Probing a trained model
# What can be asked of a network besides samples. On your own run, change the first line to `pf.load("runs/mine")`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import pfgm_jax as pf
from pfgm_jax import plots

g = pf.load("pretrained:digits")
real = pf.load_data(g.config.data)
g

# %% [markdown]
# ## Denoise at each σ
# The posterior mean E[y | x, σ] of the same digit at growing noise: the digit, then a class, then the mean of
# all. Rows: what the network sees (scaled to be seen), what it answers, and the exact answer for the training set.

# %%
sigmas = np.geomspace(0.05, 5, 8, dtype=np.float32)
y = np.repeat(pf.to_unit(real.test.images[:1]), len(sigmas), axis=0)
x = np.asarray(pf.perturb(g.process, jax.random.split(jax.random.key(1), len(sigmas)), y, sigmas))
answer = np.asarray(g.denoise(x, sigmas))
exact = np.asarray(pf.exact_denoiser(pf.to_unit(real.train.images), g.process.D)(x, sigmas))
seen = x / np.sqrt(1 + sigmas[:, None, None, None] ** 2)
print("σ:", ", ".join(f"{sigma:.2g}" for sigma in sigmas))
plots.grid(pf.to_uint8(np.concatenate([seen, answer, exact]).clip(-1, 1)), columns=len(sigmas))

# %% [markdown]
# ## Distance to the truth
# Where the network differs from the exact posterior mean of its training set. At small σ it should: a network that
# matched it there would only repeat its training images.

# %%
for sigma, a, b in zip(sigmas, answer, exact, strict=True):
    print(f"σ = {sigma:5.2f}: root mean square difference {np.sqrt(((a - b) ** 2).mean()):.3f}")

# %% [markdown]
# ## Other D, other solvers
# The same weights at another D than the one trained, and what the solvers cost.

# %%
for D in (32.0, 128.0, np.inf):
    images, stats = g.sample(jax.random.key(0), 10, solver="heun", steps=18, D=D)
    print(f"D = {D:g}")
    display(plots.grid(images, columns=10))  # noqa: F821  (a notebook has it)

# %%
for solver, options in {
    "rk45": dict(rtol=1e-4, atol=1e-4),
    "heun": dict(steps=18),
    "dpmpp_3m": dict(steps=12),
    "ipndm": dict(steps=8),
}.items():
    images, stats = g.sample(jax.random.key(0), 10, solver=solver, **options)
    print(f"{solver}: {int(stats.nfe)} evaluations")
    display(plots.grid(images, columns=10))  # noqa: F821

# %% [markdown]
# ## Latents
# The flow is a bijection: images have latents at σ_max, and come back. Between two latents lies a path of digits.

# %%
latents = g.encode(real.test.images[:2], solver="heun", steps=32)
back = g.decode(latents)
print("largest change of a grey level there and back:", np.abs(back.astype(int) - real.test.images[:2]).max())
plots.grid(g.interpolate(latents[:1], latents[1:], n=9), columns=9)

# %% [markdown]
# ## Likelihood
# Nats in the unit scale with their error, and bits per dimension: of real digits, and of the same digits upside down.

# %%
digits = real.test.images[:16]
for name, images in {"digits": digits, "upside down": digits[:, ::-1]}.items():
    log_prob = g.log_likelihood(images, jax.random.key(0), rtol=1e-3, atol=1e-3).log_prob
    print(f"{name}: {pf.bits_per_dim(log_prob, digits[0].size).mean():.2f} bits/dim")

# %% [markdown]
# ## Restoration, with uncertainty
# Draws of the posterior given half of each image: the mean, single draws, and where they differ.

# %%
mask = np.zeros((8, 8), bool)
mask[:4] = True  # True where observed
truth = real.test.images[:8]
restored = g.restore(
    np.where(mask[..., None], truth, 0).astype(np.uint8), "inpaint", mask=mask, n=8, key=jax.random.key(0)
)
rows = [truth, *(pf.to_uint8(np.asarray(a).clip(-1, 1)) for a in (restored.mean, restored.draws[0], restored.draws[1]))]
display(plots.grid(np.concatenate(rows), columns=8))  # noqa: F821
plt.figure(figsize=(8, 1.3))
plt.imshow(np.concatenate(list(np.asarray(restored.std)[..., 0]), axis=1), cmap="magma")
plt.title("standard deviation of the draws")
plt.axis("off")
plt.show()
