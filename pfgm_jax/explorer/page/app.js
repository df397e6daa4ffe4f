// The page: controls, the clock of the animation, what is said about the state.

class App {
  static SECONDS = 7; // from noise to data
  static BUDGET = { moving: 3, still: 6 }; // milliseconds of a frame for the scene's work

  constructor() {
    this.state = State.initial();
    this.scene = new Scene();
    this.painter = new Painter(this.find("canvas"));
    this.marks = { selected: null, cursor: null };
    this.frames = []; // script time of the last frames, milliseconds
    this.still = window.matchMedia("(prefers-reduced-motion: reduce)");
    this.pointer = new Pointer(this.find("canvas"), this);
    this.controls();
    this.theme();
    window.addEventListener("resize", () => this.resized());
    window.addEventListener("hashchange", () => this.opened());
    this.resized();
    this.opened();
    requestAnimationFrame((time) => this.frame(time));
  }

  find(id) {
    return document.getElementById(id);
  }

  /** The state of the link, or the first preset. */
  opened() {
    const preset = DATA.presets.find(({ name }) => location.hash === `#${name}`);
    const linked = preset ? null : State.parse(location.hash, DATA.sets);
    if (linked) this.show(linked, "Opened from a link.", null);
    else this.preset(preset ?? DATA.presets[0]);
  }

  preset({ name, hint, state }) {
    this.show(State.ofPreset(state, DATA.sets), hint, name);
    // What moves is played from the beginning, but for those who asked for stillness: they see the end.
    const moves = this.state.cloud && state.u === undefined;
    if (moves && this.still.matches) this.state.u = 1;
    this.playing = moves && !this.still.matches;
    this.changed();
  }

  show(state, hint, name) {
    this.state = state;
    this.playing = false;
    this.pointer.selected = this.pointer.cursor = null;
    this.mark(null, null);
    this.scene.clear();
    this.find("hint").textContent = hint;
    for (const chip of this.find("presets").children) {
      chip.setAttribute("aria-current", String(chip.dataset.name === name));
      if (chip.dataset.name === name) chip.scrollIntoView({ block: "nearest", inline: "center" });
    }
    this.name = name;
    this.changed();
  }

  // ---- controls

  controls() {
    for (const preset of DATA.presets) {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = preset.title;
      chip.dataset.name = preset.name;
      chip.addEventListener("click", () => this.preset(preset));
      this.find("presets").append(chip);
    }
    for (const group of document.querySelectorAll(".choice")) {
      group.setAttribute("role", "group");
      for (const button of group.children) {
        button.addEventListener("click", () => this.put(group.dataset.field, button.dataset.value));
      }
    }
    for (const box of document.querySelectorAll("input[type=checkbox]")) {
      box.addEventListener("change", () => this.put(box.dataset.field, box.checked));
    }
    this.dials = {
      D: [(v) => (v > 11 ? Infinity : Number((2 ** v).toPrecision(3))), (D) => (D === Infinity ? 11.1 : Math.log2(D))],
      R: [(v) => Number((10 ** v).toPrecision(3)), Math.log10],
      blur: [Number, Number],
      steps: [Number, Number],
      digits: [Number, Number],
      batch: [(v) => 2 ** v, Math.log2],
      lambda: [Number, Number],
      u: [Number, Number],
    };
    for (const [name, [read]] of Object.entries(this.dials)) {
      this.find(name).addEventListener("input", (event) => {
        if (name === "u") this.playing = false;
        this.put(name, read(Number(event.target.value)));
      });
    }
    const set = this.find("set");
    for (const name of ["", ...Object.keys(DATA.sets)]) set.append(new Option(name || "your own", name));
    set.addEventListener("change", () => {
      if (!set.value) return;
      this.state.set = set.value;
      this.state.charges = DATA.sets[set.value].map((point) => [...point]);
      this.mark(null, null);
      this.changed();
    });
    this.find("play").addEventListener("click", () => this.play());
    this.find("clear").addEventListener("click", () => {
      Object.assign(this.state, { charges: [], set: "" });
      this.mark(null, null);
      this.say("no charges");
      this.changed();
    });
    this.find("in").addEventListener("click", () => this.zoom(0.8));
    this.find("out").addEventListener("click", () => this.zoom(1.25));
    this.find("copy").addEventListener("click", () => this.copy());
    this.find("again").addEventListener("click", () =>
      this.preset(DATA.presets.find(({ name }) => name === this.name) ?? DATA.presets[0]),
    );
    this.find("theme").addEventListener("click", () => {
      const root = document.documentElement;
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
      this.resized();
    });
  }

  theme() {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const follow = () => {
      document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
      this.resized();
    };
    dark.addEventListener("change", follow);
    follow();
  }

  /** Sets a field of the state. */
  put(name, value) {
    const good = State.admitted(name, value);
    if (good === undefined) return;
    this.state[name] = good;
    if (name === "tool" && good === "probe") this.state.probe ??= this.state.view === "half" ? [0.3, this.state.R / 2] : [0.4, 0.3];
    if (name === "tool" && good !== "probe") this.state.probe = null;
    if (name === "targets" && good) this.put("tool", "probe"); // they are those of the probe's place
    if (name === "view") {
      this.state.probe = this.state.tool === "probe" ? [0.3, this.state.R / 2] : null;
      this.scene.clear();
    }
    if (name === "z") this.scene.clear();
    this.changed();
  }

  play() {
    if (!this.playing && this.state.u >= 1) this.state.u = 0;
    this.playing = !this.playing;
    this.changed();
  }

  zoom(factor) {
    const name = this.state.view === "half" ? "R" : "zoom";
    this.put(name, this.state[name] * factor);
  }

  async copy() {
    history.replaceState(null, "", `#${State.link(this.state)}`);
    try {
      await navigator.clipboard.writeText(location.href);
      this.find("copy").textContent = "Link copied";
    } catch {
      this.find("copy").textContent = "Link is in the address bar";
    }
    setTimeout(() => (this.find("copy").textContent = "Copy link to this state"), 2500);
  }

  mark(selected, cursor) {
    this.marks = { selected, cursor };
    this.pointer.selected = selected;
    this.dirty = true;
  }

  say(text) {
    this.find("said").textContent = text;
  }

  resized() {
    this.painter.fit();
    this.dirty = true;
  }

  // ---- what the page shows of the state

  changed() {
    this.dirty = this.stale = true;
  }

  refresh() {
    this.stale = false;
    const { state } = this;
    const half = state.view === "half";
    const flat = !half && !state.z;
    for (const group of document.querySelectorAll(".choice")) {
      for (const button of group.children) {
        button.setAttribute("aria-pressed", String(state[group.dataset.field] === button.dataset.value));
      }
    }
    for (const box of document.querySelectorAll("input[type=checkbox]")) box.checked = state[box.dataset.field];
    const D = state.D === Infinity ? "∞" : String(Number(state.D.toPrecision(3)));
    const shown = { D, R: state.R.toPrecision(3), blur: state.blur.toFixed(2), steps: state.steps, digits: `1e-${state.digits}`,
      batch: state.batch, lambda: state.lambda.toFixed(1) };
    for (const [name, [, write]] of Object.entries(this.dials)) {
      this.find(name).value = write(state[name]);
      const output = document.querySelector(`.dial output[for=${name}]`);
      if (output) output.textContent = shown[name];
      if (shown[name]) this.find(name).setAttribute("aria-valuetext", String(shown[name]));
    }
    const noisy = this.scene.noisy(state);
    for (const button of document.querySelector("[data-field=solver]").children) button.disabled = noisy;
    const hide = (id, hidden) => (this.find(id).hidden = hidden);
    hide("z-row", half);
    hide("D-dial", flat);
    hide("blur-dial", !flat);
    hide("R-dial", !half);
    for (const name of ["flux", "rays", "balls", "density"]) hide(`${name}-check`, !half);
    hide("targets-check", half || flat);
    hide("batch-dial", !this.scene.aims(state));
    hide("clock-choice", state.solver !== "rk45" || noisy || flat);
    hide("steps-dial", state.solver === "rk45" && !noisy);
    hide("digits-dial", state.solver !== "rk45" || noisy);
    hide("lambda-dial", flat);
    hide("timebar", !state.cloud && !state.paths && !this.scene.aims(state));
    hide("solver", !state.cloud && !state.paths);
    this.find("count").textContent = `(${state.charges.length})`;
    this.find("set").value = state.set;
    this.find("formula").innerHTML = this.formula(flat, half, noisy);
    this.find("note").textContent = noisy
      ? "Noise takes Euler’s steps of the reverse SDE; each path is random, so there is no error."
      : half && state.lambda > 0 ? "Noise needs N + D > 2: here D above 1." : "";
    const legend = [
      ["ink", "dot", true, "charges, the data"],
      ["line", "line", state.lines, "field lines"],
      ["level", "line", state.levels && (!half || state.D < Infinity), "equipotentials"],
      ["sample", "dot", state.cloud, "samples"],
      ["path", "line", state.paths, noisy ? "followed: dots are steps" : "followed: dots are steps, dashes exact"],
      ["path", "line", half && state.flux && state.D < Infinity && !state.paths, "flux through the hemisphere"],
      ["arrow", "line", state.probe !== null, "field at the probe"],
      ["level", "line", half && state.density, "lines of the even density"],
      ["path", "line", half && state.balls && state.D <= Extras.STEEPEST, "field lines, without inertia"],
      ["sample", "line", half && state.balls && state.D <= Extras.STEEPEST, "balls, with inertia"],
      ["level", "line", this.scene.projects(state), "along rays to z = R"],
      ["arrow", "line", this.scene.projects(state), "law of the prior"],
      ["part", "dot", this.scene.aims(state), "targets; cross: posterior mean"],
    ];
    const wanted = legend.filter(([, , on]) => on);
    const written = wanted.map(([, , , text]) => text).join();
    if (written !== this.legend) {
      this.legend = written;
      this.find("legend").replaceChildren(...wanted.map(([colour, kind, , text]) => this.item(colour, kind, text)));
    }
    if (!state.charges.length) this.find("hint").textContent = "No charges: tap or click into the picture to put some, or draw a line of them.";
  }

  item(colour, kind, text) {
    const item = document.createElement("li");
    item.className = kind;
    item.style.setProperty("--colour", `var(--${colour})`);
    item.textContent = text;
    return item;
  }

  /** HTML of the path's or the field's equation and what it needs. */
  formula(flat, half, noisy) {
    const { D } = this.state;
    const parts = (...list) => list.map((part) => `<span>${part}</span>`).join(" ");
    const y = "y<sub>i</sub>";
    const moves = this.state.cloud || this.state.paths;
    if (flat) return parts(...(moves ? ["dx/dt = −E(x)"] : []), `E = mean of (x − ${y}) / (‖x − ${y}‖² + blur²)`);
    const height = D === Infinity ? "σ" : D === 1 ? "z" : "r";
    const weight = D === Infinity ? `exp(−‖x − ${y}‖²/2σ²)` : `(‖x − ${y}‖² + ${height}²)<sup>−(${half ? 1 : 2} + D)/2</sup>`;
    if (!moves) return parts(`E ∝ Σ w<sub>i</sub> (x − ${y}${half ? `, ${height}` : ""})`, `w<sub>i</sub> = ${weight}`);
    return parts(
      noisy ? "dx = (1 + λ)(x − d)/σ dσ + √(2λσ|dσ|τ) dW" : "dx/dσ = (x − d)/σ",
      `d = Σ w<sub>i</sub> ${y} / Σ w<sub>i</sub>`,
      `w<sub>i</sub> = ${weight}`,
      ...(D === Infinity ? [] : [D === 1 ? "z = σ" : "r = σ√D"]),
    );
  }

  /** Numbers that change from frame to frame. */
  numbers() {
    const { state, scene } = this;
    const half = state.view === "half";
    const flat = !half && !state.z;
    const u = this.find("u");
    if (document.activeElement !== u || this.playing) u.value = state.u;
    const sigma = scene.sigma(state.u);
    const text = flat ? `t = ${(state.u * Scene.duration()).toFixed(2)}`
      : half ? `${Math.round(100 * state.u)} % of the way`
      : state.D === Infinity ? `σ = ${sigma.toPrecision(2)}`
      : `σ = ${sigma.toPrecision(2)}, ${state.D === 1 ? "z" : "r"} = ${scene.height(sigma).toPrecision(2)}`;
    this.write("level", text);
    this.write("play", this.playing ? "❚❚" : "▶");
    this.find("play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
    u.setAttribute("aria-valuetext", text);
    const { followed, flux, balls, density, targets } = scene.results;
    this.write("nfe", followed ? followed.value.nfe.toFixed(followed.value.nfe % 1 ? 1 : 0) : "–");
    const error = followed?.value.error;
    this.write("error", error === undefined ? "–" : Number.isNaN(error) ? "random" : error.toExponential(1));
    this.write("meter", [
      flux && `flux ${flux.value.total.toFixed(4)} of the charge, uneven by ${(100 * flux.value.uneven).toPrecision(2)}\u00a0%`,
      balls && `balls land ${balls.value.missed.toPrecision(2)} beside their field lines on average`,
      density && `E[y | x, z] at z = 0.1: ${density.value.error.toPrecision(2)} (rms) from the density’s`,
      targets && `variance of the targets ${targets.value.variance.toPrecision(2)}, of the posterior ${targets.value.posterior.toPrecision(2)}`,
    ].filter(Boolean).join("; "));
  }

  write(id, text) {
    const element = this.find(id);
    if (element.textContent !== text) element.textContent = text;
  }

  // ---- frames

  frame(time) {
    const begun = performance.now();
    const passed = Math.min((time - (this.time ?? time)) / 1000, 0.1);
    this.time = time;
    if (this.playing) {
      this.state.u = Math.min(this.state.u + passed / App.SECONDS, 1);
      if (this.state.u >= 1) this.playing = false;
      this.dirty = true;
    }
    const { scene, painter, state } = this;
    if (this.stale) this.refresh();
    if (this.dirty || this.working) {
      painter.look(state, scene.sigma(state.u));
      scene.set(state, painter.box(state), this.playing, this.pointer.busy);
      this.working = scene.work(this.playing || this.pointer.busy ? App.BUDGET.moving : App.BUDGET.still);
      painter.paint(scene, this.marks);
      this.numbers();
      this.dirty = false;
      this.frames.push(performance.now() - begun);
      if (this.frames.length > 1000) this.frames.shift();
    }
    requestAnimationFrame((next) => this.frame(next));
  }
}

const explorer = new App();
