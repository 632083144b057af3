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
  keys.closest("p").hidden = false;
  keys.checked = localStorage.getItem("keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("keys", keys.checked ? "on" : "off"));
}

function current() {
  const asked = [...form.querySelectorAll("fieldset")];
  return asked.find((f) => f.contains(document.activeElement))
    || asked.find((f) => !f.querySelector(":checked")) || asked[asked.length - 1];
}

function after(fieldset) {
  const asked = [...form.querySelectorAll("fieldset")];
  return asked.slice(asked.indexOf(fieldset) + 1).find((f) => !f.querySelector(":checked"));
}

document.addEventListener("keydown", (event) => {
  if (!form || !keys.checked || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = "1234".indexOf(event.key);
  if (choice >= 0) {
    const fieldset = current();
    fieldset.querySelectorAll("input")[choice].checked = true;
    const next = after(fieldset);
    (next ? next.querySelector("input") : form.querySelector("button")).focus();
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("button, a, summary")) {
    form.requestSubmit();
    event.preventDefault();
  } else if (event.key === "u") {
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
