"use strict";
// What is shown stands in the address, so that it can be sent to somebody, and the back button works:
// #cell=device/method/question/implementation&row=...&find=...&verdict=... Texts of the data become text nodes, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const [PASS, KNOWN, FAIL] = [0, 1, 2];
const BOUND = 32;
const PARTS = ["variant", "shape", "layout or layer", "dtype", "regime", "mode"];
const AT_ONCE = 200;
const overview = document.getElementById("overview");
const page = document.getElementById("page");

const number = (value) => (typeof value === "string" ? { inf: Infinity, "-inf": -Infinity }[value] ?? NaN : value);
const small = (value) => typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3;
const written = (value) => String((small(value) ? value.toExponential() : value) ?? "").replace("e+", "e");
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function linked(text) {
  const pieces = text.split(/(https?:\/\/[^\s<>"')\]]+)/);
  return pieces.map((piece, i) => (i % 2 ? make("a", { href: piece, rel: "noreferrer noopener" }, piece) : piece));
}

// The address.

function read() {
  const found = {};
  for (const part of location.hash.slice(1).split("&")) {
    const at = part.indexOf("=");
    if (at > 0) found[part.slice(0, at)] = part.slice(at + 1).split("/").map(decoded);
  }
  return found;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function address(changes) {
  const entries = Object.entries({ ...read(), ...changes }).filter(([, parts]) => parts && parts.join(""));
  return "#" + entries.map(([name, parts]) => `${name}=${parts.map(encodeURIComponent).join("/")}`).join("&");
}

const go = (changes) => (location.hash = address(changes));

function refine(changes) {
  history.replaceState(null, "", address(changes));
  render();
}

// Checks, as the arrays in the data become objects; only those of an open cell do, or that a filter asks for.

const keyOf = (parts) => parts.join("\n");
const text = (index) => (index == null ? "" : data.texts[index]);

const runs = data.runs.map(([device, method, question, implementation, id, execution, snippet, rows]) => ({
  device: text(device), method: text(method), question: text(question), implementation: text(implementation), id: text(id),
  execution: text(execution), fields: data.cases[id], snippet, rows,
}));
const refused = data.refused.map(([device, method, question, implementation, reason, counts]) => ({
  device: text(device), method: text(method), question: text(question), implementation: text(implementation),
  reason: text(reason), counts,
}));

const namesOf = (run) => [...new Set(run.implementation.split(" = "))];
const cellsOf = (run) => namesOf(run).map((name) => keyOf([run.device, run.method, run.question, name]));
// What the filter looks at: words with hyphens around them, as the parts of a case's id have.
const searched = (...words) => `-${words.join("-")}-`.toLowerCase();

function byCell(things) {
  const cells = new Map();
  for (const thing of things) {
    for (const key of cellsOf(thing)) {
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(thing);
    }
  }
  return cells;
}
const runsOf = byCell(runs);
const refusedOf = byCell(refused);

function checksOf(run, wanted) {
  const own = searched(run.id, ...namesOf(run), run.execution);
  const words = wanted.words.filter((word) => !own.includes(word));
  const checks = [];
  for (const row of run.rows) {
    const [quantity, step, verdict, units, bound, reason, element, got, want, allowed, change, before] = row;
    if (wanted.verdict && data.verdicts[verdict] !== wanted.verdict) continue;
    const name = text(quantity);
    if (words.length && !words.every((word) => searched(name, `step${step}`).includes(word))) continue;
    checks.push({
      run, quantity: name, step, verdict, units: number(units), bound: number(bound), reason, element, got, want, allowed,
      change, before,
    });
  }
  return checks;
}

function refusedCount(one, wanted) {
  if (wanted.verdict && wanted.verdict !== "unsupported") return [0, []];
  const ids = [];
  let count = 0;
  for (let i = 0; i < one.counts.length; i += 2) {
    const id = text(one.counts[i]);
    if (!wanted.words.every((word) => searched(id, ...namesOf(one)).includes(word))) continue;
    ids.push(id);
    count += one.counts[i + 1];
  }
  return [count, ids];
}

// Nothing is measured where an error has no size: it is the largest, unless there is none.
function heat({ units, bound, verdict }) {
  if (units == null || bound == null) return verdict === PASS ? 0 : 1;
  if (units <= bound) return units ? 0.5 * Math.max(0, 1 + Math.log(units / bound) / Math.log(BOUND)) : 0;
  return bound ? 0.7 + 0.3 * Math.min(1, Math.log10(units / bound) / 3) : 1;
}

const sized = (check) => check.units != null && check.bound;
const excess = (check) => (sized(check) ? check.units / check.bound : check.verdict === PASS ? -1 : Infinity);
const worstFirst = (a, b) => b.verdict - a.verdict || (excess(a) === excess(b) ? 0 : excess(b) - excess(a));
const kindOf = (verdict) => data.verdicts[verdict].split(" ")[0];

function rounded(units) {
  if (!Number.isFinite(units)) return units > 0 ? "inf" : "nan";
  return units < 100 ? units.toFixed(1) : units.toExponential(0).replace("e+", "e");
}

function summary(checks) {
  const counts = [0, 0, 0];
  let worst = null;
  let hottest = null;
  for (const check of checks) {
    counts[check.verdict] += 1;
    if (check.units != null && !(worst > check.units)) worst = check.units;
    hottest = Math.max(hottest ?? 0, heat(check));
  }
  const size = worst == null ? (counts[PASS] ? "ok" : "") : rounded(worst);
  const known = counts[KNOWN] ? ` *${counts[KNOWN]}` : "";
  const failed = counts[FAIL] ? ` !${counts[FAIL]}` : "";
  const kind = kindOf(counts[FAIL] ? FAIL : counts[KNOWN] ? KNOWN : PASS);
  return { text: (size + known + failed).trim(), size, heat: hottest, kind, counts, worst };
}

// The matrix.

const cells = [...document.querySelectorAll(".matrix a.cell")].map((link) => {
  const key = keyOf(link.hash.slice("#cell=".length).split("/").map(decoded));
  return { link, key, was: { text: link.textContent, className: link.className, style: link.getAttribute("style") ?? "" } };
});

function showMatrix(wanted) {
  for (const { link, key, was } of cells) {
    const parts = key.split("\n");
    link.setAttribute("href", address({ cell: parts, row: null }));
    if (!wanted.words.length && !wanted.verdict) {
      [link.textContent, link.className] = [was.text, was.className];
      link.setAttribute("style", was.style);
      continue;
    }
    const found = (runsOf.get(key) ?? []).flatMap((run) => checksOf(run, wanted));
    const without = (refusedOf.get(key) ?? []).filter((one) => refusedCount(one, wanted)[0]);
    if (found.length) {
      const { text, heat, kind } = summary(found);
      [link.textContent, link.className] = [text, `cell ${kind}`];
      link.setAttribute("style", `--t:${heat.toFixed(3)}`);
    } else {
      const noDevice = without.every((one) => one.reason.includes("no device"));
      link.textContent = without.length ? (noDevice ? "no device" : "unsupported") : "·";
      link.className = without.length ? "cell unsupported" : "cell nothing";
      link.removeAttribute("style");
    }
  }
}

function showColumns(hidden) {
  for (const box of document.querySelectorAll("[data-shows]")) {
    const name = box.dataset.shows;
    box.checked = !(hidden[name] ?? []).includes(box.value);
    for (const element of document.querySelectorAll(`[data-${name}="${CSS.escape(box.value)}"]`)) element.hidden = !box.checked;
  }
}

// The page of a cell.

function showPage(state, wanted) {
  const key = keyOf(state.cell);
  const [device, method, question, implementation] = state.cell;
  const checks = (runsOf.get(key) ?? []).flatMap((run) => checksOf(run, wanted)).sort(worstFirst);
  const without = (refusedOf.get(key) ?? []).map((one) => [one, ...refusedCount(one, wanted)]).filter(([, count]) => count);
  const filtered = wanted.words.length || wanted.verdict;
  const { counts, worst } = summary(checks);
  const told = [
    counts[FAIL] && `${counts[FAIL].toLocaleString("en")} fail`,
    counts[KNOWN] && plural(counts[KNOWN], "known deviation"),
    counts[PASS] && `${counts[PASS].toLocaleString("en")} pass`,
    worst != null && `the worst error is ${rounded(worst)} units`,
  ].filter(Boolean);
  page.replaceChildren(
    make("p", { class: "back" }, make("a", { href: address({ cell: null, row: null }) }, "← the whole matrix")),
    make("h2", null, `${method} ${question.replace("_", " ")} `, make("small", null, `${implementation} on ${device}`)),
    make("p", { class: "lead" }, data.questions[question] ?? "There is no such cell in this report."),
    make(
      "p", null, `${plural(checks.length, "check")}${told.length ? ": " + told.join(", ") : ""}`,
      filtered ? make("span", null, ` · only ${[...wanted.words, wanted.verdict].filter(Boolean).join(" ")} `) : null,
      filtered ? make("button", { type: "button", onclick: () => refine({ find: null, verdict: null }) }, "show all") : null,
    ),
    form,
    ...(checks.length ? [where(checks, wanted, implementation), table(checks, state)] : []),
    ...(without.length ? [notCompared(without)] : []),
  );
}

function partsOf({ run, quantity, step }, implementation) {
  // A method's name holds no hyphen, and neither do the last five parts.
  const parts = run.fields.length ? run.id.slice(run.method.length + 1).split("-") : [];
  const named = parts.length ? [parts.slice(0, -5).join("-"), ...parts.slice(-5)] : [];
  const own = Object.fromEntries(named.map((part, i) => [PARTS[i], part]));
  const names = run.implementation.split(" = ");
  const pair = names.length > 1 ? { with: names[0] === implementation ? names[1] : names[0] } : {};
  return { ...pair, ...own, execution: run.execution, quantity, step: `step${step}` };
}

function where(checks, wanted, implementation) {
  const axes = {};
  const both = {};
  for (const check of checks) {
    const parts = partsOf(check, implementation);
    for (const [axis, value] of Object.entries(parts)) ((axes[axis] ??= {})[value] ??= []).push(check);
    if (parts.regime) ((both[parts.regime] ??= {})[parts.dtype] ??= []).push(check);
  }
  const only = (...values) => {
    const words = values.map((value) => `-${value.toLowerCase()}-`);
    const pressed = words.every((word) => wanted.words.includes(word));
    const rest = wanted.words.filter((word) => !words.includes(word));
    const find = (pressed ? rest : [...rest, ...words]).join(" ");
    return { onclick: () => refine({ find: [find], row: null }), "aria-pressed": String(pressed) };
  };
  const colour = (found) => ({ class: `cell ${found.kind}`, style: `--t:${found.heat.toFixed(3)}`, type: "button" });
  const dtypes = ["float64", "float32", "float16", "bfloat16"].filter((name) => axes.dtype?.[name]);
  const grid = make(
    "table", null,
    make("thead", null, make("tr", null, make("th"), ...dtypes.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", null, ...Object.entries(both).map(([regime, row]) => make(
      "tr", null, make("th", { scope: "row" }, regime),
      ...dtypes.map((name) => {
        if (!row[name]) return make("td");
        const found = summary(row[name]);
        const attributes = { ...colour(found), ...only(regime, name), title: found.text };
        return make("td", null, make("button", attributes, found.size || found.text));
      }),
    ))),
  );
  const varies = ([axis, values]) => axis !== "regime" && axis !== "dtype" && Object.keys(values).length > 1;
  const strips = Object.entries(axes).filter(varies);
  const strip = ([axis, values]) => make(
    "div", { class: "strip" }, make("span", null, axis),
    make("div", null, ...Object.entries(values).map(([value, some]) => {
      const found = summary(some);
      const attributes = { ...colour(found), ...only(value), title: found.text };
      attributes.class += " chip";
      return make("button", attributes, value.replace(/^step/, ""), make("b", null, found.size || found.text));
    })),
  );
  if (!dtypes.length && !strips.length) return "";
  return make(
    "section", { class: "where" },
    dtypes.length ? make("div", null, make("h3", null, "worst units by regime and dtype"), grid) : null,
    strips.length ? make("div", { class: "strips" }, make("h3", null, "and by everything else"), ...strips.map(strip)) : null,
  );
}

const rowKey = ({ run, quantity, step }) => [run.id, run.implementation, run.execution, quantity, String(step)];

let shown = new Map();

function table(checks, state) {
  shown = new Map();
  const columns = Object.keys(partsOf(checks[0], state.cell[3])).filter((name) => name !== "quantity" && name !== "step");
  const named = columns.includes("variant");
  const heads = ["", ...(named ? columns : ["case", ...columns]), "quantity", "step", "units against the bound"];
  const body = make("tbody");
  const more = make("button", { type: "button", onclick: () => add(AT_ONCE * 5) });
  let next = 0;
  function add(count) {
    for (const check of checks.slice(next, next + count)) {
      const parts = partsOf(check, state.cell[3]);
      const row = make(
        "tr", { class: "row", onclick: () => go({ row: shown.get(keyOf(rowKey(check))).open ? null : rowKey(check) }) },
        make(
          "td", null,
          make("button", { class: `verdict ${kindOf(check.verdict)}`, "aria-expanded": "false" }, data.verdicts[check.verdict]),
          check.change == null ? null : make("span", { class: "changed" }, ` ${text(check.change)}`),
        ),
        named ? null : make("td", null, check.run.id),
        ...columns.map((name) => make("td", null, parts[name] ?? "")),
        make("td", null, check.quantity),
        make("td", { class: "step" }, String(check.step)),
        make("td", { class: "units" }, ...bar(check)),
      );
      shown.set(keyOf(rowKey(check)), { row, check, open: null });
      body.append(row);
    }
    next += count;
    more.hidden = next >= checks.length;
    more.textContent = `show more of the other ${(checks.length - next).toLocaleString("en")}`;
  }
  const wanted = state.row && checks.findIndex((check) => keyOf(rowKey(check)) === keyOf(state.row));
  add(Math.max(AT_ONCE, (wanted || 0) + 1));
  const head = make("thead", null, make("tr", null, ...heads.map((name) => make("th", { scope: "col" }, name))));
  return make("section", null, make("table", { class: "rows" }, head, body), make("p", null, more));
}

function bar(check) {
  if (check.units == null) return [make("span", { class: "faint" }, check.verdict === PASS ? "" : "no number")];
  const share = excess(check);
  const width = share <= 1 ? 66 * Math.max(share, 0) : Math.min(100, 66 + (34 * Math.log10(share)) / 4);
  const filled = make("i", { class: "cell", style: `--t:${heat(check).toFixed(3)};width:${width.toFixed(1)}%` });
  const bound = check.bound === BOUND ? null : make("span", { class: "faint" }, ` of ${Math.round(check.bound)}`);
  return [make("span", { class: "bar" }, filled), rounded(check.units), bound];
}

function showRow(state) {
  const key = state.row ? keyOf(state.row) : "";
  for (const [one, entry] of shown) {
    const opens = one === key;
    if (opens === Boolean(entry.open)) continue;
    entry.row.classList.toggle("open", opens);
    entry.row.querySelector("button").setAttribute("aria-expanded", String(opens));
    if (opens) {
      entry.open = detail(entry.check, entry.row.cells.length);
      entry.row.after(entry.open);
    } else {
      entry.open.remove();
      entry.open = null;
    }
  }
}

function detail(check, width) {
  const { run } = check;
  const times = check.units != null && check.bound ? ` (${excess(check).toPrecision(3).replace("e+", "e")} of the bound)` : "";
  const difference = check.got == null ? null : number(check.got) - number(check.want);
  const facts = [
    ["error", check.units == null ? "no number" : `${written(check.units)} units of ${written(check.bound)}${times}`],
    ["worst element", text(check.element)],
    ["got", written(check.got)],
    ["wanted", written(check.want)],
    ["difference", difference == null ? "" : written(Number(difference.toPrecision(4)))],
    ["allowed", written(check.allowed)],
    ["implementation", run.implementation],
    ["execution", `${run.execution} on ${run.device}`],
    ["quantity", `${check.quantity}, step ${check.step}`],
    ["seed", String(data.seed)],
    ["case", run.id],
    ["since the baseline", check.change == null ? "" : `${text(check.change)}: it was ${text(check.before)}`],
  ].filter(([, value]) => value !== "");
  const source = data.snippets[run.snippet].map((line) => data.lines[line]).join("\n");
  return make("tr", { class: "detail" }, make(
    "td", { colspan: width },
    check.reason == null ? null : make("p", { class: "reason" }, ...linked(text(check.reason))),
    make(
      "div", { class: "sides" },
      make(
        "div", null,
        make("dl", null, ...facts.flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)])),
        run.fields.length ? make("h3", null, "the case, field by field") : null,
        make("ul", { class: "fields code" }, ...run.fields.map((field) => make("li", null, text(field)))),
      ),
      make(
        "div", null, make("h3", null, "see it again"),
        make("div", { class: "snippet" }, make("button", { type: "button", class: "copy" }, "copy"), make("pre", null, source)),
      ),
    ),
  ));
}

function notCompared(without) {
  const sizes = (count, ids) => `${plural(count, "check")} of ${plural(ids.length, "case")}`;
  return make(
    "section", { class: "refused" }, make("h3", null, "what was not compared"),
    make("ul", null, ...without.sort((a, b) => b[1] - a[1]).map(([one, count, ids]) => make(
      "li", null, make("details", null,
        make("summary", null, ...linked(one.reason), make("span", { class: "faint" }, ` ${sizes(count, ids)}`)),
        make("span", { class: "code" }, ids.join("\n"))),
    ))),
  );
}

// Everything together.

const form = document.querySelector("form");
const home = form.nextElementSibling;
const find = document.getElementById("find");
const verdict = document.getElementById("verdict");
let before = { page: "", matrix: "" };

function render() {
  const state = read();
  const sought = state.find?.join("/") ?? "";
  const wanted = { words: sought.toLowerCase().split(/\s+/).filter(Boolean), verdict: state.verdict?.[0] ?? "" };
  const filter = `${wanted.words.join(" ")}\n${wanted.verdict}`;
  const typing = document.activeElement === find;
  const opened = state.cell ? `${keyOf(state.cell)}\n${filter}` : "";
  if (!typing) find.value = sought;
  verdict.value = wanted.verdict;
  overview.hidden = Boolean(state.cell);
  page.hidden = !state.cell;
  document.body.classList.toggle("in-cell", Boolean(state.cell));
  if (state.cell) {
    const fresh = opened !== before.page;
    if (fresh) showPage(state, wanted);
    showRow(state);
    if (fresh && before.page.split("\n", 4).join() !== opened.split("\n", 4).join()) {
      const row = state.row && shown.get(keyOf(state.row))?.row;
      row ? row.scrollIntoView() : scrollTo(0, 0);
    }
  } else {
    home.before(form);
    if (filter !== before.matrix) showMatrix(wanted);
    before.matrix = filter;
    showColumns({ implementation: state.implementation, method: state.method });
    if (before.page) scrollTo(0, before.scrolled ?? 0);
  }
  before.page = opened;
  if (typing) find.focus();
}

addEventListener("scroll", () => { if (!read().cell) before.scrolled = scrollY; }, { passive: true });
addEventListener("hashchange", render);
find.addEventListener("input", () => refine({ find: [find.value] }));
verdict.addEventListener("change", () => refine({ verdict: [verdict.value] }));
for (const box of document.querySelectorAll("[data-shows]")) {
  box.addEventListener("change", () => {
    const others = (read()[box.dataset.shows] ?? []).filter((name) => name !== box.value);
    refine({ [box.dataset.shows]: box.checked ? others : [...others, box.value] });
  });
}
document.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", async (event) => {
  if (!event.target.classList.contains("copy")) return;
  const source = event.target.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // A page that did not come over https may not use the clipboard in any other way.
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  event.target.textContent = "copied";
  setTimeout(() => (event.target.textContent = "copy"), 1500);
});
for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
render();
