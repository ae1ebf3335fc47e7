#!/usr/bin/env node
// The protocol of schemas/README.md in JavaScript, with nothing but node: a line fitted by stochastic gradient descent.
"use strict";
const { appendFileSync, mkdirSync, readFileSync, renameSync, writeFileSync } = require("fs");
const { basename } = require("path");
const RUN = process.env.TRAINMGR_RUN_DIR; // not set: nobody supervises, and nothing is read or written
const SEED = Number(process.env.TRAINMGR_SEED || 1);
const [STEPS, EVERY, LOW, HIGH] = [1500, 25, 1e-4, 1];
const NAMED = { initial: "checkpoints/initial.json", best: "checkpoints/best.json" };
const saved = Object.create(null); // weights by the path of their checkpoint
let [weights, lr, state, best] = [[0, 0], 0.4, SEED >>> 0, Infinity]; // too fast on purpose: there is something to do
let [step, seq, handled, seen, pending, stopping] = [0, 0, 0, "", [], false];

const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const sample = (x = random() - 0.5) => [x, 30 * x - 1 + random() - random()];
const error = ([x, y]) => weights[0] * x + weights[1] - y;
const loss = (samples) => samples.reduce((sum, one) => sum + error(one) ** 2, 0) / samples.length;

function say(event, more) { // one whole line by one append; JSON has no NaN and no infinities
  const figure = (_, value) => (typeof value === "number" && !isFinite(value) ? String(value) : value);
  const line = JSON.stringify({ v: 1, t: Date.now() / 1000, seq: seq++, event, ...more }, figure) + "\n";
  if (RUN) try { appendFileSync(`${RUN}/telemetry.jsonl`, line); } catch {} // a full disk ends no training
}
function save(path) { // whole on disk before anybody hears of it; false where the disk refuses
  const [file, content] = [`${RUN}/${path}`, JSON.stringify({ step, weights })];
  try { if (RUN) writeFileSync(`${file}.new`, content), renameSync(`${file}.new`, file); } catch { return false; }
  return (saved[path] = [...weights]);
}
function poll() { // at the boundary after each step: read what is new, then do what has come to its moment
  let control = null;
  try {
    const text = RUN ? readFileSync(`${RUN}/control.json`, "utf8") : seen;
    if (text !== seen) [control, seen] = [JSON.parse(text), text];
  } catch {} // not there yet, or cut off by a network file system: it is looked at again after the next step
  if (control && control.v === 1 && control.run === basename(RUN)) {
    const fresh = (control.schedule || [control]).filter((entry) => entry.revision > handled);
    for (const { revision } of pending)
      if (!fresh.some((entry) => entry.revision === revision)) refuse(revision, `superseded by ${control.revision}`);
    pending = fresh;
  }
  pending = pending.filter((entry) => stopping || (entry.at_step ?? step) > step || answer(entry));
}
const refuse = (revision, reason) => say("refused", { revision: (handled = revision), step, reason });
function answer({ revision, params, command, at_step, valid_until_step }) {
  const [until, wanted] = [at_step ?? valid_until_step ?? step, params.lr ?? lr];
  const strange = Object.keys(params).find((name) => name !== "lr");
  const back = NAMED[command?.to] ?? command?.to; // stop has one, too, where the run is to end on the best weights
  if (step > until) return refuse(revision, `too late: it was for step ${until}, this is step ${step}`);
  if (strange !== undefined) return refuse(revision, `${strange}: no such parameter`);
  if (!(wanted >= LOW && wanted <= HIGH)) return refuse(revision, `lr: ${wanted} is not in [${LOW}, ${HIGH}]`);
  if (command && !["rollback", "stop"].includes(command.name)) return refuse(revision, `no ${command.name} is offered`);
  if (back && !saved[back]) return refuse(revision, `there is no checkpoint ${back}`);
  if (back) weights = [...saved[back]];
  const changes = wanted === lr ? {} : { lr: [lr, wanted] };
  [handled, lr, stopping] = [revision, wanted, command?.name === "stop"];
  say("applied", { revision, step, boundary: "step", changes, command });
}
say("start", {
  workload: "line-js", pid: process.pid, seed: SEED, total_steps: STEPS, commands: ["rollback", "stop"],
  objective: { metric: "val_loss", mode: "min" }, action_space: [{ name: "lr", type: "float", low: LOW, high: HIGH,
    value: lr, scale: "log", max_ratio: 2, min_ratio: 0.1, boundary: "step", group: "optimizer" }],
  metrics: { loss: { description: "squared error of a sample" }, val_loss: { description: "mean squared error" } },
});
if (RUN) mkdirSync(`${RUN}/checkpoints`, { recursive: true });
if (save(NAMED.initial)) say("checkpoint", { step, path: NAMED.initial });
const [valid, test] = [200, 200].map((length) => Array.from({ length }, () => sample()));
while (step < STEPS && !stopping) {
  const one = sample(), off = error(one);
  weights = [weights[0] - lr * off * one[0], weights[1] - lr * off];
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2); // ms: stands for the work of a real step
  say("step", { step: ++step, metrics: { loss: off ** 2 } });
  poll();
  if (step % EVERY || stopping) continue;
  const val_loss = loss(valid), better = val_loss < best && save(NAMED.best);
  if (better) best = val_loss;
  say("eval", { step, metrics: { val_loss }, params: { lr } });
  if (better) say("checkpoint", { step, path: NAMED.best, metrics: { val_loss }, best: true });
}
say("end", { status: stopping ? "stopped" : "completed", step, metrics: { test_loss: loss(test) } });
