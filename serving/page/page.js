"use strict";
// Drop, choose or paste pictures; each is one POST to `predict`, four at a time, and one card.

const AT_ONCE = 4;
const RETRIES = 5;
const $ = (id) => document.getElementById(id);
const waiting = [];
let running = 0;
let answered = 0;
let faulty = 0;

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

const percent = (share) => `${(share * 100).toFixed(1)} %`;
const pause = (seconds) => new Promise((wake) => setTimeout(wake, seconds * 1000));

async function showModel() {
  const response = await fetch("model", { headers: headers() });
  if (response.status === 401) return askForKey();
  if (!response.ok) throw new Error((await response.json()).detail);
  const model = await response.json();
  $("key-form").hidden = true;
  $("model-name").textContent = model.name;
  document.title = model.name;
  const facts = [`${model.labels.length} classes`];
  if (typeof model.metrics.accuracy === "number") facts.push(`test accuracy ${percent(model.metrics.accuracy)}`);
  facts.push(`${model.input.width_px} × ${model.input.height_px} pixels`);
  $("model-facts").textContent = facts.join(" · ");
  $("digest").textContent = model.digest.slice(0, 19);
  $("limits").textContent = `up to ${Math.round(model.limits.upload_bytes / 1048576)} MB each`;
  const classes = $("classes");
  classes.hidden = false;
  classes.querySelector("summary").textContent = "Classes";
  classes.open = model.labels.length <= 12;
  const items = model.labels.map((label) => Object.assign(document.createElement("li"), { textContent: label }));
  classes.querySelector("ul").replaceChildren(...items);
}

function askForKey() {
  $("model-name").textContent = "Class folders";
  $("key-form").hidden = false;
  $("key").focus();
}

function add(files) {
  for (const file of files) {
    const card = $("result").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.onerror = () => image.remove(); // a TIFF is a picture to the model, not to every browser
    card.querySelector("h2").textContent = file.name || "Pasted picture";
    card.querySelector(".note").textContent = "Waiting…";
    $("results").append(card);
    waiting.push({ file, card });
  }
  $("clear").hidden = false;
  work();
}

function work() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    predict(waiting.shift()).finally(() => {
      running -= 1;
      work();
    });
  }
  const left = running + waiting.length;
  const done = `${answered} answered${faulty ? `, ${faulty} could not be used` : ""}`;
  $("status").textContent = left ? `${done}, ${left} to go` : answered + faulty ? done : "";
}

async function predict({ file, card }) {
  try {
    const response = await send(file);
    const answer = await response.json();
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error(answer.detail || `The server answered ${response.status}`);
    show(card, answer);
    answered += 1;
  } catch (error) {
    card.classList.add("bad");
    const lost = error instanceof TypeError; // what fetch throws when no answer came
    card.querySelector(".note").textContent = lost ? "The server cannot be reached. Is it still running?" : error.message;
    faulty += 1;
  }
}

async function send(file) {
  for (let attempt = 0; ; attempt += 1) {
    const response = await fetch("predict", { method: "POST", body: file, headers: headers() });
    if (response.status !== 503 || attempt === RETRIES) return response;
    await pause(Number(response.headers.get("Retry-After")) || 1);
  }
}

function show(card, answer) {
  const bars = answer.predictions.map(({ label, probability }) => {
    const item = document.createElement("li");
    item.innerHTML =
      '<div class="name"><span></span><span></span></div><div class="track"><div class="fill"></div></div>';
    const [name, share] = item.querySelectorAll("span");
    name.textContent = label;
    share.textContent = percent(probability);
    item.querySelector(".fill").style.width = `${probability * 100}%`;
    return item;
  });
  card.querySelector(".bars").replaceChildren(...bars);
  card.querySelector(".note").textContent = answer.note || "";
  const best = answer.predictions[0];
  card.querySelector("img")?.setAttribute("alt", `${best.label}, ${percent(best.probability)}`);
}

function clear() {
  for (const image of document.querySelectorAll("#results img")) URL.revokeObjectURL(image.src);
  waiting.length = 0;
  $("results").replaceChildren();
  answered = faulty = 0;
  $("clear").hidden = true;
  $("files").focus();
  work();
}

$("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // the same picture can be chosen again
});
$("clear").addEventListener("click", clear);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  start();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
// The whole page takes a drop: a picture that misses the box must not replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add(event.dataTransfer.files);
});

function start() {
  showModel().catch((error) => {
    $("model-name").textContent = "The model cannot be reached";
    $("model-facts").textContent = error.message;
  });
}
start();
