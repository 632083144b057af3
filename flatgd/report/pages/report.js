// Values on hover; tables to sort, filter and copy; replies to search. The page is complete without.
"use strict";
for (const tools of document.querySelectorAll(".tools[hidden]")) tools.hidden = false;

if (document.querySelector("[data-reload]")) setTimeout(() => location.reload(), 10_000);

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
for (const title of document.querySelectorAll("svg title")) {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
}
for (const track of document.querySelectorAll(".track"))
  track.dataset.tip = track.previousElementSibling.textContent + ": " + track.nextElementSibling.textContent;
document.addEventListener("pointermove", (event) => {
  const at = event.target.closest("[data-tip]");
  tip.hidden = !at;
  if (!at) return;
  tip.textContent = at.dataset.tip;
  const room = innerWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, room)) + "px";
  tip.style.top = (event.clientY > innerHeight - 60 ? event.clientY - 36 : event.clientY + 16) + "px";
});

for (const box of document.querySelectorAll("[data-search]")) {
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    for (const item of document.querySelectorAll(box.dataset.search))
      item.hidden = !item.textContent.toLowerCase().includes(wanted);
  });
}
const blind = document.querySelector("[data-blind]");
if (blind) {
  const samples = document.getElementById("samples");
  blind.addEventListener("change", () => {
    samples.classList.toggle("blind", blind.checked);
    for (const reply of samples.querySelectorAll(".side li")) {
      reply.classList.remove("shown");
      reply.tabIndex = blind.checked ? 0 : -1;
    }
  });
  const show = (event) => {
    const reply = event.target.closest(".blind .side li");
    if (reply && (event.type === "click" || event.key === "Enter")) reply.classList.toggle("shown");
  };
  samples.addEventListener("click", show);
  samples.addEventListener("keydown", show);
}

for (const tools of document.querySelectorAll("[data-table]")) {
  const table = document.getElementById(tools.dataset.table);
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const number = (text) => parseFloat(text.replace(/,/g, ""));
  heads.forEach((head, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const way = up ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [a.cells[n].textContent, b.cells[n].textContent];
        const [u, v] = [number(x), number(y)];
        if (isNaN(u) !== isNaN(v)) return isNaN(u) ? 1 : -1; // empty cells last
        return way * (isNaN(u) ? x.localeCompare(y) : u - v);
      });
      body.append(...rows);
    });
  });
  tools.querySelector("[data-filter]").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = (row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  heads.slice(2).forEach((head, n) => {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    const label = document.createElement("label");
    label.append(box, head.textContent);
    tools.querySelector(".columns").append(label);
    box.addEventListener("change", () => {
      for (const row of table.rows) row.cells[n + 2].hidden = !box.checked;
    });
  });
  const shown = () =>
    [...table.rows].filter((row) => !row.hidden).map((row) =>
      [...row.cells].filter((cell) => !cell.hidden).map((cell) => cell.textContent.trim().replace(/\s+/g, " ")));
  const escaped = (text) =>
    text.replace(/[\\&%$#_{}]/g, (c) => (c === "\\" ? "\\textbackslash{}" : "\\" + c))
      .replace(/↑/g, "$\\uparrow$").replace(/↓/g, "$\\downarrow$").replace(/−/g, "$-$");
  const forms = {
    markdown: (rows) => rows.map((row) => "| " + row.join(" | ") + " |")
      .toSpliced(1, 0, "|" + "---|".repeat(rows[0].length)).join("\n"),
    csv: (rows) => rows.map((row) => row.map((text) => '"' + text.replace(/"/g, '""') + '"').join(",")).join("\n"),
    latex: (rows) => "\\begin{tabular}{" + "l".repeat(2) + "r".repeat(rows[0].length - 2) + "}\n\\toprule\n" +
      rows.map((row) => row.map(escaped).join(" & ") + " \\\\").toSpliced(1, 0, "\\midrule").join("\n") +
      "\n\\bottomrule\n\\end{tabular}",
  };
  for (const button of tools.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = forms[button.dataset.copy](shown());
      const status = tools.querySelector("[role=status]");
      try {
        await navigator.clipboard.writeText(text);
      } catch { // pages opened as files may not use the clipboard
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      status.textContent = `Copied ${shown().length - 1} rows.`;
    });
  }
}
