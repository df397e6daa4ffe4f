// Paints a scene on a canvas. World coordinates: x to the right, y (or z) upwards.

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.colours = {};
  }

  /** Reads the theme's colours and fits the canvas to its place on the page. */
  fit() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["paper", "ink", "muted", "line", "level", "sample", "path", "arrow", "part"]) {
      this.colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
    const { width, height } = this.canvas.getBoundingClientRect();
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    [this.width, this.height] = [Math.max(width, 1), Math.max(height, 1)];
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
  }

  /** Places the camera: the plane around 0, or the half-space up to a little above the hemisphere. */
  look(state, sigma) {
    const { width, height } = this;
    if (state.view === "half") {
      this.unit = Math.min(width / (2.7 * state.R), height / (1.55 * state.R)); // pixels of a unit
      this.middle = [width / 2, height - 0.16 * state.R * this.unit - 18];
    } else {
      // As samples shrink from σ to the data, the frame follows them.
      const widened = state.z && state.cloud ? Math.sqrt(1 + sigma * sigma) : 1;
      this.unit = Math.min(width, height) / (2 * state.zoom * widened);
      this.middle = [width / 2, height / 2];
    }
  }

  /** The part of the view that is seen. */
  box(state) {
    const [left, top] = this.world(0, 0);
    const [right, bottom] = this.world(this.width, this.height);
    return { left, right, bottom: state.view === "half" ? 0 : bottom, top };
  }

  screen(x, y) {
    return [this.middle[0] + this.unit * x, this.middle[1] - this.unit * y];
  }

  world(px, py) {
    return [(px - this.middle[0]) / this.unit, (this.middle[1] - py) / this.unit];
  }

  paint(scene, marks) {
    const c = this.context;
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.fillStyle = this.colours.paper;
    c.fillRect(0, 0, this.width, this.height);
    c.lineCap = c.lineJoin = "round";
    const { state, results } = scene;
    if (state.view === "half") this.axes(state);
    if (results.levels) this.segments(results.levels.value);
    if (state.lines && !scene.empty) this.field(scene);
    if (results.density) Overlays.lines(this, results.density.value.lines, "level", 1.6, [6, 4]);
    if (results.flux) Overlays.hemisphere(this, state, results.flux.value);
    if (scene.projects(state)) Overlays.rays(this, state);
    if (results.balls) Overlays.balls(this, results.balls.value);
    if (results.followed) this.followed(results.followed.value.paths, state);
    if (state.cloud && !scene.empty) this.cloud(scene);
    this.charges(state, marks);
    if (results.targets) Overlays.targets(this, results.targets.value);
    if (state.probe && !scene.empty) this.arrows(scene);
    if (marks.cursor) this.cursor(marks.cursor);
    this.scale(state);
  }

  /** Field lines where they are those of this moment, else needles along the field, which are always. */
  field(scene) {
    const c = this.context;
    c.strokeStyle = this.colours.line;
    const lines = scene.results.lines;
    const stays = scene.state.view === "half";
    if (lines && (stays || lines.key === scene.keys.lines)) {
      c.globalAlpha = 0.62;
      c.lineWidth = 1.1;
      c.beginPath();
      for (const line of lines.value) {
        for (let k = 0; k < line.length; k += 2) {
          const [px, py] = this.screen(line[k], line[k + 1]);
          if (k) c.lineTo(px, py);
          else c.moveTo(px, py);
        }
      }
      c.stroke();
      this.heads(lines.value, stays);
    } else if (!stays) {
      this.needles(scene);
    }
    c.globalAlpha = 1;
  }

  /** Small arrow heads along the field, one on each line long enough. */
  heads(lines, stays) {
    const c = this.context;
    c.fillStyle = this.colours.line;
    c.beginPath();
    for (const line of lines) {
      if (line.length < 36) continue;
      const k = 2 * Math.floor((line.length / 2) * (stays ? 0.8 : 0.55));
      if (k + 3 >= line.length) continue;
      const [x, y] = this.screen(line[k], line[k + 1]);
      const [tx, ty] = this.screen(line[k + 2], line[k + 3]);
      const norm = Math.hypot(tx - x, ty - y) || 1;
      const [dx, dy] = [(tx - x) / norm, (ty - y) / norm];
      c.moveTo(x + 5 * dx, y + 5 * dy);
      c.lineTo(x - 3 * dx - 3 * dy, y - 3 * dy + 3 * dx);
      c.lineTo(x - 3 * dx + 3 * dy, y - 3 * dy - 3 * dx);
    }
    c.fill();
  }

  needles(scene) {
    const c = this.context;
    const out = [0, 0, 0, 0];
    const gap = Math.max(Math.min(this.width, this.height) / 17, 24);
    c.globalAlpha = 0.5;
    c.lineWidth = 1.2;
    c.beginPath();
    for (let px = (this.width % gap) / 2; px < this.width; px += gap) {
      for (let py = (this.height % gap) / 2; py < this.height; py += gap) {
        scene.fieldAt(...this.world(px, py), out);
        const norm = Math.hypot(out[0], out[1]);
        if (norm < 1e-9) continue;
        const [dx, dy] = [(gap * 0.36 * out[0]) / norm, (-gap * 0.36 * out[1]) / norm];
        c.moveTo(px - dx, py - dy);
        c.lineTo(px + dx, py + dy);
        c.lineTo(px + 0.6 * dx - 0.2 * dy, py + 0.6 * dy + 0.2 * dx);
        c.moveTo(px + dx, py + dy);
        c.lineTo(px + 0.6 * dx + 0.2 * dy, py + 0.6 * dy - 0.2 * dx);
      }
    }
    c.stroke();
  }

  segments(list) {
    const c = this.context;
    c.strokeStyle = this.colours.level;
    c.globalAlpha = 0.75;
    c.lineWidth = 1;
    c.beginPath();
    for (let k = 0; k < list.length; k += 4) {
      c.moveTo(...this.screen(list[k], list[k + 1]));
      c.lineTo(...this.screen(list[k + 2], list[k + 3]));
    }
    c.stroke();
    c.globalAlpha = 1;
  }

  axes(state) {
    const c = this.context;
    const [, ground] = this.screen(0, 0);
    c.strokeStyle = c.fillStyle = this.colours.muted;
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(0, ground);
    c.lineTo(this.width, ground);
    c.stroke();
    c.font = "italic 14px Georgia, serif";
    c.textAlign = "right";
    c.fillText("x", this.width - 10, ground - 8);
    c.textAlign = "left";
    c.fillText(state.D === Infinity ? "σ" : state.D === 1 ? "z" : "r", this.width / 2 + 8, 18);
  }

  cloud(scene) {
    const c = this.context;
    const { cloud, ready, state } = scene;
    const at = state.u * (Scene.FRAMES - 1);
    const k = Math.min(Math.floor(at), Scene.FRAMES - 2);
    const s = at - k;
    const size = this.width < 500 ? 1.8 : 2.2;
    const [mx, my] = this.middle;
    const unit = this.unit;
    c.fillStyle = this.colours.sample;
    c.globalAlpha = 0.72;
    c.beginPath();
    for (let i = 0; i < ready; i++) {
      const first = 2 * (Scene.FRAMES * i + k);
      const x = mx + unit * (cloud[first] + s * (cloud[first + 2] - cloud[first])) - size / 2;
      const y = my - unit * (cloud[first + 1] + s * (cloud[first + 3] - cloud[first + 1])) - size / 2;
      if (x > -9 && x < this.width + 9 && y > -9 && y < this.height + 9) c.rect(x, y, size, size);
    }
    c.fill();
    c.globalAlpha = 1;
  }

  /** Followed paths: dashed the exact one, whole the solver's, with a dot a step as far as the time has come. */
  followed(paths, state) {
    const c = this.context;
    c.strokeStyle = this.colours.path;
    c.lineWidth = 1;
    c.setLineDash([4, 4]);
    c.beginPath();
    for (const { exact } of paths) {
      for (let k = 0; k < exact.length; k += 2) c[k ? "lineTo" : "moveTo"](...this.screen(exact[k], exact[k + 1]));
    }
    c.stroke();
    c.setLineDash([]);
    c.lineWidth = 1.5;
    c.beginPath();
    const dots = [];
    for (const { x, y, level, flow } of paths) {
      const now = Flow.between(flow.start, flow.end, state.u);
      for (let k = 0; k < x.length; k++) {
        const done = state.u === 1 || (level[k] - now) * (flow.start - flow.end) > -1e-12;
        if (!done) break;
        const point = this.screen(x[k], y[k]);
        c[k ? "lineTo" : "moveTo"](...point);
        dots.push(point);
      }
    }
    c.stroke();
    c.fillStyle = this.colours.paper;
    c.lineWidth = 1.2;
    c.beginPath();
    for (const [x, y] of dots) {
      c.moveTo(x + 2.2, y);
      c.arc(x, y, 2.2, 0, 2 * Math.PI);
    }
    c.fill();
    c.stroke();
  }

  charges(state, { selected }) {
    const c = this.context;
    const few = state.charges.length <= 16;
    const radius = few ? 7 : state.charges.length <= 60 ? 4 : 2.6;
    const place = ([x, y]) => this.screen(x, state.view === "half" ? 0 : y);
    c.fillStyle = this.colours.ink;
    c.beginPath();
    for (const charge of state.charges) {
      const [x, y] = place(charge);
      c.moveTo(x + radius, y);
      c.arc(x, y, radius, 0, 2 * Math.PI);
    }
    c.fill();
    if (few) {
      c.strokeStyle = this.colours.paper;
      c.lineWidth = 1.6;
      c.beginPath();
      for (const charge of state.charges) {
        const [x, y] = place(charge);
        c.moveTo(x - 3.4, y);
        c.lineTo(x + 3.4, y);
        c.moveTo(x, y - 3.4);
        c.lineTo(x, y + 3.4);
      }
      c.stroke();
    }
    if (selected !== null && state.charges[selected]) {
      const [x, y] = place(state.charges[selected]);
      c.strokeStyle = this.colours.arrow;
      c.lineWidth = 2.5;
      c.beginPath();
      c.arc(x, y, radius + 5, 0, 2 * Math.PI);
      c.stroke();
    }
  }

  /** At the probe: the push of each charge, where they are few, and their sum. */
  arrows(scene) {
    const [x, y] = scene.state.probe;
    const out = scene.fieldAt(x, y, [0, 0, 0, 0]);
    const length = 0.24 * Math.min(this.width, this.height);
    const scale = length / Math.max(Math.hypot(out[0], out[1]), 1e-12);
    if (scene.charges.n <= 16) {
      for (const [dx, dy] of scene.pushes(x, y)) this.arrow(x, y, scale * dx, scale * dy, this.colours.part, 2);
    }
    this.arrow(x, y, scale * out[0], scale * out[1], this.colours.arrow, 4);
    const [px, py] = this.screen(x, y);
    const c = this.context;
    c.fillStyle = this.colours.sample;
    c.beginPath();
    c.arc(px, py, 7, 0, 2 * Math.PI);
    c.fill();
  }

  /** An arrow from a world point by (dx, dy) pixels, y upwards. */
  arrow(x, y, dx, dy, colour, width) {
    const c = this.context;
    const [px, py] = this.screen(x, y);
    const norm = Math.hypot(dx, dy);
    if (norm < 2) return;
    const [ex, ey] = [dx / norm, -dy / norm];
    const head = Math.min(4 + 2.4 * width, norm);
    const [tx, ty] = [px + dx, py - dy];
    c.strokeStyle = c.fillStyle = colour;
    c.lineWidth = width;
    c.beginPath();
    c.moveTo(px, py);
    c.lineTo(tx - head * 0.8 * ex, ty - head * 0.8 * ey);
    c.stroke();
    c.beginPath();
    c.moveTo(tx, ty);
    c.lineTo(tx - head * ex - head * 0.5 * ey, ty - head * ey + head * 0.5 * ex);
    c.lineTo(tx - head * ex + head * 0.5 * ey, ty - head * ey - head * 0.5 * ex);
    c.fill();
  }

  cursor([x, y]) {
    const c = this.context;
    const [px, py] = this.screen(x, y);
    c.strokeStyle = this.colours.arrow;
    c.lineWidth = 2;
    c.beginPath();
    c.moveTo(px - 12, py);
    c.lineTo(px + 12, py);
    c.moveTo(px, py - 12);
    c.lineTo(px, py + 12);
    c.stroke();
  }

  /** A bar of a round length. */
  scale(state) {
    const c = this.context;
    const wanted = 90 / this.unit;
    const ten = 10 ** Math.floor(Math.log10(wanted));
    const length = [5, 2, 1].map((k) => k * ten).find((l) => l <= wanted);
    const y = this.height - 12;
    c.fillStyle = this.colours.paper;
    c.globalAlpha = 0.85;
    c.fillRect(6, y - 12, length * this.unit + 44, 20);
    c.globalAlpha = 1;
    c.strokeStyle = c.fillStyle = this.colours.muted;
    c.lineWidth = 1.5;
    c.beginPath();
    c.moveTo(12, y - 4);
    c.lineTo(12, y);
    c.lineTo(12 + length * this.unit, y);
    c.lineTo(12 + length * this.unit, y - 4);
    c.stroke();
    c.font = "12px system-ui, sans-serif";
    c.textAlign = "left";
    c.fillText(String(Number(length.toPrecision(1))), 18 + length * this.unit, y + 1);
  }
}
