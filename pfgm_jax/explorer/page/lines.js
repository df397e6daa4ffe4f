// Lines of a field: evenly spaced field lines, level lines, and those that leave a hemisphere. Pure mathematics.
//
// What takes longer than a frame is a generator: it yields now and then, and returns its result at the end.

const Lines = (() => {
  /**
   * Field lines of `direction(x, y, out)` in a box, nowhere nearer to each other than about `gap` (after Jobard and
   * Lefer 1997): each line proposes starts beside it for the next.
   *
   * box: {left, right, bottom, top}. Returns lines [[x, y, x, y, …], …], along the field.
   */
  function* even(direction, box, gap, stop) {
    const columns = Math.ceil((box.right - box.left) / gap) + 1;
    const rows = Math.ceil((box.top - box.bottom) / gap) + 1;
    const cells = Array.from({ length: columns * rows }, () => []);
    const cell = (v, from) => Math.floor((v - from) / gap);
    const inside = (x, y) => x >= box.left && x <= box.right && y >= box.bottom && y <= box.top;
    const free = (x, y, distance) => {
      const [c, r] = [cell(x, box.left), cell(y, box.bottom)];
      for (let i = Math.max(r - 1, 0); i <= Math.min(r + 1, rows - 1); i++) {
        for (let j = Math.max(c - 1, 0); j <= Math.min(c + 1, columns - 1); j++) {
          const near = cells[i * columns + j];
          for (let k = 0; k < near.length; k += 2) {
            if ((near[k] - x) ** 2 + (near[k + 1] - y) ** 2 < distance * distance) return false;
          }
        }
      }
      return true;
    };
    const out = [0, 0, 0, 0];
    const half = function* (x, y, sign) {
      const points = [];
      const step = gap / 4;
      let [lastX, lastY] = [0, 0];
      for (let k = 0; k < 400; k++) {
        if (k % 8 === 7) yield;
        direction(x, y, out);
        let norm = Math.hypot(out[0], out[1]);
        if (norm < 1e-9) break;
        const [mx, my] = [x + (sign * step * out[0]) / norm / 2, y + (sign * step * out[1]) / norm / 2];
        direction(mx, my, out);
        norm = Math.hypot(out[0], out[1]);
        if (norm < 1e-9) break;
        const [dx, dy] = [(sign * step * out[0]) / norm, (sign * step * out[1]) / norm];
        if (dx * lastX + dy * lastY < 0.7 * step * step && k) break; // the field turns here: nothing to follow
        [lastX, lastY] = [dx, dy];
        x += dx;
        y += dy;
        if (!inside(x, y) || !free(x, y, gap * 0.55) || stop(x, y)) break;
        points.push(x, y);
      }
      return points;
    };
    const lines = [];
    const seeds = [];
    for (let i = 0; i < 4; i++) {
      for (let j = 0; j < 4; j++) {
        seeds.push(
          box.left + ((i + 0.5) / 4) * (box.right - box.left),
          box.bottom + ((j + 0.5) / 4) * (box.top - box.bottom),
        );
      }
    }
    for (let s = 0; s < seeds.length && lines.length < 400; s += 2) {
      const [x, y] = [seeds[s], seeds[s + 1]];
      if (!inside(x, y) || !free(x, y, gap)) continue;
      const back = yield* half(x, y, -1);
      const line = [];
      for (let k = back.length - 2; k >= 0; k -= 2) line.push(back[k], back[k + 1]);
      line.push(x, y, ...(yield* half(x, y, 1)));
      if (line.length < 16) continue;
      lines.push(line);
      for (let k = 0; k < line.length; k += 2) {
        cells[cell(line[k + 1], box.bottom) * columns + cell(line[k], box.left)].push(line[k], line[k + 1]);
        if (k % 8 || k + 3 >= line.length) continue;
        const [dx, dy] = [line[k + 2] - line[k], line[k + 3] - line[k + 1]];
        const norm = Math.hypot(dx, dy) || 1;
        for (const side of [1.05, -1.05]) {
          seeds.push(line[k] - (side * gap * dy) / norm, line[k + 1] + (side * gap * dx) / norm);
        }
      }
      yield;
    }
    return lines;
  }

  /** Values of `value(x, y)` on a grid of columns × rows over a box. */
  function* grid(value, box, columns, rows) {
    const values = new Float64Array(columns * rows);
    for (let i = 0; i < rows; i++) {
      const y = box.bottom + (i / (rows - 1)) * (box.top - box.bottom);
      for (let j = 0; j < columns; j++) {
        values[i * columns + j] = value(box.left + (j / (columns - 1)) * (box.right - box.left), y);
      }
      yield;
    }
    return { values, columns, rows, box };
  }

  /** Segments [x, y, x, y, …] of the level line of a grid's values (marching squares; saddles by their mean). */
  function contour({ values, columns, rows, box }, level) {
    const segments = [];
    const dx = (box.right - box.left) / (columns - 1);
    const dy = (box.top - box.bottom) / (rows - 1);
    const at = [0, 0, 0, 0];
    const corners = [0, 0, 1, 0, 1, 1, 0, 1];
    for (let i = 0; i + 1 < rows; i++) {
      for (let j = 0; j + 1 < columns; j++) {
        const first = i * columns + j;
        at[0] = values[first] - level;
        at[1] = values[first + 1] - level;
        at[2] = values[first + columns + 1] - level;
        at[3] = values[first + columns] - level;
        const crossings = [];
        for (let e = 0; e < 4; e++) {
          const [a, b] = [e, (e + 1) % 4];
          if (at[a] > 0 === at[b] > 0) continue;
          const s = at[a] / (at[a] - at[b]);
          crossings.push(
            box.left + (j + corners[2 * a] + s * (corners[2 * b] - corners[2 * a])) * dx,
            box.bottom + (i + corners[2 * a + 1] + s * (corners[2 * b + 1] - corners[2 * a + 1])) * dy,
          );
        }
        const cut = at[0] + at[1] + at[2] + at[3] > 0 !== at[0] > 0; // a saddle's first corner from its middle
        if (crossings.length === 8 && cut) crossings.push(...crossings.splice(0, 2));
        segments.push(...crossings);
      }
    }
    return segments;
  }

  /** `count` angles from the x axis that split the unit hemisphere of 1 + D dimensions into equal areas. */
  function equalAngles(D, count) {
    const nodes = 4000;
    const theta = (k) => Math.PI * (k / nodes) ** 2 * (3 - (2 * k) / nodes);
    const share = [0];
    for (let k = 1; k <= nodes; k++) {
      const middle = (theta(k - 1) + theta(k)) / 2;
      share.push(share[k - 1] + Math.pow(Math.sin(middle), D - 1) * (theta(k) - theta(k - 1)));
    }
    const angles = [];
    for (let i = 0, k = 0; i < count; i++) {
      while (share[k + 1] < ((i + 0.5) / count) * share[nodes]) k++;
      angles.push(theta(k + 0.5));
    }
    return angles;
  }

  return { even, grid, contour, equalAngles };
})();
