"""Style and script of the report's page (page.py): no fonts, no images, no request."""

STYLE = """
:root{--bg:#fff;--fg:#1a1d21;--dim:#565e68;--line:#d5d9de;--soft:#f4f6f8;--good:#1a6b3c;--bad:#a81414;
--focus:#0b57d0;--a:#fff;--b:#eef3f6;--c:#d9e8ef;--d:#bcd8e6;--e:#95c2d8;--f:#66a5c6;--g:#3c83ad;
--h:#1d5c86;--i:#f2a33a;--j:#df5a1f;--k:#b3121d;--l:#4b0b3f;--hatch:#0007}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9ec;--dim:#a3acb6;
--line:#3a4149;--soft:#1e2328;--good:#6fd39a;--bad:#ff8a80;--focus:#8ab4ff;--a:#14171a;--b:#23292e;
--c:#20343f;--d:#214656;--e:#25596f;--f:#2f7390;--g:#4593b5;--h:#8cc7e2;--i:#f2a33a;--j:#ff6d2e;
--k:#ff3b47;--l:#f29be0;--hatch:#000b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1560px;padding:0 clamp(12px,2vw,32px) 32px;background:var(--bg);
color:var(--fg);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;margin:1rem 0 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:1.6rem 0 .5rem;overflow-wrap:anywhere}
p{margin:.3rem 0}header p,footer,#keys,.none{color:var(--dim)}
#verdict{border:1px solid var(--line);border-left:6px solid var(--dim);background:var(--soft);
padding:.7rem 1rem;margin-top:1rem}#verdict h2{margin:0}
#verdict.equal{border-left-color:var(--good)}#verdict.diverged{border-left-color:var(--bad)}
.equal h2,.within .mark{color:var(--good)}.diverged h2,.over .mark{color:var(--bad)}
.over .mark,.over code{font-weight:600}
dl{margin:.6rem 0 0}dl div{display:grid;grid-template-columns:7rem 1fr;gap:0 1rem}
dt{color:var(--dim);overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
dd,code,.n{font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}
ul{padding-left:1.2rem}#legend{list-style:none;padding:0;margin:.4rem 0;display:flex;flex-wrap:wrap;
gap:.2rem 1rem;font-size:.85rem}
.key{display:inline-block;width:1rem;height:1rem;margin-right:.35rem;vertical-align:-2px;
border:1px solid var(--line)}
#filter{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin:.4rem 0}
[hidden]{display:none!important}
input,select,button{font:inherit;color:inherit;background:var(--bg);border:1px solid var(--dim);
border-radius:4px;padding:.25rem .5rem;min-height:2rem}
input[type=search]{width:14rem;max-width:60vw}
input[type=checkbox]{min-height:0;width:1.1rem;height:1.1rem;vertical-align:-2px}
button{cursor:pointer}
:focus-visible{outline:3px solid var(--focus);outline-offset:1px}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;width:max-content}td{max-width:40rem}
th,td{text-align:left;padding:.2rem .7rem .2rem 0;vertical-align:top;
border-bottom:1px solid var(--line)}
thead th{white-space:nowrap;font-weight:600}.n{text-align:right;white-space:nowrap}
th[scope=rowgroup]{padding-top:.9rem}td code{display:inline-block;min-width:11rem}
#strip{border-collapse:separate;border-spacing:1px;margin:3px}
#strip th{font-weight:400;font-size:.85rem;padding:0 .5rem 0 0;border:0;white-space:nowrap;
vertical-align:middle}
#strip th[scope=row],#strip th[scope=col]{position:sticky;left:0;background:var(--bg);z-index:1}
#strip td{padding:0;border:0;height:24px;width:5px;min-width:5px;cursor:pointer}
#strip.w2 td{width:12px;min-width:12px}#strip.w3 td{width:24px;min-width:24px}
#strip.w4 td{width:64px;min-width:64px}
#strip td:focus{outline:3px solid var(--focus);outline-offset:1px;position:relative;z-index:2}
#strip td.first,.key.first{box-shadow:inset 0 0 0 2px var(--fg)}
.a{background:var(--a)}.b{background:var(--b)}.c{background:var(--c)}.d{background:var(--d)}
.e{background:var(--e)}.f{background:var(--f)}.g{background:var(--g)}.h{background:var(--h)}
.i{background:var(--i)}.j{background:var(--j)}.k{background:var(--k)}.l{background:var(--l)}
#strip .i,#strip .j,#strip .k,#strip .l,.key.i,.key.j,.key.k,.key.l{background-image:
repeating-linear-gradient(135deg,var(--hatch) 0 1px,transparent 1px 5px)}
#details{min-height:3.2em;border-left:3px solid var(--line);padding-left:.7rem;
overflow-wrap:anywhere}
dialog{max-width:min(60rem,96vw);max-height:92vh;overflow:auto;background:var(--bg);color:var(--fg);
border:1px solid var(--dim);border-radius:6px;padding:1rem}dialog h2{margin-top:0}
dialog::backdrop{background:#0008}
@media(max-width:34rem){dl div{display:block;margin:.4rem 0}body{padding:0 10px 24px}}
footer{margin-top:1.5rem;font-size:.85rem}
@media print{body{max-width:none;padding:0;font-size:10pt}
#filter,#keys,#details,dialog{display:none!important}
.scroll{overflow:visible}#strip{border-spacing:0;margin:0}
#strip.w1 td{width:2.1px;min-width:2.1px;height:12px}#strip th{font-size:7pt;white-space:normal}
#strip td,.key{print-color-adjust:exact;-webkit-print-color-adjust:exact}
tr,#verdict{break-inside:avoid}h2{break-after:avoid}}
"""

SCRIPT = r"""
"use strict";
(() => {
const byId = id => document.getElementById(id), strip = byId("strip");
if (!strip) return;
const data = JSON.parse(byId("data").textContent), details = byId("details"), dialog = byId("step");
const phase = byId("phase"), name = byId("name"), over = byId("over"), found = byId("found");
const rows = [...strip.tBodies[0].rows], cells = rows.map(row => [...row.cells].slice(1));
const home = cells.map(row => row.map(cell => cell.className));
const bodies = [...document.querySelectorAll("#worst tbody")], kept = bodies.map(b => [...b.rows]);
let at = [0, 0], filtered = null, shown = 0;
cells.forEach((row, r) => row.forEach((cell, c) => { if (cell.tabIndex === 0) at = [r, c]; }));

const place = row => row[2] < 0 ? "" :
  `step ${row[3]}${row[4] ? ", micro-batch " + row[4] : ""}, ${data.names[row[2]]}`;
function sentence(r, c) {
  const head = `${data.phases[r]}, ${data.columns[c]}: `, row = data.cells[r][c];
  if (filtered) return `${head}${data.levels[filtered[r][c]]} (what the filter leaves, in budgets)`;
  if (!row) return head + "nothing compared";
  const where = place(row), many = `${row[6]} of ${row[5]} tensors over budget`;
  if (!where) return `${head}no difference in ${row[5]} tensors`;
  const times = row[0] === "inf" ? "beyond any budget" : `${row[0]} of the budget`;
  return `${head}${times} at ${where}; largest difference ${row[1]}; ${many}`;
}
function show(r, c) {
  details.replaceChildren(sentence(r, c) + " ");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `all phases of ${data.columns[c]}`;
  button.addEventListener("click", () => open(c));
  details.append(button);
}
function move(r, c, focus = true) {
  cells[at[0]][at[1]].tabIndex = -1;
  at = [r, c];
  const cell = cells[r][c];
  cell.tabIndex = 0;
  cell.setAttribute("aria-label", sentence(r, c));
  if (focus) {
    cell.focus({preventScroll: true});
    cell.scrollIntoView({block: "nearest", inline: "nearest"});
    const frame = strip.parentElement, edge = rows[r].cells[0].getBoundingClientRect().right;
    const hidden = edge - cell.getBoundingClientRect().left;
    if (hidden > 0) frame.scrollLeft -= hidden + 8;
  }
  show(r, c);
}
function open(c) {
  shown = c;
  byId("step-title").textContent = `All phases of ${data.columns[c]}`;
  dialog.querySelector("tbody").replaceChildren(...data.phases.map((text, r) => {
    const row = data.cells[r][c];
    if (!row) return line([text, "-", "-", "nothing compared", "-"], [1, 2, 4], false);
    const texts = [text, row[0], row[1], place(row) || "-", `${row[6]} of ${row[5]}`];
    return line(texts, [1, 2, 4], row[6] > 0);
  }));
  if (!dialog.open) dialog.showModal();
}
function line(texts, numeric, isBad) {
  const row = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = row.insertCell();
    cell.textContent = text;
    if (numeric.includes(i)) cell.className = "n";
  });
  if (isBad) row.className = "over";
  return row;
}
strip.addEventListener("keydown", event => {
  const cell = event.target.closest("td");
  if (!cell || event.altKey || event.metaKey) return;
  const seen = rows.map((row, i) => i).filter(i => !rows[i].hidden);
  const last = data.columns.length - 1, key = event.key;
  let [r, c] = at, i = seen.indexOf(r);
  if (key === "ArrowRight") c = Math.min(c + 1, last);
  else if (key === "ArrowLeft") c = Math.max(c - 1, 0);
  else if (key === "ArrowUp") i = Math.max(i - 1, 0);
  else if (key === "ArrowDown") i = Math.min(i + 1, seen.length - 1);
  else if (key === "Home") { c = 0; if (event.ctrlKey) i = 0; }
  else if (key === "End") { c = last; if (event.ctrlKey) i = seen.length - 1; }
  else if (key === "PageUp") c = Math.max(c - 10, 0);
  else if (key === "PageDown") c = Math.min(c + 10, last);
  else if (key === "Enter" || key === " ") open(c);
  else return;
  event.preventDefault();
  if (key !== "Enter" && key !== " ") move(seen[i], c);
});
function of(target) {
  const cell = target.closest("td");
  return cell && [rows.indexOf(cell.parentElement), cell.cellIndex - 1];
}
const on = (kind, act) => strip.addEventListener(kind, event => {
  const p = of(event.target);
  if (p) act(...p);
});
on("focusin", (r, c) => move(r, c, false));
on("click", move);
on("dblclick", (r, c) => open(c));
byId("earlier").addEventListener("click", () => open(Math.max(shown - 1, 0)));
byId("later").addEventListener("click", () => open(Math.min(shown + 1, data.columns.length - 1)));
dialog.addEventListener("keydown", event => {
  const button = {ArrowLeft: "earlier", ArrowRight: "later"}[event.key];
  if (button && event.target.tagName === "BUTTON") byId(button).click();
});
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => move(at[0], shown));

function filter() {
  const want = name.value.trim().toLowerCase(), only = over.checked;
  const some = want !== "" || only;
  const hits = data.tensors.filter(t => data.names[t[1]].toLowerCase().includes(want) &&
    (!only || t[2][6] > 0) && (!phase.value || data.phases[t[0]] === phase.value));
  filtered = some ? data.phases.map(() => Array(data.columns.length).fill("a")) : null;
  if (some) hits.forEach(t => [...t[3]].forEach((letter, c) => {
    if (letter > filtered[t[0]][c] && (!only || letter > "h")) filtered[t[0]][c] = letter;
  }));
  const has = new Set(hits.map(t => t[0]));
  rows.forEach((row, r) => {
    row.hidden = Boolean(phase.value && data.phases[r] !== phase.value) || (some && !has.has(r));
    cells[r].forEach((cell, c) => {
      cell.className = some ? home[r][c].replace(/^./, filtered[r][c]) : home[r][c];
      cell.title = sentence(r, c);
    });
    bodies[r].hidden = row.hidden;
    const mine = hits.filter(t => t[0] === r), most = some || phase.value ? 50 : data.worst;
    const lines = mine.slice(0, most).map(([, n, [error, worst, where, step, micro, all, bad]]) => {
      const when = where < 0 ? "-" : step + (micro ? ` / ${micro}` : "");
      const texts = [data.names[n], error, worst, when, `${bad} of ${all}`];
      const row = line(texts, [1, 2, 3, 4], bad > 0);
      const code = document.createElement("code");
      code.append(...row.cells[0].childNodes);
      row.cells[0].append(code);
      return row;
    });
    if (mine.length > most) lines.push(line([`${mine.length - most} more`], [], false));
    bodies[r].replaceChildren(kept[r][0], ...(some || phase.value ? lines : kept[r].slice(1)));
  });
  found.textContent = !some && !phase.value ? "" : `${hits.length} tensors` +
    (data.left_out ? ` (the ${data.left_out} least wrong are not in this page)` : "");
  if (rows[at[0]].hidden) {
    const r = rows.findIndex(row => !row.hidden);
    if (r >= 0) move(r, at[1], false);
  } else show(...at);
}
[phase, over].forEach(field => field.addEventListener("change", filter));
name.addEventListener("input", filter);
byId("filter").addEventListener("submit", event => event.preventDefault());
for (const id of ["filter", "keys", "details"]) byId(id).hidden = false;
move(...at, false);
})();
"""
