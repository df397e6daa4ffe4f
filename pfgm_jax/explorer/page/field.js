// The exact field of charges in float64, as pfgm_jax/flow/field.py has it. Pure mathematics: no page, no state.
//
// N is the dimension of the data (2 in the plane, 1 in the half-space), D that of what is added, Infinity for the
// Gaussian. With s_i = ‖x − y_i‖² + D σ² the weights are w_i = s_i^(−(N + D)/2), or exp(−‖x − y_i‖²/(2σ²)); they are
// taken relative to that of the nearest charge, so that nothing overflows.

const Field = (() => {
  const NEGLIGIBLE = 42; // weights below e^−42 of the nearest charge's are left out

  /** Charges of points [[x, y], …] as columns; for N = 1 only x counts. */
  function charges(points, N) {
    const n = points.length;
    const set = { N, n, x: new Float64Array(n), y: new Float64Array(n) };
    points.forEach(([x, y], i) => {
      set.x[i] = x;
      set.y[i] = N === 2 ? y : 0;
    });
    return set;
  }

  let squares = new Float64Array(256); // ‖x − y_i‖² of the point at hand

  /**
   * Moments of p(y | x, σ) at x = (px, py): out = [x − E[y], its second coordinate, E‖x − y‖², d²].
   *
   * d² is the squared distance at which one charge would make the same potential, the power mean of s_i with exponent
   * −(N + D − 2)/2, less D σ²: its level lines are the equipotentials of the plane at this σ.
   */
  function moments(set, D, sigma, px, py, out) {
    const { n, x, y, N } = set;
    if (squares.length < n) squares = new Float64Array(2 * n);
    let nearest = Infinity;
    let m = 0;
    for (let i = 0; i < n; i++) {
      const dx = px - x[i];
      const dy = py - y[i];
      const squared = dx * dx + dy * dy;
      squares[i] = squared;
      if (squared < nearest) {
        nearest = squared;
        m = i;
      }
    }
    const gaussian = D === Infinity;
    const scale = gaussian ? 2 * sigma * sigma : nearest + D * sigma * sigma;
    const twice = N + D;
    const farthest = gaussian ? NEGLIGIBLE * scale : scale * Math.expm1((2 * NEGLIGIBLE) / twice);
    const few = twice <= 12 && twice === Math.floor(twice); // so few products are faster than a logarithm
    let weight = 0;
    let mx = 0;
    let my = 0;
    let excess = 0;
    for (let i = 0; i < n; i++) {
      const delta = squares[i] - nearest;
      if (delta > farthest) continue;
      let w = 1;
      if (few) {
        const ratio = scale / (scale + delta);
        if (twice & 1) w = Math.sqrt(ratio);
        for (let k = twice >> 1; k > 0; k--) w *= ratio;
      } else {
        w = Math.exp(gaussian ? -delta / scale : (-twice / 2) * Math.log(1 + delta / scale));
      }
      weight += w;
      mx += w * (x[i] - x[m]);
      my += w * (y[i] - y[m]);
      excess += w * delta;
    }
    out[0] = px - x[m] - mx / weight;
    out[1] = py - y[m] - my / weight;
    out[2] = nearest + excess / weight;
    out[3] = nearest + potential(set, D, scale, px, py, nearest, weight, excess);
    return out;
  }

  /** What the charges beyond the nearest add to d² of `moments`. */
  function potential(set, D, scale, px, py, nearest, weight, excess) {
    if (D === Infinity) return -scale * Math.log(weight / set.n);
    const q = (set.N + D - 2) / 2;
    if (Math.abs(q) > 1e-9) {
      return scale * Math.expm1(-Math.log((weight + excess / scale) / set.n) / q);
    }
    let logs = 0; // N + D = 2: the potential is a logarithm, the power mean a geometric one
    for (let i = 0; i < set.n; i++) {
      logs += Math.log1p(((px - set.x[i]) ** 2 + (py - set.y[i]) ** 2 - nearest) / scale);
    }
    return scale * Math.expm1(logs / set.n);
  }

  /** The weights of p(y | x, σ), which sum to 1: each charge's share in the field. */
  function shares(set, D, sigma, px, py) {
    const squared = Array.from(set.x, (x, i) => (px - x) ** 2 + (py - set.y[i]) ** 2);
    const nearest = Math.min(...squared);
    const relative = squared.map((s) =>
      D === Infinity
        ? Math.exp((nearest - s) / (2 * sigma ** 2))
        : ((nearest + D * sigma ** 2) / (s + D * sigma ** 2)) ** ((set.N + D) / 2),
    );
    const sum = relative.reduce((a, b) => a + b, 0);
    return relative.map((w) => w / sum);
  }

  /** τ = (D + E‖x − y‖²/σ²)/(N + D − 2), the diffusion that keeps the marginals (flow/diffusion.py); 1 for D = ∞. */
  function tau(secondMoment, sigma, N, D) {
    return D === Infinity ? 1 : (D + secondMoment / sigma ** 2) / (N + D - 2);
  }

  /**
   * The field in the plane without extra dimensions: out = [E_x, E_y, 0, d²], E = mean (x − y)/(‖x − y‖² + blur²).
   *
   * A charge is a blob of radius `blur`; d², computed only if asked for, is as in `moments`.
   */
  function planar(set, blur, px, py, out, potential = false) {
    let ex = 0;
    let ey = 0;
    let logs = 0;
    for (let i = 0; i < set.n; i++) {
      const dx = px - set.x[i];
      const dy = py - set.y[i];
      const s = dx * dx + dy * dy + blur * blur;
      ex += dx / s;
      ey += dy / s;
      if (potential) logs += Math.log(s);
    }
    out[0] = ex / set.n;
    out[1] = ey / set.n;
    out[2] = 0;
    out[3] = potential ? Math.exp(logs / set.n) : NaN;
    return out;
  }

  /**
   * Flux of the half-space's field (N = 1) through the hemisphere of radius R around 0.
   *
   * Returns {angle, density, total, uneven}: R^D E·n at angles from the x axis, 1 where it is even; its mean over the
   * sphere of N + D − 1 dimensions, the share of the charge inside; and its standard deviation over the mean.
   */
  function flux(set, D, R, count = 256) {
    const angle = new Float64Array(count);
    const density = new Float64Array(count);
    let total = 0;
    let squares = 0;
    let area = 0;
    for (let k = 0; k < count; k++) {
      const v = (k + 0.5) / count; // steps of θ shrink towards both ends, where sin^(D−1) is infinite for D < 1
      const theta = Math.PI * v * v * (3 - 2 * v);
      const weight = 6 * v * (1 - v) * Math.pow(Math.sin(theta), D - 1);
      let sum = 0;
      for (let i = 0; i < set.n; i++) {
        const dx = R * Math.cos(theta) - set.x[i];
        const squared = dx * dx + (R * Math.sin(theta)) ** 2;
        const outwards = (dx * Math.cos(theta) + R * Math.sin(theta) ** 2) / R;
        sum += outwards * Math.exp(((D + 1) / 2) * Math.log((R * R) / squared));
      }
      angle[k] = theta;
      density[k] = sum / set.n;
      total += weight * density[k];
      squares += weight * density[k] ** 2;
      area += weight;
    }
    const mean = total / area;
    return { angle, density, total: mean, uneven: Math.sqrt(Math.max(squares / area - mean * mean, 0)) / mean };
  }

  return { charges, moments, shares, tau, planar, flux };
})();
