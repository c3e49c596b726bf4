"use strict";
// Rows are made at once, their pictures when they come near the window. Words of users reach the
// page as text nodes only; there is no innerHTML here.

const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const EXTREMES = 4;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function option(select, value, text) {
  const node = make("option", "", text);
  node.value = value;
  select.append(node);
}

// --- numbers ---------------------------------------------------------------------------------

function number(value, scorer, signed) {
  if (value === null) return "–";
  const text = Math.abs(value).toFixed(scorer.places);
  const zero = !Number(text);
  return (zero ? "" : value < 0 ? "−" : signed ? "+" : "") + text;
}

const scores = (row, scorer) => data.rows[row].scores[scorer.name];

/** Arm minus rival in a row; null where one has no score or is flagged: as in the statistics. */
function difference(row, pair, scorer) {
  const of = scores(row, scorer), [a, b] = pair.map(arm => data.rows[row].cells[arm].flags ? null : of[arm]);
  return a === null || b === null ? null : a - b;
}

/** The same, larger for better; for a score that is neither good nor bad, larger for more. */
function gain(row, pair, scorer) {
  const found = difference(row, pair, scorer);
  return found === null ? null : found * (scorer.sign || 1);
}

// --- pictures --------------------------------------------------------------------------------

const blocks = new Map();

/** The picture of a row and an arm: inside the page, else beside it, else null. */
function picture(row, arm) {
  if (!blocks.has(row)) {
    const block = find("pictures-" + row);
    blocks.set(row, block ? JSON.parse(block.textContent) : null);
  }
  const inside = blocks.get(row) && blocks.get(row)[arm];
  const href = data.rows[row].cells[arm].href;
  if (inside) return { url: inside[0], shrunk: inside[1], href };
  return href ? { url: href, shrunk: false, href } : null;
}

/** Show a picture; a small one is enlarged as it is, pixel by pixel. */
function show(image, found) {
  image.onload = () => {
    const longest = Math.max(image.naturalWidth, image.naturalHeight);
    image.classList.toggle("pixels", !found.shrunk && longest > 0 && longest <= 128);
  };
  image.src = found.url;
}

const promptOf = row => data.rows[row].text || "(no prompt)";

function shot(row, arm, scorer) {
  const figure = make("figure", "shot");
  const cell = data.rows[row].cells[arm], { name, family } = data.arms[arm];
  const found = picture(row, arm);
  if (cell.status === "done" && found) {
    const button = make("button");
    button.type = "button";
    button.setAttribute("aria-label", `Compare the picture of ${name}`);
    const image = make("img");
    image.alt = `${name}: ${promptOf(row)}`;
    image.decoding = "async";
    image.onerror = () => button.replaceChildren(make("span", "absent", "cannot be shown"));
    show(image, found);
    button.append(image);
    button.onclick = () => slider.open(row, arm);
    figure.append(button);
  } else {
    const why = cell.status === "done" ? "not in this page" : cell.reason || cell.status;
    figure.append(make("div", "absent user", cell.status === "failed" ? `failed: ${why}` : why));
  }
  const caption = make("figcaption");
  caption.append(make("span", `name user c${family}`, name));
  if (scorer) caption.append(number(scores(row, scorer)[arm], scorer));
  for (const flag of cell.flags || []) caption.append(make("span", "flag user", `⚑ ${flag}`));
  figure.append(caption);
  return figure;
}

function about(row, pair, scorer) {
  const of = data.rows[row];
  const parts = [of.id, of.category, of.replicate ? `replicate ${of.replicate}` : "",
    of.seed === null ? "" : `seed ${of.seed}`];
  const line = make("p", "about");
  line.append(make("span", "user", parts.filter(Boolean).join(" · ")));
  if (pair && scorer) {
    const found = difference(row, pair, scorer), value = gain(row, pair, scorer);
    const lean = scorer.sign && value ? (value > 0 ? "better" : "worse") : "";
    line.append(" · ", make("strong", lean, number(found, scorer, true)));
  }
  return line;
}

function prompt(row) {
  const line = make("p", "prompt user", promptOf(row));
  line.dir = "auto";
  line.title = promptOf(row);
  return line;
}

// --- what is chosen --------------------------------------------------------------------------

const chosen = {
  get pair() { return data.pairs[find("pair").value]; },
  get scorer() { return data.scorers[find("scorer").value]; },
  get arms() {
    const all = data.arms.map((_, n) => n), { pair } = this;
    if (!pair || find("arms").value === "all") return all;
    if (find("arms").value === "pair") return pair;
    const owner = data.arms[pair[0]].owner;
    return all.filter(n => data.arms[n].owner === owner || pair.includes(n));
  },
};

// --- best and worst --------------------------------------------------------------------------

function extremes() {
  const { pair, scorer } = chosen;
  const ranked = data.rows.map((_, row) => row)
    .filter(row => pair && scorer && gain(row, pair, scorer))
    .sort((a, b) => gain(b, pair, scorer) - gain(a, pair, scorer));
  const wins = ranked.filter(row => gain(row, pair, scorer) > 0).slice(0, EXTREMES);
  const losses = ranked.filter(row => gain(row, pair, scorer) < 0).reverse().slice(0, EXTREMES);
  const neutral = scorer && !scorer.sign;
  document.querySelector(".wins h3").textContent = neutral ? "Largest rises" : "Best wins";
  document.querySelector(".losses h3").textContent = neutral ? "Largest falls" : "Worst losses";
  for (const [id, rows] of [["wins", wins], ["losses", losses]]) {
    const list = rows.map(row => {
      const article = make("article", "row");
      const pictures = make("div", "pictures");
      pictures.append(...pair.map(arm => shot(row, arm, scorer)));
      article.append(prompt(row), about(row, pair, scorer), pictures);
      return article;
    });
    find(id).replaceChildren(...(list.length ? list : [make("p", "small", "None.")]));
  }
}

// --- all of them -----------------------------------------------------------------------------

const rows = data.rows.map((_, row) => {
  const article = make("article", "row");
  article.dataset.row = row;
  return article;
});

function fill(article) {
  const row = Number(article.dataset.row), { pair, scorer, arms } = chosen;
  const pictures = make("div", "pictures");
  pictures.append(...arms.map(arm => shot(row, arm, scorer)));
  article.replaceChildren(prompt(row), about(row, pair, scorer), pictures);
}

const near = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { near.unobserve(target); fill(target); }
  }
}, { rootMargin: "800px" });

const odd = row => data.rows[row].cells.some(cell => cell.status !== "done" || cell.flags);

let order = [];

function arrange() {
  const { pair, scorer } = chosen, by = find("order").value;
  const words = find("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const category = find("category").value;
  order = data.rows.map((_, row) => row).filter(row => {
    const { text, category: own } = data.rows[row], lower = text.toLowerCase();
    return (category === "" || own === category) && words.every(word => lower.includes(word))
      && (!find("odd").checked || odd(row));
  });
  if (by !== "set" && pair && scorer) {
    const key = { wins: g => g, losses: g => -g, size: Math.abs }[by];
    const of = row => { const g = gain(row, pair, scorer); return g === null ? -Infinity : key(g); };
    // A row without the score comes last, whichever way round; equals stay in the order of the set.
    order.sort((a, b) => { const x = of(a), y = of(b); return x === y ? 0 : y - x; });
  }
  near.disconnect();
  find("grid").replaceChildren(...order.map(row => rows[row]));
  for (const row of order) { rows[row].replaceChildren(); near.observe(rows[row]); }
  const total = data.rows.length.toLocaleString("en");
  find("count").textContent = order.length === data.rows.length
    ? `${total} rows` : `${order.length.toLocaleString("en")} of ${total} rows`;
}

// --- two of them, one over the other -----------------------------------------------------------

const slider = {
  row: 0,
  open(row, arm) {
    const { pair } = chosen;
    const other = pair ? (arm === pair[0] ? pair[1] : pair[0]) : data.arms.findIndex((_, n) => n !== arm);
    this.row = row;
    find("left").value = arm;
    find("right").value = other < 0 ? arm : other;
    find("cut").value = 50;
    find("slider").showModal();
    this.draw();
    find("cut").focus();
  },
  draw() {
    const left = Number(find("left").value), right = Number(find("right").value);
    find("slider-prompt").textContent = promptOf(this.row);
    for (const [id, arm, tag] of [["over", left, "tag-a"], ["under", right, "tag-b"]]) {
      this.put(find(id), arm);
      find(tag).textContent = data.arms[arm].name;
    }
    this.table(left, right);
    this.cut();
  },
  /** The picture inside the page at once; the whole one, if it lies beside it, when it is there. */
  put(image, arm) {
    const found = picture(this.row, arm);
    image.alt = found ? data.arms[arm].name : `${data.arms[arm].name}: no picture`;
    image.style.visibility = found ? "" : "hidden";
    if (!found) { image.removeAttribute("src"); return; }
    show(image, found);
    if (!found.href || !found.shrunk) return;
    const whole = new Image();
    whole.onload = () => { if (image.getAttribute("src") === found.url) image.src = found.href; };
    whole.src = found.href;
  },
  table(left, right) {
    const head = make("tr"), body = make("tbody");
    head.append(make("th", "left", "Score"), make("th", "user", data.arms[left].name),
      make("th", "", "difference"), make("th", "user", data.arms[right].name));
    for (const scorer of data.scorers) {
      const line = make("tr"), name = make("th", "user", scorer.name);
      name.scope = "row";
      const found = difference(this.row, [left, right], scorer);
      const value = gain(this.row, [left, right], scorer);
      const lean = scorer.sign && value ? (value > 0 ? "better" : "worse") : "";
      line.append(name, make("td", "", number(scores(this.row, scorer)[left], scorer)),
        make("td", lean, number(found, scorer, true)),
        make("td", "", number(scores(this.row, scorer)[right], scorer)));
      body.append(line);
    }
    const top = make("thead");
    top.append(head);
    find("slider-scores").replaceChildren(top, body);
  },
  cut() { find("stage").style.setProperty("--cut", `${find("cut").value}%`); },
  step(by) {
    const next = order[order.indexOf(this.row) + by];
    if (next === undefined) return;
    this.row = next;
    this.draw();
  },
  swap() {
    [find("left").value, find("right").value] = [find("right").value, find("left").value];
    this.draw();
  },
  drag(event) {
    if (event.buttons !== 1) return;
    const box = find("stage").getBoundingClientRect();
    find("cut").value = Math.round(100 * (event.clientX - box.left) / box.width);
    this.cut();
  },
};

// --- start -----------------------------------------------------------------------------------

data.pairs.forEach(([a, b], n) => option(find("pair"), n, `${data.arms[a].name} against ${data.arms[b].name}`));
data.scorers.forEach((scorer, n) => option(find("scorer"), n, scorer.name));
data.arms.forEach((arm, n) => { option(find("left"), n, arm.name); option(find("right"), n, arm.name); });
const categories = [...new Set(data.rows.map(row => row.category))].filter(Boolean);
option(find("category"), "", "all");
categories.forEach(category => option(find("category"), category, category));
find("category-label").hidden = categories.length < 2;
if (data.arms.length > 8 && data.pairs.length) find("arms").value = "family";

for (const id of ["pair", "scorer"]) find(id).onchange = () => { extremes(); arrange(); };
for (const id of ["order", "arms", "category", "odd"]) find(id).onchange = arrange;
find("words").oninput = arrange;
find("cut").oninput = () => slider.cut();
find("left").onchange = find("right").onchange = () => slider.draw();
find("swap").onclick = () => slider.swap();
find("close").onclick = () => find("slider").close();
find("stage").onpointerdown = event => { find("stage").setPointerCapture(event.pointerId); slider.drag(event); };
find("stage").onpointermove = event => slider.drag(event);
find("slider").onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  if (event.key === "n") slider.step(1);
  else if (event.key === "p") slider.step(-1);
  else if (event.key === "x") slider.swap();
};
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});

extremes();
arrange();
document.documentElement.dataset.ready = "1";
