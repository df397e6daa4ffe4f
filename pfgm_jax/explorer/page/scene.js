// What is computed for a state: the cloud, followed paths with their errors, lines. Pure: no page.
//
// Work is done in slices, `work(milliseconds)` a frame, so that the page never waits for it. What is not ready yet is
// shown as it was; particles are renewed one after the other, so that a cloud follows a charge that is dragged.

class Scene {
  static PARTICLES = 2000;
  static FOLLOWED = 16;
  static FRAMES = 48; // states kept of each particle's path
  static START = 3; // radius from which samples of the plane without z start
  static EXACT = 1e-7; // tolerance of the paths to which errors are measured

  constructor() {
    this.cloud = new Float32Array(2 * Scene.FRAMES * Scene.PARTICLES); // [particle, frame, x and y]
    this.clear();
  }

  /** Forgets all that was computed: what is of another space says nothing. */
  clear() {
    this.results = {}; // name: {key, value} of finished jobs
    this.jobs = {}; // name: {key, steps} of those at work
    this.ready = 0; // particles that have a path at all
    this.fresh = 0; // of them, those of the present state
    this.next = 0;
  }

  /**
   * Takes a state and the box of the plane that is seen; finds what is stale.
   *
   * playing, editing: the time or a charge moves. Field lines of the plane that depend on it are left out, as they
   * would be those of another moment when they are ready.
   */
  set(state, box, playing = false, editing = false) {
    const plane = state.view === "plane";
    const flat = plane && !state.z;
    const charges = JSON.stringify(state.charges);
    const field = `${charges} ${state.view} ${state.z} ${flat ? state.blur : state.D}`;
    this.empty = state.charges.length === 0;
    if (field !== this.field) {
      this.field = field;
      this.charges = Field.charges(state.charges, plane ? 2 : 1);
    }
    this.state = { ...state };
    this.flat = flat;
    const noisy = this.noisy(state);
    const { solver, steps, digits, clock } = state;
    const fixed = `${solver} ${steps}`;
    const how = noisy ? `sde ${steps} ${state.lambda}` : solver === "rk45" ? `rk45 ${digits} ${clock}` : fixed;
    const start = plane ? "" : state.R;
    const flow = `${field} ${how} ${start}`;
    if (flow !== this.flow) {
      this.flow = flow;
      this.fresh = 0;
    }
    const at = plane ? (flat ? "" : this.sigma(state.u).toPrecision(6)) : state.R;
    const frame = Object.values(box).map((v) => v.toPrecision(6)).join(" ");
    this.keys = {
      followed: state.paths && !this.empty ? flow : "",
      lines: state.lines && !this.empty && !(plane && (editing || (playing && !flat))) ? `${field} ${at} ${plane ? frame : ""}` : "",
      levels: state.levels && !this.empty && (plane || state.D < Infinity) ? `${field} ${at} ${frame}` : "",
      flux: state.flux && !plane && !this.empty && state.D < Infinity ? `${field} ${state.R}` : "",
      balls: state.balls && !plane && !this.empty && state.D <= Extras.STEEPEST ? `${field} ${state.R}` : "",
      density: state.density && !plane && !this.empty ? `${field} ${state.R}` : "",
      targets: this.aims(state) ? `${field} ${at} ${state.probe} ${state.batch}` : "",
    };
    this.box = box;
  }

  /** Whether the state's paths are of the reverse SDE; in the half-space it needs N + D > 2. */
  noisy(state) {
    return state.lambda > 0 && !(state.view === "plane" && !state.z) && (state.view === "plane" || state.D > 1);
  }

  /** Whether targets of a batch are shown: in the plane with extra dimensions, at the probe. */
  aims(state) {
    return state.targets && state.view === "plane" && state.z && state.probe !== null && state.charges.length > 0;
  }

  /** Whether the hemisphere is carried along rays to the prior. */
  projects(state) {
    return state.rays && state.view === "half" && state.D < Infinity;
  }

  /** σ of the plane at a share u of the time. */
  sigma(u) {
    return Flow.between(State.SIGMA_MAX, State.SIGMA_MIN, u);
  }

  /** Time that samples of the plane without z take: from START to the middle of a disk, and more. */
  static duration() {
    return (Scene.START ** 2 - 1) / 2 + 4;
  }

  /** Distance z = σ√D in the half-space from σ; σ itself for D = ∞. */
  height(sigma) {
    return this.state.D === Infinity ? sigma : sigma * Math.sqrt(this.state.D);
  }

  /** Where particle i starts, and its flow: [x, y, flow]. */
  begin(i) {
    const { state, charges } = this;
    const uniform = Flow.random(7919 * (i + 1));
    for (let k = 0; k < 4; k++) uniform();
    if (this.flat) {
      const angle = 2 * Math.PI * ((i * 0.6180339887498949) % 1);
      const flow = Flow.planarDescent(charges, state.blur, Scene.duration());
      return [Scene.START * Math.cos(angle), Scene.START * Math.sin(angle), flow, uniform];
    }
    if (state.view === "plane") {
      const [x, y] = Flow.kernelNoise(uniform, 2, state.D);
      const flow = Flow.descent(charges, state.D, State.SIGMA_MAX, State.SIGMA_MIN);
      return [State.SIGMA_MAX * x, State.SIGMA_MAX * y, flow, uniform];
    }
    const lowest = state.R * 0.002;
    if (state.D === Infinity) {
      return [state.R * Flow.normal(uniform), 0, Flow.descent(charges, Infinity, state.R, lowest), uniform];
    }
    const [x, r] = Flow.onHemisphere(uniform, state.D);
    const root = Math.sqrt(state.D);
    const z = Math.max(state.R * r, 1.01 * lowest);
    return [state.R * x, 0, Flow.descent(charges, state.D, z / root, lowest / root), uniform];
  }

  how() {
    const { solver, steps, digits, clock, lambda } = this.state;
    return { solver, steps, clock, tolerance: 10 ** -digits, lambda: this.noisy(this.state) ? lambda : 0 };
  }

  /** Height above the line of the data of a flow's state at a share u of its time. */
  heightAt(flow, u) {
    return this.height(Flow.between(flow.start, flow.end, u));
  }

  /** Works for about so many milliseconds; true while there is more to do. */
  work(budget, now = () => performance.now()) {
    const until = now() + budget;
    for (const [name, key] of Object.entries(this.keys)) {
      if (!key) {
        delete this.results[name];
        delete this.jobs[name];
        continue;
      }
      if (this.results[name]?.key === key) continue;
      // A job is finished before it begins anew, or one that is overtaken all the time would never show anything.
      this.jobs[name] ??= { key, steps: this[name]() };
    }
    let turn = 0;
    while (now() < until) {
      const names = Object.keys(this.jobs);
      const particles = this.state.cloud && !this.empty && this.fresh < Scene.PARTICLES;
      if (!names.length && !particles) return false;
      const pick = turn++ % (names.length + (particles ? 1 : 0));
      if (pick === names.length) {
        for (let k = 0; k < 2 && this.fresh < Scene.PARTICLES; k++) this.renew();
        continue;
      }
      const job = this.jobs[names[pick]];
      const { done, value } = job.steps.next();
      if (!done) continue;
      this.results[names[pick]] = { key: job.key, value };
      delete this.jobs[names[pick]];
    }
    return true;
  }

  /** The path of the next particle, for the present state. */
  renew() {
    const i = this.next;
    const [x, y, flow, uniform] = this.begin(i);
    const path = Flow.solve(flow, x, y, this.how(), uniform);
    const half = this.state.view === "half";
    const first = 2 * Scene.FRAMES * i;
    Flow.resample(flow, path, Scene.FRAMES, (k, px, py) => {
      this.cloud[first + 2 * k] = px;
      this.cloud[first + 2 * k + 1] = half ? this.heightAt(flow, k / (Scene.FRAMES - 1)) : py;
    });
    this.fresh++;
    this.ready = Math.max(this.ready, i + 1);
    this.next = (i + 1) % Scene.PARTICLES;
  }

  /** Job: FOLLOWED paths with their steps, the exact ones, and the mean distance between their ends. */
  *followed() {
    const paths = [];
    let error = 0;
    const noisy = this.noisy(this.state);
    const half = this.state.view === "half";
    const count = noisy ? Scene.FOLLOWED / 4 : Scene.FOLLOWED; // random paths cross each other more
    for (let i = 0; i < count; i++) {
      const [x, y, flow, uniform] = this.begin(i);
      const path = Flow.solve(flow, x, y, this.how(), uniform);
      const up = half ? path.level.map((level) => this.height(level)) : path.y;
      const drawn = { x: path.x, y: up, exact: [], nfe: path.nfe, level: path.level, flow };
      yield;
      if (!noisy) {
        const exact = Flow.rk45(flow, x, y, Scene.EXACT);
        const last = exact.x.length - 1;
        error += Math.hypot(exact.x[last] - path.x.at(-1), exact.y[last] - path.y.at(-1)) / count;
        Flow.resample(flow, exact, 100, (k, px, py) => {
          drawn.exact.push(px, half ? this.heightAt(flow, k / 99) : py);
        });
      }
      paths.push(drawn);
      yield;
    }
    return { paths, error: noisy ? NaN : error, nfe: paths.reduce((sum, p) => sum + p.nfe, 0) / paths.length };
  }

  /** The field at a point of the view, out as `Field.moments`; in the half-space its second component is z's. */
  fieldAt(x, y, out, potential = false) {
    const { state, charges } = this;
    if (this.flat) return Field.planar(charges, state.blur, x, y, out, potential);
    if (state.view === "plane") return Field.moments(charges, state.D, this.sigma(state.u), x, y, out);
    const z = Math.max(y, 1e-4 * state.R);
    const sigma = state.D === Infinity ? z : z / Math.sqrt(state.D);
    Field.moments(charges, state.D, sigma, x, 0, out);
    out[1] = z;
    out[3] += z * z;
    return out;
  }

  /** What each charge adds to the field at a point of the view: [[x, y], …], whose sum is `fieldAt`'s. */
  pushes(x, y) {
    const { state, charges } = this;
    const half = state.view === "half";
    const sigma = !half ? this.sigma(state.u) : state.D === Infinity ? y : y / Math.sqrt(state.D);
    const shares = this.flat ? null : Field.shares(charges, state.D, sigma, x, half ? 0 : y);
    return Array.from(charges.x, (cx, i) => {
      const [dx, dy] = [x - cx, half ? y : y - charges.y[i]];
      const share = shares ? shares[i] : 1 / (charges.n * (dx * dx + dy * dy + state.blur ** 2));
      return [share * dx, share * dy];
    });
  }

  /** Job: field lines [[x, y, …], …]. */
  *lines() {
    const { state, box } = this;
    if (state.view === "plane") {
      const direction = (x, y, out) => this.fieldAt(x, y, out);
      const near = ((box.top - box.bottom) / 160) ** 2;
      const { x, y, n } = this.charges;
      const stop = (px, py) => {
        for (let i = 0; i < n; i++) if ((px - x[i]) ** 2 + (py - y[i]) ** 2 < near) return true;
        return false;
      };
      return yield* Lines.even(direction, box, (box.top - box.bottom) / 22, stop);
    }
    return yield* this.down(this.charges);
  }

  /** Job: lines of charges on a line that cut the hemisphere into equal areas, from farther out than is seen. */
  *down(charges) {
    const { state } = this;
    const lines = [];
    const far = 4 * state.R;
    const gaussian = state.D === Infinity;
    const angles = gaussian ? [] : Lines.equalAngles(state.D, 32);
    const starts = gaussian
      ? Array.from({ length: 33 }, (_, i) => [(far * (i - 16)) / 10, far])
      : angles.map((a) => [far * Math.cos(a), far * Math.sin(a)]);
    const root = gaussian ? 1 : Math.sqrt(state.D);
    for (const [x, z] of starts) {
      const lowest = Math.min(0.002 * state.R, z / 2);
      const flow = Flow.descent(charges, state.D, z / root, lowest / root);
      const line = [];
      Flow.resample(flow, Flow.rk45(flow, x, 0, 1e-5), 90, (k, px) => line.unshift(px, this.heightAt(flow, k / 89)));
      lines.push(line);
      yield;
    }
    return lines;
  }

  /** Job: equipotentials, segments of the level lines at evenly spaced distances d of `Field.moments`. */
  *levels() {
    const { box } = this;
    const out = [0, 0, 0, 0];
    const distance = (x, y) => Math.sqrt(Math.max(this.fieldAt(x, y, out, true)[3], 0));
    const aspect = (box.right - box.left) / (box.top - box.bottom);
    const [columns, rows] = [64 * Math.max(aspect, 1), 64 / Math.min(aspect, 1)].map(Math.round);
    const grid = yield* Lines.grid(distance, box, columns, rows);
    const step = (box.top - box.bottom) / 24;
    const highest = grid.values.reduce((a, b) => Math.max(a, b), 0);
    const segments = [];
    for (let level = step / 2; level < highest; level += step) {
      segments.push(...Lines.contour(grid, level));
      yield;
    }
    return segments;
  }

  /** Job: field lines of the even density on [−1, 1], and how far the charges' posterior mean is from its. */
  *density() {
    const lines = yield* this.down(Extras.even(400));
    return { lines, error: Extras.distance(this.charges, this.state.D) };
  }

  /** Job: field lines beside paths with inertia. */
  *balls() {
    return yield* Extras.balls(this.charges, this.state.D, this.state.R);
  }

  /** Job: targets of a batch at the probe. */
  *targets() {
    const { D, u, probe, batch } = this.state;
    return yield* Extras.targets(this.charges, D, this.sigma(u), ...probe, batch);
  }

  /** Job: the flux through the hemisphere. */
  *flux() {
    yield;
    return Field.flux(this.charges, this.state.D, this.state.R);
  }
}
