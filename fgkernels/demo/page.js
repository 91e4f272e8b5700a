// SPDX-License-Identifier: Apache-2.0
"use strict";
const data = JSON.parse(document.getElementById("scenes").textContent);
const COLORS = ["#E69F00", "#56B4E9", "#F062A6"];
const OTHER = "#ffffff";
const SVG = "http://www.w3.org/2000/svg";
let mode = "chosen";
const redraws = [];

function make(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return parent.appendChild(node);
}

const colorOf = (word) => (word.color >= 0 ? COLORS[word.color] : OTHER);

function explain(scene, word) {
  if (!word) return "";
  const share = Math.round((100 * word.patches.length) / (data.grid * data.grid));
  const name = word.text.replace("<bos>", "start of caption").replace("<eos>", "end of caption");
  const chosen = `“${name}”: chosen by ${word.patches.length} patches (${share} %)`;
  const best = `its best patch has similarity ${word.similarity[word.best].toFixed(2)}`;
  const where = word.hit === null ? "" : word.hit ? ", on the digit" : ", not on the digit";
  return `${chosen}; ${best}${where}.`;
}

function setUp(figure, scene) {
  const svg = figure.querySelector("svg");
  const cells = [];
  for (let patch = 0; patch < data.grid * data.grid; patch++) {
    const x = (patch % data.grid) * data.patch;
    const y = Math.floor(patch / data.grid) * data.patch;
    cells.push(make("rect", { x, y, width: data.patch, height: data.patch, "fill-opacity": 0 }, svg));
  }
  const marks = make("g", {}, svg);
  const buttons = [...figure.querySelectorAll("button")];
  const told = figure.querySelector(".told");
  let pinned = null;
  let pointed = null;

  function mark(word, withBox) {
    const color = colorOf(word);
    if (withBox && word.box) {
      const [x0, y0, x1, y1] = word.box;
      make("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: "none", stroke: color, "stroke-width": 0.35,
        "stroke-dasharray": "1.2 0.8" }, marks);
    }
    const cx = ((word.best % data.grid) + 0.5) * data.patch;
    const cy = (Math.floor(word.best / data.grid) + 0.5) * data.patch;
    make("circle", { cx, cy, r: 1.7, fill: "none", stroke: "#000", "stroke-width": 1.2 }, marks);
    make("circle", { cx, cy, r: 1.7, fill: "none", stroke: color, "stroke-width": 0.6 }, marks);
  }

  function draw() {
    const index = pointed ?? pinned;
    const word = index === null ? null : scene.words[index];
    marks.replaceChildren();
    for (const cell of cells) cell.setAttribute("fill-opacity", 0);
    const fill = (patch, color, opacity) => {
      cells[patch].setAttribute("fill", color);
      cells[patch].setAttribute("fill-opacity", opacity);
    };
    if (word && mode === "similarity") {
      const low = Math.min(...word.similarity);
      const span = Math.max(...word.similarity) - low || 1;
      word.similarity.forEach((value, patch) => fill(patch, colorOf(word), (0.85 * ((value - low) / span) ** 1.5).toFixed(3)));
    } else {
      for (const shown of word ? [word] : scene.words.filter((other) => other.color >= 0))
        for (const patch of shown.patches) fill(patch, colorOf(shown), word ? 0.62 : 0.45);
    }
    for (const shown of word ? [word] : scene.words.filter((other) => other.color >= 0)) mark(shown, Boolean(word));
    buttons.forEach((button, at) => {
      button.classList.toggle("on", at === index);
      button.setAttribute("aria-pressed", String(at === pinned));
    });
    told.textContent = word ? explain(scene, word) : "Hover a word, or choose it with a tap or the keyboard.";
  }

  buttons.forEach((button, at) => {
    button.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") { pointed = at; draw(); } });
    button.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") { pointed = null; draw(); } });
    button.addEventListener("focus", () => { if (button.matches(":focus-visible")) { pointed = at; draw(); } });
    button.addEventListener("blur", () => { pointed = null; draw(); });
    button.addEventListener("click", () => { pinned = pinned === at ? null : at; pointed = null; draw(); });
    button.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { pinned = pointed = null; draw(); }
    });
  });
  redraws.push(draw);
  draw();
}

document.querySelectorAll("figure.scene").forEach((figure, index) => setUp(figure, data.scenes[index]));
document.querySelectorAll("input[name=mode]").forEach((input) =>
  input.addEventListener("change", () => { mode = input.value; redraws.forEach((draw) => draw()); }));
