// What the explorer's mathematics answers to field.json: node answers.js PAGE FIELD.JSON, as JSON on stdout.
const fs = require("fs");
const [, , page, file] = process.argv;
const names = ["field.js", "flow.js", "lines.js", "extras.js", "state.js", "scene.js"];
const source = names.map((name) => fs.readFileSync(`${page}/${name}`, "utf8")).join("\n");
const { Field, Flow, Lines, Extras, State, Scene } = new Function(
  `${source}; return { Field, Flow, Lines, Extras, State, Scene };`,
)();
const table = JSON.parse(fs.readFileSync(file, "utf8"));
const plane = (rows) => rows.map(([x, y = 0]) => [x, y]);

const moments = table.moments.map(({ N, D, points, x, sigma }) => {
  const set = Field.charges(plane(points), N);
  const rows = plane(x).map(([px, py], i) => Field.moments(set, Number(D.replace("inf", "Infinity")), sigma[i], px, py, []));
  const extra = Number(D.replace("inf", "Infinity"));
  return { rows, tau: rows.map((row, i) => Field.tau(row[2], sigma[i], N, extra)) };
});

const paths = table.paths.map(({ D, points, x, steps, lambda, noise }) => {
  const extra = Number(D.replace("inf", "Infinity"));
  const flow = Flow.descent(Field.charges(points, 2), extra, 4, 0.01);
  const end = (path) => [path.x.at(-1), path.y.at(-1)];
  const random = x.map(([px, py], i) => {
    let [a, b] = [px, py];
    for (let k = 0; k < steps - 1; k++) {
      const [now, next] = [k, k + 1].map((j) => Flow.between(4, 0.01, j / (steps - 1)));
      [a, b] = Flow.sdeStep(Field.moments(flow.set, extra, now, a, b, []), a, b, now, next, lambda, 2, extra, noise[k][i]);
    }
    const last = Field.moments(flow.set, extra, 0.01, a, b, []);
    return [a - last[0], b - last[1]];
  });
  const solved = (how) => x.map(([px, py]) => Flow.solve(flow, px, py, { steps, lambda: 0, ...how }));
  const [euler, heun, rk45, exact, level] = [{ solver: "euler" }, { solver: "heun" }, { solver: "rk45", tolerance: 1e-5 },
    { solver: "rk45", tolerance: 1e-10 }, { solver: "rk45", tolerance: 1e-5, clock: "level" }].map(solved);
  const calls = (paths) => paths.reduce((sum, path) => sum + path.nfe, 0);
  const fine = solved({ solver: "heun", steps: 4000 });
  return {
    euler: euler.map(end), heun: heun.map(end), sde: random, rk45: rk45.map(end), exact: exact.map(end),
    fine: fine.map(end), level: level.map(end), calls: [calls(level), calls(rk45)], nfe: { euler: euler[0].nfe, heun: heun[0].nfe, steps: rk45.map((p) => [p.nfe, p.x.length]) },
  };
});

// Draws of the kernel's radius and of the hemisphere's height, the field without extra dimensions, the flux.
const draws = {};
for (const D of [0.5, 1, 3]) {
  const uniform = Flow.random(1);
  draws[D] = {
    radius: Array.from({ length: 4000 }, () => Math.hypot(...Flow.kernelNoise(uniform, 2, D))),
    height: Array.from({ length: 4000 }, () => Flow.onHemisphere(uniform, D)[1]),
  };
}
const four = Field.charges([[0.3, 0.1], [-0.5, 0.4], [0.2, -0.7], [-0.6, -0.1]], 2);
const planar = [[0.31, 0.4], [-2, 1.5]].map(([x, y]) => Field.planar(four, 1e-6, x, y, [], true));
const line = Field.charges([[-0.4, 0], [0.1, 0], [0.9, 0]], 1);
const flux = [0.5, 1, 3].map((D) => [0.7, 1.5, 40].map((R) => Field.flux(line, D, R)));

// A circle by marching squares; the link of a state and back; a scene worked to its end.
const ended = (steps) => {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
};
const box = { left: -1, right: 1, bottom: -1, top: 1 };
const circle = Lines.contour(ended(Lines.grid((x, y) => Math.hypot(x, y), box, 81, 81)), 0.6);
const saddle = Lines.contour({ values: [1, -1, -1, 1.5], columns: 2, rows: 2, box }, 0);
const state = { ...State.initial(), D: Infinity, u: 0.25, solver: "heun", charges: [[-1.234, 0.5], [20, -20]], probe: [0.1, 2] };
const back = State.parse(State.link(state), {});
const odd = ["", "#at=zz", "D=abc&at=", "at=" + "0".repeat(60001), "set=nothing", "D=1e999&steps=-3&view=moon&at=000000", "constructor=1&at="];
const sets = { __proto__: null, one: [[0, 0]] };
const parsed = odd.map((text) => State.parse(text, sets));

// What single lessons need: balls, targets, an even density.
const balls = [1, 3.5].map((D) => Extras.ball(line, D, -1.1, 1.6).slice(-2));
const sixteen = Field.charges(table.moments[8].points.slice(0, 16), 2); // N = 2
const targets = [1, 64].map((batch) => ended(Extras.targets(sixteen, 8, 0.7, 0.2, 0.1, batch, 4000)));
const dense = [0.05, 0.4].map((z) => Field.moments(Extras.even(2000), 1, z, 0.3, 0, [])[0]);
const distances = [4, 2000].map((count) => Extras.distance(Extras.even(count), 1));

Scene.PARTICLES = 60;
const scenes = ["plane", "half"].flatMap((view) =>
  [0.5, 1, 128, Infinity, "no z"].map((D) => {
    const charges = [[-0.5, 0.2], [0.4, -0.3], [0.6, 0.5]];
    const chosen = { ...State.initial(), view, charges, levels: true, balls: true, density: true,
      targets: true, probe: [0.3, 0.7], batch: 4, ...(D === "no z" ? { z: false } : { D }), digits: 3 };
    const scene = new Scene();
    scene.set(chosen, { left: -2, right: 2, bottom: view === "half" ? 0 : -2, top: 2 });
    while (scene.work(1e9));
    const { followed, lines, levels, ...others } = scene.results;
    const found = Object.keys(others).sort();
    const ends = Array.from({ length: scene.ready }, (_, i) => {
      const last = 2 * (Scene.FRAMES * i + Scene.FRAMES - 1);
      return [scene.cloud[last], scene.cloud[last + 1]];
    });
    const at = [0.3, 0.7];
    const parts = scene.pushes(...at).reduce(([a, b], [c, d]) => [a + c, b + d]);
    const pushed = [parts, scene.fieldAt(...at, []).slice(0, 2)];
    return { found, pushed, view, D: String(D), error: followed.value.error, lines: lines.value.length, levels: levels?.value.length ?? 0, ends,
      finite: [...scene.cloud.slice(0, 2 * Scene.FRAMES * 60)].every(Number.isFinite), charges };
  }),
);
console.log(JSON.stringify({ moments, paths, draws, planar, flux, circle, saddle, state, back, parsed, scenes, balls, targets, dense, distances,
  angles: Lines.equalAngles(1, 4) }, (key, value) => (value === Infinity ? "inf" : value)));
