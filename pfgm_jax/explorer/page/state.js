// What the page shows, as one plain object, and the link that holds it. Pure: no page.

const State = (() => {
  const SIGMA_MAX = 4;
  const SIGMA_MIN = 0.002;
  const MOST = 2000; // charges

  // name: [value at first, what it may be: lowest and highest number, words, or true and false]
  const FIELDS = {
    view: ["plane", ["plane", "half"]],
    z: [true],
    D: [1, 0.5, Infinity],
    blur: [0.05, 0.01, 0.3],
    R: [3, 0.5, 100],
    zoom: [1.5, 0.3, 40],
    u: [0, 0, 1],
    solver: ["rk45", ["euler", "heun", "rk45"]],
    steps: [18, 2, 100],
    digits: [4, 1, 8], // −log10 of RK45's tolerance
    clock: ["log", ["log", "level"]], // RK45's steps are in ln σ or in σ
    lambda: [0, 0, 4],
    tool: ["draw", ["draw", "erase", "probe"]],
    lines: [true],
    levels: [false],
    cloud: [true],
    paths: [true],
    flux: [true],
    rays: [false],
    balls: [false],
    density: [false],
    targets: [false],
    batch: [1, 1, 1024], // references of a target
  };

  function initial() {
    const state = Object.fromEntries(Object.entries(FIELDS).map(([name, [value]]) => [name, value]));
    return { ...state, set: "", charges: [], probe: null };
  }

  /** `value` brought into what a field may be; undefined if it means nothing there. */
  function admitted(name, value) {
    const [first, low, high] = FIELDS[name];
    if (typeof first === "boolean") return typeof value === "boolean" ? value : undefined;
    if (typeof first === "string") return low.includes(value) ? value : undefined;
    if (typeof value !== "number" || Number.isNaN(value)) return undefined;
    const bounded = Math.min(Math.max(value, low), high);
    return ["steps", "digits", "batch"].includes(name) ? Math.round(bounded) : bounded;
  }

  /** The state of a preset over a set of named charges. */
  function ofPreset(preset, sets) {
    const state = initial();
    const { charges, probe = null, ...rest } = preset;
    Object.assign(state, rest);
    return { ...state, set: charges, charges: sets[charges].map((point) => [...point]), probe };
  }

  const DIGITS = 3;
  const OFFSET = 23.327; // so that 36³ numbers cover −23.327 to 23.328 in steps of 0.001

  const packed = (v) =>
    Math.round((Math.min(Math.max(v, -OFFSET), OFFSET) + OFFSET) * 1000).toString(36).padStart(DIGITS, "0");
  const unpacked = (text) => Math.round(parseInt(text, 36) - OFFSET * 1000) / 1000;

  /** The part of a link behind #: only what differs from a preset without settings. */
  function link(state) {
    const words = [];
    for (const [name, [first]] of Object.entries(FIELDS)) {
      const value = state[name];
      if (value === first) continue;
      words.push(`${name}=${typeof value === "number" ? String(Number(value.toPrecision(5))) : value}`);
    }
    if (state.probe) words.push(`probe=${state.probe.map(packed).join("")}`);
    words.push(state.set ? `set=${encodeURIComponent(state.set)}` : `at=${state.charges.flat().map(packed).join("")}`);
    return words.join("&");
  }

  /** The state of a link; null for one that names no charges. Words that mean nothing are passed over. */
  function parse(text, sets) {
    const state = initial();
    let found = false;
    for (const word of text.replace(/^#/, "").split("&")) {
      const [name, raw = ""] = word.split("=");
      if (name === "set" && Object.hasOwn(sets, raw)) {
        Object.assign(state, { set: raw, charges: sets[raw].map((point) => [...point]) });
        found = true;
      } else if (name === "at" && /^([0-9a-z]{6})*$/.test(raw) && raw.length <= 6 * MOST) {
        const pairs = raw.match(/.{6}/g) ?? [];
        Object.assign(state, { set: "", charges: pairs.map((p) => [unpacked(p.slice(0, 3)), unpacked(p.slice(3))]) });
        found = true;
      } else if (name === "probe" && /^[0-9a-z]{6}$/.test(raw)) {
        state.probe = [unpacked(raw.slice(0, 3)), unpacked(raw.slice(3))];
      } else if (Object.hasOwn(FIELDS, name)) {
        const first = FIELDS[name][0];
        const value = typeof first === "number" ? Number(raw || NaN) : typeof first === "boolean" ? raw === "true" : raw;
        const good = admitted(name, value);
        if (good !== undefined) state[name] = good;
      }
    }
    return found ? state : null;
  }

  return { SIGMA_MAX, SIGMA_MIN, MOST, FIELDS, initial, admitted, ofPreset, link, parse };
})();
