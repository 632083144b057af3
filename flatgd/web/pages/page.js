"use strict";
// All pages work without this file. It adds keyboard shortcuts, prevents a form from being sent twice,
// sends a chat message on Enter, and refreshes the administrator's page.

const form = document.getElementById("answer");

for (const submitted of document.forms) {
  submitted.addEventListener("submit", () => {
    const button = submitted.querySelector("button");
    if (button) setTimeout(() => { button.disabled = true; }, 0);
  });
}
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button")) button.disabled = false;
});

const keys = document.getElementById("keys");
if (keys) {
  const stored = { get: () => null, set: () => {} };  // storage may be blocked
  try {
    localStorage.getItem("keys");
    stored.get = () => localStorage.getItem("keys");
    stored.set = (value) => localStorage.setItem("keys", value);
  } catch { /* the choice then lasts until the page is closed */ }
  keys.closest("p").hidden = false;
  keys.checked = stored.get() !== "off";
  keys.addEventListener("change", () => stored.set(keys.checked ? "on" : "off"));
}

const questions = form ? [...form.querySelectorAll("fieldset")] : [];
let current = 0;  // index of the question that a digit answers

function focusQuestion(to) {
  current = to;
  const shown = questions[current];
  const target = shown ? shown.querySelector(":checked") || shown.querySelector("input")
    : form.querySelector("button");
  target.focus();
}

questions.forEach((fieldset, at) => fieldset.addEventListener("focusin", () => { current = at; }));
if (form && form.querySelector(":checked")) {  // an answer to change, or an incomplete one
  focusQuestion(Math.max(0, questions.findIndex((fieldset) => !fieldset.querySelector(":checked"))));
}

document.addEventListener("keydown", (event) => {
  if (event.key === "u" && !form && !event.target.closest("textarea, input")) {
    const undo = document.getElementById("undo");
    if (undo) undo.click();
  }
  if (!form || !keys.checked || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = "1234".indexOf(event.key);
  if (choice >= 0) {
    if (event.repeat || !questions[current]) return;
    questions[current].querySelectorAll("input")[choice].checked = true;
    focusQuestion(current + 1);
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("button, a, summary")) {
    form.requestSubmit();
    event.preventDefault();
  } else if (event.key === "u" && !event.repeat) {
    const undo = document.getElementById("undo");
    if (undo) undo.click();
  }
});

const message = document.getElementById("message");
if (message) {
  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    message.form.requestSubmit();
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
