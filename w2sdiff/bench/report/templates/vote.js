"use strict";
// What is kept: who votes (a random number), and the votes in the order they were given. The page
// does not know which picture is whose; the key that does lies with whoever made the page.

const { poll, prompts } = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const PLACE = `w2sdiff votes ${poll}`;
const KEYS = { 1: "left", 2: "right", 0: "tie", z: "undo", Z: "undo" };

function newVoter() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
}

const whole = kept => kept && typeof kept.voter === "string" && Array.isArray(kept.votes)
  && kept.votes.every(({ pair, choice }, n) => pair === n && ["left", "right", "tie"].includes(choice));

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE));
    if (whole(kept) && kept.votes.length <= prompts.length) return kept;
  } catch { /* nothing kept, or nothing may be kept */ }
  return { voter: newVoter(), votes: [] };
}

function keep() {
  try {
    localStorage.setItem(PLACE, JSON.stringify(state));
  } catch {
    find("note").textContent = "This browser keeps nothing: save your votes before you close the page.";
  }
}

const state = recall();
let ready = false; // no vote before both pictures can be seen

async function draw() {
  ready = false;
  const next = state.votes.length, done = next >= prompts.length;
  find("progress").max = prompts.length;
  find("progress").value = next;
  find("place").textContent = done ? `${prompts.length} of ${prompts.length} done` : `${next + 1} of ${prompts.length}`;
  find("undo").disabled = next === 0;
  find("ask").hidden = done;
  find("end").hidden = !done;
  if (done) { find("save-end").focus(); return; }
  find("prompt").textContent = prompts[next] || "(no prompt)";
  const urls = JSON.parse(find(`pictures-${next}`).textContent);
  const images = [find("left"), find("right")];
  // Both at once: which of them loads faster must tell nothing.
  for (const image of images) image.style.visibility = "hidden";
  images.forEach((image, n) => { image.src = urls[n]; });
  await Promise.allSettled(images.map(image => image.decode()));
  if (next !== state.votes.length) return;
  for (const image of images) {
    image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 128);
    image.style.visibility = "";
  }
  ready = true;
}

function vote(choice) {
  if (!ready || state.votes.length >= prompts.length) return;
  state.votes.push({ pair: state.votes.length, choice });
  find("note").textContent = "";
  keep();
  draw();
}

function undo() {
  if (!state.votes.pop()) return;
  keep();
  draw();
}

function anew() {
  Object.assign(state, { voter: newVoter(), votes: [] });
  find("note").textContent = "";
  keep();
  draw();
}

function save() {
  const data = { format: "w2sdiff votes", poll, voter: state.voter, votes: state.votes };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  link.download = `votes-${state.voter}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  find("note").textContent = `Saved ${state.votes.length} votes to ${link.download}.`;
}

for (const button of document.querySelectorAll("[data-choice]")) {
  button.onclick = () => { vote(button.dataset.choice); button.blur(); };
}
find("undo").onclick = undo;
find("anew").onclick = anew;
find("save").onclick = find("save-end").onclick = save;
addEventListener("keydown", event => {
  const action = KEYS[event.key];
  if (!action || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (action === "undo") undo(); else vote(action);
});

keep();
draw();
