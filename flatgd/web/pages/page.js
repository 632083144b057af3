"use strict";
// Everything works without this file; it adds keys, keeps a form from being sent twice, sends what is
// said in a chat by Enter, and brings the administrator's page up to date.

const form = document.getElementById("answer");

for (const sent of document.forms) {
  sent.addEventListener("submit", () => {
    const button = sent.querySelector("button");
    if (button) setTimeout(() => { button.disabled = true; }, 0);
  });
}
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button")) button.disabled = false;
});

const keys = document.getElementById("keys");
if (keys) {
  const stored = { get: () => null, set: () => {} };  // a browser may keep nothing
  try {
    localStorage.getItem("keys");
    stored.get = () => localStorage.getItem("keys");
    stored.set = (value) => localStorage.setItem("keys", value);
  } catch { /* then the choice lasts as long as the page */ }
  keys.closest("p").hidden = false;
  keys.checked = stored.get() !== "off";
  keys.addEventListener("change", () => stored.set(keys.checked ? "on" : "off"));
}

const asked = form ? [...form.querySelectorAll("fieldset")] : [];
let place = 0;  // of the question that a digit answers

function go(to) {
  place = to;
  const shown = asked[place];
  const target = shown ? shown.querySelector(":checked") || shown.querySelector("input")
    : form.querySelector("button");
  target.focus();
}

asked.forEach((fieldset, at) => fieldset.addEventListener("focusin", () => { place = at; }));
if (form && form.querySelector(":checked")) {  // an answer to be changed, or one left out
  go(Math.max(0, asked.findIndex((fieldset) => !fieldset.querySelector(":checked"))));
}

document.addEventListener("keydown", (event) => {
  if (event.key === "u" && !form && !event.target.closest("textarea, input")) {
    const undo = document.getElementById("undo");
    if (undo) undo.click();
  }
  if (!form || !keys.checked || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = "1234".indexOf(event.key);
  if (choice >= 0) {
    if (event.repeat || !asked[place]) return;
    asked[place].querySelectorAll("input")[choice].checked = true;
    go(place + 1);
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("button, a, summary")) {
    form.requestSubmit();
    event.preventDefault();
  } else if (event.key === "u" && !event.repeat) {
    const undo = document.getElementById("undo");
    if (undo) undo.click();
  }
});

const say = document.getElementById("say");
if (say) {
  say.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    say.form.requestSubmit();
    event.preventDefault();
  });
}

const live = document.getElementById("live");
if (live) {
  setInterval(async () => {
    if (document.hidden || live.contains(document.activeElement)) return;
    const answer = await fetch(location.href).catch(() => null);
    if (!answer || !answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    live.replaceChildren(...fresh.getElementById("live").childNodes);
    document.title = fresh.title;
  }, 3000);
}
