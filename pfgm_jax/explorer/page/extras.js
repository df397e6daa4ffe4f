// What single lessons need beside the flow: balls with inertia, targets of a batch, an even density. Pure mathematics.

const Extras = (() => {
  const BALLS = 8;
  const TARGETS = 300;
  const STEEPEST = 64; // D above which balls are not followed: their force overflows near a charge
  const HEIGHT = 0.1; // z at which the error of the posterior mean is measured

  /** Charges in the middles of `count` even pieces of [−1, 1]: as good as the even density there (N = 1). */
  function even(count) {
    return Field.charges(Array.from({ length: count }, (_, i) => [(2 * i + 1) / count - 1, 0]), 1);
  }

  /**
   * The path [x, z, x, z, …] of a ball let go at rest: d²(x, z)/dt² = −E(x, z), until z = 0.
   *
   * E = mean (x − y_i, z)/s_i^((1 + D)/2), s_i = (x − y_i)² + z², over its size at the start, which changes no path.
   * Runge and Kutta's fourth order; steps are a small share of the distance to the nearest charge.
   */
  function ball(set, D, x, z, share = 0.04) {
    const scale = x * x + z * z;
    const force = ([px, pz]) => {
      let [ex, ez, nearest] = [0, 0, Infinity];
      for (let i = 0; i < set.n; i++) {
        const dx = px - set.x[i];
        const s = dx * dx + pz * pz;
        const w = Math.exp((-(1 + D) / 2) * Math.log(s / scale)) / set.n;
        ex -= w * dx;
        ez -= w * pz;
        nearest = Math.min(nearest, s);
      }
      return { a: [ex, ez], nearest: Math.sqrt(nearest) };
    };
    let [p, v] = [[x, z], [0, 0]];
    const path = [x, z];
    const moved = (from, by, h) => [from[0] + h * by[0], from[1] + h * by[1]];
    for (let k = 0; k < 4000; k++) {
      const { a, nearest } = force(p);
      const h = share * Math.min(Math.sqrt(nearest / Math.hypot(...a)), nearest / Math.max(Math.hypot(...v), 1e-12));
      const v2 = moved(v, a, h / 2);
      const a2 = force(moved(p, v, h / 2)).a;
      const v3 = moved(v, a2, h / 2);
      const a3 = force(moved(p, v2, h / 2)).a;
      const v4 = moved(v, a3, h);
      const a4 = force(moved(p, v3, h)).a;
      const mean = (b, c, d, e) => [0, 1].map((j) => (b[j] + 2 * c[j] + 2 * d[j] + e[j]) / 6);
      const next = moved(p, mean(v, v2, v3, v4), h);
      v = moved(v, mean(a, a2, a3, a4), h);
      if (next[1] <= 0) {
        path.push(p[0] + (p[1] / (p[1] - next[1])) * (next[0] - p[0]), 0);
        break;
      }
      p = next;
      path.push(...p);
    }
    return path;
  }

  /** Job: BALLS of them from even places of the hemisphere of radius R, each with the field line from there. */
  function* balls(set, D, R) {
    const pairs = [];
    let missed = 0;
    for (const angle of Lines.equalAngles(D, BALLS)) {
      const [x, z] = [R * Math.cos(angle), R * Math.sin(angle)];
      const root = Math.sqrt(D);
      const flow = Flow.descent(set, D, z / root, (0.001 * R) / root);
      const line = [];
      Flow.resample(flow, Flow.rk45(flow, x, 0, 1e-6), 100, (k, px) =>
        line.push(px, root * Flow.between(flow.start, flow.end, k / 99)),
      );
      yield;
      const path = ball(set, D, x, z);
      missed += Math.abs(path.at(-2) - line.at(-2)) / BALLS;
      pairs.push({ line, path });
      yield;
    }
    return { pairs, missed };
  }

  /**
   * Job: what a network may be told at (px, py), σ: the mean of a batch of charges, weighted as in the posterior.
   *
   * The first of a batch is the clean one, a draw of p(y | x, σ); the others are drawn evenly. Returns {points: [[x, y],
   * …], mean: [x, y], variance: of the targets around it, posterior: that of p(y | x, σ)}.
   */
  function* targets(set, D, sigma, px, py, batch, count = TARGETS) {
    const uniform = Flow.random(5);
    const share = Field.shares(set, D, sigma, px, py);
    const sums = [];
    share.reduce((sum, w) => (sums[sums.length] = sum + w), 0);
    const mean = [0, 0];
    for (let i = 0; i < set.n; i++) {
      mean[0] += share[i] * set.x[i];
      mean[1] += share[i] * set.y[i];
    }
    const from = (x, y) => (x - mean[0]) ** 2 + (y - mean[1]) ** 2;
    const points = [];
    for (let k = 0; k < count; k++) {
      const u = uniform() * sums.at(-1);
      let i = Math.max(sums.findIndex((sum) => sum >= u), 0);
      let [w, x, y] = [0, 0, 0];
      for (let j = 0; j < batch; j++) {
        w += share[i];
        x += share[i] * set.x[i];
        y += share[i] * set.y[i];
        i = Math.floor(uniform() * set.n);
      }
      points.push([x / w, y / w]);
      if (k % 8 === 7) yield;
    }
    return {
      points,
      mean,
      variance: points.reduce((sum, point) => sum + from(...point), 0) / count,
      posterior: share.reduce((sum, w, i) => sum + w * from(set.x[i], set.y[i]), 0),
    };
  }

  /** rms distance of E[y | x, z] of the charges to that of the even density, at 40 places of z = HEIGHT. */
  function distance(set, D) {
    const dense = even(2000);
    const sigma = D === Infinity ? HEIGHT : HEIGHT / Math.sqrt(D);
    let squares = 0;
    for (let k = 0; k < 40; k++) {
      const x = -0.9 + (1.8 * k) / 39;
      const [a, b] = [set, dense].map((each) => Field.moments(each, D, sigma, x, 0, [])[0]);
      squares += (a - b) ** 2 / 40;
    }
    return Math.sqrt(squares);
  }

  return { STEEPEST, even, ball, balls, targets, distance };
})();
