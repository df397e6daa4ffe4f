// Paints what single lessons show besides field, samples and charges. `p` is the Painter.

const Overlays = {
  /** The hemisphere, and around it the density of the flux as a band: as thick as 1 where it is even. */
  hemisphere(p, { R }, { angle, density }) {
    const c = p.context;
    const [x, y] = p.screen(0, 0);
    const radius = R * p.unit;
    const band = 0.09 * radius;
    c.beginPath();
    c.arc(x, y, radius, Math.PI, 0);
    for (let k = 0; k < angle.length; k++) {
      const reach = radius + band * Math.min(Math.max(density[k], -0.9), 2.8);
      c.lineTo(x + reach * Math.cos(angle[k]), y - reach * Math.sin(angle[k]));
    }
    c.closePath();
    c.fillStyle = p.colours.path;
    c.globalAlpha = 0.28;
    c.fill();
    c.globalAlpha = 1;
    c.strokeStyle = p.colours.path;
    c.lineWidth = 1.6;
    c.beginPath();
    c.arc(x, y, radius, Math.PI, 0);
    c.stroke();
    c.setLineDash([3, 4]);
    c.lineWidth = 1;
    c.beginPath();
    c.arc(x, y, radius + band, Math.PI, 0);
    c.stroke();
    c.setLineDash([]);
  },

  /** Lines [[x, y, x, y, …], …]. */
  lines(p, lines, colour, width, dash = []) {
    const c = p.context;
    c.strokeStyle = p.colours[colour];
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    for (const line of lines) {
      for (let k = 0; k < line.length; k += 2) c[k ? "lineTo" : "moveTo"](...p.screen(line[k], line[k + 1]));
    }
    c.stroke();
    c.setLineDash([]);
  },

  /** Balls, dashed, and the field lines from the same places. */
  balls(p, { pairs }) {
    Overlays.lines(p, pairs.map(({ line }) => line), "path", 2.2);
    Overlays.lines(p, pairs.map(({ path }) => path), "sample", 2, [7, 5]);
    Overlays.dots(p, pairs.map(({ line }) => [line[0], line[1]]), "muted", 4);
    Overlays.dots(p, pairs.map(({ path }) => [path.at(-2), path.at(-1)]), "sample", 4);
  },

  dots(p, points, colour, radius) {
    const c = p.context;
    c.fillStyle = p.colours[colour];
    c.beginPath();
    for (const point of points) {
      const [x, y] = p.screen(...point);
      c.moveTo(x + radius, y);
      c.arc(x, y, radius, 0, 2 * Math.PI);
    }
    c.fill();
  },

  /** Even places of the hemisphere carried along rays to the line at height R, and above it the law of the prior. */
  rays(p, { R, D }) {
    const angles = Lines.equalAngles(D, 24);
    const ends = angles.map((a) => [R / Math.tan(a), R]);
    const [left, right] = [p.world(0, 0)[0], p.world(p.width, 0)[0]];
    Overlays.lines(p, ends.map((end) => [0, 0, ...end]), "muted", 1);
    Overlays.lines(p, [[left, R, right, R]], "level", 2);
    const law = Array.from({ length: 121 }, (_, k) => left + (k / 120) * (right - left)).flatMap((x) => [
      x, R * (1 + 0.3 * (1 + (x / R) ** 2) ** (-(1 + D) / 2)),
    ]);
    Overlays.lines(p, [law], "arrow", 2.2);
    Overlays.dots(p, angles.map((a) => [R * Math.cos(a), R * Math.sin(a)]), "path", 4);
    Overlays.dots(p, ends, "level", 4);
  },

  /** Targets at the probe, and with a cross what they are on average, the posterior mean. */
  targets(p, { points, mean }) {
    const c = p.context;
    c.globalAlpha = 0.7;
    Overlays.dots(p, points, "part", 3.5);
    c.globalAlpha = 1;
    const [x, y] = p.screen(...mean);
    for (const [colour, width] of [["paper", 7], ["arrow", 3.5]]) {
      c.strokeStyle = p.colours[colour];
      c.lineWidth = width;
      c.beginPath();
      for (const sign of [1, -1]) {
        c.moveTo(x - 8, y - 8 * sign);
        c.lineTo(x + 8, y + 8 * sign);
      }
      c.stroke();
    }
  },
};
