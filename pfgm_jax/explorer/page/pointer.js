// Mouse, touch and keyboard on the canvas: charges are put, drawn, dragged and taken away, the probe is moved.
//
// `page` has: state, painter, changed(), say(text).

class Pointer {
  static REACH = 14; // pixels at which a charge is taken
  static SPACING = 9; // pixels between the charges of a stroke

  constructor(canvas, page) {
    this.page = page;
    this.selected = null; // number of a charge
    this.cursor = null; // [x, y], shown when keys are used
    this.action = null; // what the finger that is down does
    canvas.addEventListener("pointerdown", (event) => this.down(event, canvas));
    canvas.addEventListener("pointermove", (event) => this.move(event, canvas));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.up());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.page.mark(this.selected, (this.cursor = null)));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.page.zoom(Math.exp(event.deltaY / 600));
      },
      { passive: false },
    );
  }

  /** Whether a charge is being moved or drawn. */
  get busy() {
    return this.action !== null;
  }

  at(event, canvas) {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  /** Number of the charge nearest to a pixel, null for none within reach. */
  near(px, py, reach = Pointer.REACH) {
    const { state, painter } = this.page;
    let best = null;
    state.charges.forEach(([x, y], i) => {
      const [cx, cy] = painter.screen(x, state.view === "half" ? 0 : y);
      const distance = Math.hypot(cx - px, cy - py);
      if (distance < reach) [best, reach] = [i, distance];
    });
    return best;
  }

  /** A world point as a charge may have it. */
  place(px, py) {
    const [x, y] = this.page.painter.world(px, py);
    const limited = (v) => Math.min(Math.max(v, -20), 20);
    return this.page.state.view === "half" ? [limited(x), 0] : [limited(x), limited(y)];
  }

  down(event, canvas) {
    if (event.button) return;
    canvas.setPointerCapture?.(event.pointerId);
    this.cursor = null;
    const { state } = this.page;
    const [px, py] = this.at(event, canvas);
    const hit = this.near(px, py);
    if (state.tool === "probe") {
      this.action = "probe";
      this.probe(px, py);
    } else if (state.tool === "erase") {
      this.action = "erase";
      this.erase(px, py);
    } else if (hit !== null) {
      this.action = "drag";
      this.selected = hit;
    } else {
      this.action = "draw";
      this.put(px, py);
    }
    this.page.mark(this.selected, this.cursor);
  }

  move(event, canvas) {
    if (!this.action) return;
    const { state } = this.page;
    const [px, py] = this.at(event, canvas);
    if (this.action === "drag" && state.charges[this.selected]) {
      state.charges[this.selected] = this.place(px, py);
      this.edited();
    } else if (this.action === "draw" && Math.hypot(px - this.last[0], py - this.last[1]) >= Pointer.SPACING) {
      this.put(px, py);
    } else if (this.action === "erase") {
      this.erase(px, py);
    } else if (this.action === "probe") {
      this.probe(px, py);
    }
  }

  up() {
    if (this.action) this.page.say(`${this.page.state.charges.length} charges`);
    this.action = null;
    this.page.changed();
  }

  put(px, py) {
    const { state } = this.page;
    if (state.charges.length >= State.MOST) return this.page.say(`No more than ${State.MOST} charges`);
    this.last = [px, py];
    state.charges.push(this.place(px, py));
    this.selected = state.charges.length - 1;
    this.edited();
  }

  erase(px, py) {
    const hit = this.near(px, py);
    if (hit !== null) this.remove(hit);
  }

  remove(i) {
    this.page.state.charges.splice(i, 1);
    this.selected = null;
    this.edited();
  }

  probe(px, py) {
    const [x, y] = this.page.painter.world(px, py);
    this.page.state.probe = this.page.state.view === "half" ? [x, Math.max(y, 0.02 * this.page.state.R)] : [x, y];
    this.page.changed();
  }

  edited() {
    this.page.state.set = "";
    this.page.mark(this.selected, this.cursor);
    this.page.changed();
  }

  /** Arrows move the selected charge or the cursor; Enter puts a charge, N and P select, Delete takes away. */
  key(event) {
    const { state, painter } = this.page;
    const step = (event.shiftKey ? 40 : 8) / painter.unit;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const n = state.charges.length;
    const described = (i) => {
      const [x, y] = state.charges[i];
      return `charge ${i + 1} of ${state.charges.length} at ${x.toFixed(2)}, ${y.toFixed(2)}`;
    };
    if (event.key in arrows) {
      const [dx, dy] = arrows[event.key].map((v) => v * step);
      const chosen = state.charges[this.selected];
      const [x, y] = chosen ?? this.cursor ?? [0, 0];
      const next = this.place(...painter.screen(x + dx, y + dy));
      if (chosen) {
        state.charges[this.selected] = next;
        this.edited();
        this.page.say(described(this.selected));
      } else {
        this.cursor = next;
        this.page.say(`cursor at ${next[0].toFixed(2)}, ${next[1].toFixed(2)}`);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      this.put(...painter.screen(...(this.cursor ?? [0, 0])));
      if (this.selected !== null) this.page.say(described(this.selected));
      this.selected = null;
    } else if ((event.key === "n" || event.key === "p") && n) {
      const by = event.key === "n" ? 1 : n - 1;
      this.selected = this.selected === null ? 0 : (this.selected + by) % n;
      this.page.say(`selected: ${described(this.selected)}`);
    } else if ((event.key === "Delete" || event.key === "Backspace") && this.selected !== null) {
      this.remove(this.selected);
      this.page.say(`removed; ${state.charges.length} charges`);
    } else if (event.key === "Escape") {
      this.selected = this.cursor = null;
    } else if (event.key === "+" || event.key === "-") {
      this.page.zoom(event.key === "+" ? 0.8 : 1.25);
    } else {
      return;
    }
    event.preventDefault();
    this.page.mark(this.selected, this.cursor);
  }
}
