// Paths from the prior to the data: noise, steps and solvers, as pfgm_jax/sampling has them. Pure mathematics.
//
// A flow is {velocity(x, y, level, out), start, end}: dx/dlevel, where the level is σ, falling, or the time t of the
// plane without extra dimensions, rising. A path is {level, x, y, slope, nfe}, the states after every step.

const Flow = (() => {
  const RHO = 7; // of EDM's grid

  /** Uniform numbers in (0, 1) from a seed (mulberry32). */
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
  }

  function normal(uniform) {
    return Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** A gamma draw of scale 1 (Marsaglia and Tsang 2000). */
  function gamma(uniform, shape) {
    if (shape < 1) return gamma(uniform, shape + 1) * Math.pow(uniform(), 1 / shape);
    const d = shape - 1 / 3;
    for (;;) {
      const g = normal(uniform);
      const v = (1 + g / Math.sqrt(9 * d)) ** 3;
      if (v > 0 && Math.log(uniform()) < g * g / 2 + d - d * v + d * Math.log(v)) return d * v;
    }
  }

  /** A draw [x, y] of the kernel at σ = 1 and y = 0: a Gaussian over √(χ²_D / D). */
  function kernelNoise(uniform, N, D) {
    const factor = D === Infinity ? 1 : Math.sqrt(D / (2 * gamma(uniform, D / 2)));
    return [factor * normal(uniform), N === 2 ? factor * normal(uniform) : 0];
  }

  /** A point [x, r] drawn evenly from the unit hemisphere of 1 + D dimensions, r the distance in the D. */
  function onHemisphere(uniform, D) {
    const x = normal(uniform);
    const r = Math.sqrt(2 * gamma(uniform, D / 2));
    const norm = Math.hypot(x, r);
    return [x / norm, r / norm];
  }

  /** The level at a share u of the way, evenly spaced in level^(1/7), as EDM's grid (arXiv 2206.00364, eq. 5). */
  function between(start, end, u) {
    if (start === 0) return u * end;
    const high = Math.pow(start, 1 / RHO);
    return Math.pow(high + u * (Math.pow(end, 1 / RHO) - high), RHO);
  }

  /** The flow of charges in σ: dx/dσ = (x − E[y | x, σ])/σ. */
  function descent(set, D, start, end) {
    const velocity = (x, y, sigma, out) => {
      Field.moments(set, D, sigma, x, y, out);
      out[0] /= sigma;
      out[1] /= sigma;
    };
    return { set, D, start, end, velocity, denoised: true };
  }

  /** The flow against the field of the plane: dx/dt = −E. */
  function planarDescent(set, blur, end) {
    const velocity = (x, y, t, out) => {
      Field.planar(set, blur, x, y, out);
      out[0] = -out[0];
      out[1] = -out[1];
    };
    return { set, start: 0, end, velocity, denoised: false };
  }

  /** Appends a state, with its slope by the logarithm of the level (by t where the level is a time). */
  function keep(path, level, x, y, slopeX = NaN, slopeY = NaN) {
    path.level.push(level);
    path.x.push(x);
    path.y.push(y);
    path.slope.push([slopeX, slopeY]);
  }

  const empty = () => ({ level: [], x: [], y: [], slope: [], nfe: 0, log: false });

  /** Ends a path in σ with E[y | x, σ_min], one evaluation. */
  function denoise(flow, path) {
    if (!flow.denoised) return path;
    const last = path.x.length - 1;
    const out = Field.moments(flow.set, flow.D, flow.end, path.x[last], path.y[last], [0, 0, 0, 0]);
    keep(path, 0, path.x[last] - out[0], path.y[last] - out[1]);
    path.nfe++;
    return path;
  }

  /** Euler's steps (DDIM) or, with `second`, Heun's on EDM's grid of `steps` levels. */
  function fixed(flow, x, y, steps, second) {
    const path = empty();
    const a = [0, 0, 0, 0];
    const b = [0, 0, 0, 0];
    keep(path, flow.start, x, y);
    for (let k = 1; k < steps; k++) {
      const level = path.level[k - 1];
      const next = between(flow.start, flow.end, k / (steps - 1));
      const h = next - level;
      flow.velocity(x, y, level, a);
      path.nfe++;
      if (second) {
        flow.velocity(x + h * a[0], y + h * a[1], next, b);
        path.nfe++;
        a[0] = (a[0] + b[0]) / 2;
        a[1] = (a[1] + b[1]) / 2;
      }
      x += h * a[0];
      y += h * a[1];
      keep(path, next, x, y);
    }
    return denoise(flow, path);
  }

  // Dormand and Prince (1980): stages, the fifth order's weights (also the last stage), error weights.
  const C = [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1];
  const A = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
  ];
  const E = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40];

  /** RK45 with its own step sizes, in ln σ or, without `log`, in the level, at rtol = atol = `tolerance`. */
  function rk45(flow, x, y, tolerance, log = flow.denoised) {
    const slope = (t, x, y, out) => {
      const level = log ? Math.exp(t) : t;
      flow.velocity(x, y, level, out);
      if (log) {
        out[0] *= level;
        out[1] *= level;
      }
    };
    let t = log ? Math.log(flow.start) : flow.start;
    const end = log ? Math.log(flow.end) : flow.end;
    const k = A.map(() => [0, 0, 0, 0]);
    const path = Object.assign(empty(), { log });
    let h = (end - t) / 50;
    slope(t, x, y, k[0]);
    path.nfe = 1;
    keep(path, flow.start, x, y, k[0][0], k[0][1]);
    for (let tries = 0; tries < 5000 && t !== end; tries++) {
      if ((t + h - end) * Math.sign(h) > 0) h = end - t;
      let nx = x;
      let ny = y;
      for (let i = 1; i < 7; i++) {
        nx = x;
        ny = y;
        for (let j = 0; j < i; j++) {
          nx += h * A[i][j] * k[j][0];
          ny += h * A[i][j] * k[j][1];
        }
        slope(t + C[i] * h, nx, ny, k[i]);
      }
      path.nfe += 6;
      let ex = 0;
      let ey = 0;
      for (let i = 0; i < 7; i++) {
        ex += h * E[i] * k[i][0];
        ey += h * E[i] * k[i][1];
      }
      ex /= tolerance * (1 + Math.max(Math.abs(x), Math.abs(nx)));
      ey /= tolerance * (1 + Math.max(Math.abs(y), Math.abs(ny)));
      const error = Math.sqrt((ex * ex + ey * ey) / 2);
      if (error <= 1) {
        t = h === end - t ? end : t + h;
        x = nx;
        y = ny;
        [k[0], k[6]] = [k[6], k[0]];
        keep(path, log ? Math.exp(t) : t, x, y, k[0][0], k[0][1]);
      }
      h *= Math.min(5, Math.max(0.2, 0.9 * Math.pow(error + 1e-12, -0.2)));
      if (!flow.denoised) h = Math.min(h, flow.end / 20); // a longer one may jump over a charge
    }
    return denoise(flow, path);
  }

  /** A step of the reverse SDE from σ to σ′ (sampling/reverse_sde.py, eq. 2); `moments` are of the state at σ. */
  function sdeStep(moments, x, y, sigma, next, lambda, N, D, noise) {
    const ratio = next / sigma;
    const kept = Math.pow(ratio, 1 + lambda) - 1;
    const tau = lambda ? Field.tau(moments[2], sigma, N, D) : 0;
    const spread = next * Math.sqrt(tau * -Math.expm1(2 * lambda * Math.log(ratio)));
    return [x + kept * moments[0] + spread * noise[0], N === 2 ? y + kept * moments[1] + spread * noise[1] : 0];
  }

  /** The reverse SDE with noise λ on EDM's grid of `steps` levels. */
  function sde(flow, x, y, steps, lambda, uniform) {
    const path = empty();
    const out = [0, 0, 0, 0];
    keep(path, flow.start, x, y);
    for (let k = 1; k < steps; k++) {
      const sigma = path.level[k - 1];
      const next = between(flow.start, flow.end, k / (steps - 1));
      Field.moments(flow.set, flow.D, sigma, x, y, out);
      path.nfe++;
      const noise = [normal(uniform), normal(uniform)];
      [x, y] = sdeStep(out, x, y, sigma, next, lambda, flow.set.N, flow.D, noise);
      keep(path, next, x, y);
    }
    return denoise(flow, path);
  }

  /** A path by the solver of `how`: {solver: "euler" | "heun" | "rk45", steps, tolerance, clock, lambda}. */
  function solve(flow, x, y, how, uniform) {
    if (how.lambda > 0 && flow.denoised) return sde(flow, x, y, how.steps, how.lambda, uniform);
    if (how.solver === "rk45") return rk45(flow, x, y, how.tolerance, flow.denoised && how.clock !== "level");
    return fixed(flow, x, y, how.steps, how.solver === "heun");
  }

  /**
   * States of a path at `count` levels evenly spaced by `between`, as put(k, x, y).
   *
   * Between two steps by a cubic in the variable of the steps where slopes are known (RK45), else along a line in the
   * level; the last is the path's own end.
   */
  function resample(flow, path, count, put) {
    const last = path.x.length - 1;
    let i = 0;
    for (let k = 0; k < count - 1; k++) {
      const level = between(flow.start, flow.end, k / (count - 1));
      while (i < last - 1 && (level - path.level[i + 1]) * (flow.end - flow.start) > 0) i++;
      const [a, b] = [path.level[i], path.level[i + 1]];
      const [pa, pb] = [path.slope[i], path.slope[i + 1]];
      if (Number.isNaN(pa[0]) || Number.isNaN(pb[0]) || b === 0) {
        const s = Math.min(Math.max((level - a) / (b - a), 0), 1);
        put(k, path.x[i] + s * (path.x[i + 1] - path.x[i]), path.y[i] + s * (path.y[i + 1] - path.y[i]));
        continue;
      }
      const h = path.log ? Math.log(b / a) : b - a;
      const s = (path.log ? Math.log(level / a) : level - a) / h;
      const cubic = (from, to, m, n) =>
        (1 + 2 * s) * (1 - s) ** 2 * from + s * s * (3 - 2 * s) * to + h * s * (1 - s) * ((1 - s) * m - s * n);
      put(k, cubic(path.x[i], path.x[i + 1], pa[0], pb[0]), cubic(path.y[i], path.y[i + 1], pa[1], pb[1]));
    }
    put(count - 1, path.x[last], path.y[last]);
  }

  return {
    random, normal, gamma, kernelNoise, onHemisphere, between, descent, planarDescent, fixed, rk45, sdeStep, sde, solve,
    resample,
  };
})();
