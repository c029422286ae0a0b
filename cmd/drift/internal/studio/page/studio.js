"use strict";
// The page of drift studio. Text that comes from elsewhere only ever becomes text nodes and attributes.

const $ = id => document.getElementById(id);
const views = ["create", "gallery", "run", "compare", "plots"];
let catalog = null, state = { jobs: [], gallery: -1 }, runs = [];

// The theme is set before the page is drawn: the one that was chosen, or the system's.
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
try { theme = localStorage.getItem("drift-theme"); } catch { /* private windows */ }
function showTheme() {
  const t = theme || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = t;
  if ($("theme")) $("theme").textContent = t === "dark" ? "☀" : "☾";
}
dark.addEventListener("change", showTheme);
showTheme();

// el makes an element: el("a", {href, class, onclick}, children...)
function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "class") e.className = v;
    else if (k in e && k !== "list" && k !== "form") e[k] = v;
    else e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.flat().filter(c => c !== null && c !== undefined && c !== false));
  return e;
}

async function api(path, options = {}) {
  const o = { ...options };
  if (o.body !== undefined) {
    o.body = JSON.stringify(o.body);
    o.headers = { "Content-Type": "application/json" };
  }
  const r = await fetch(path, o);
  let v = null;
  try { v = await r.json(); } catch { /* told below */ }
  if (!r.ok || v === null) {
    const text = v && v.error ? v.error + (v.hint ? " (" + v.hint + ")" : "") : "the studio answered " + r.status;
    throw new Error(text);
  }
  return v;
}

let toastTimer = 0;
function toast(text) {
  const t = $("toast");
  t.textContent = text;
  t.classList.add("show");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => t.classList.remove("show"), 2600);
}

async function copy(text) {
  if (!text) return;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // off loopback without TLS there is no clipboard
    const t = el("textarea", { value: text, class: "sr" });
    document.body.append(t);
    t.select();
    document.execCommand("copy");
    t.remove();
  }
  toast("Copied: paste it into a shell");
}

const fileURL = (run, file) => "/files/" + encodeURIComponent(run) + (file ? "/" + file.split("/").map(encodeURIComponent).join("/") : "");
const seedOf = file => {
  const m = /(?:(set-\d+)\/)?\d+\/0*(\d+)(?:-(\d+))?\.png$/.exec(file);
  return m ? (m[1] ? m[1] + " " : "") + "seed " + m[2] + (m[3] ? " / " + Number(m[3]) : "") : file;
};
const short = v => {
  if (typeof v !== "number") return v === undefined || v === null ? "–" : String(v);
  if (v === 0) return "0";
  const a = Math.abs(v);
  return a >= 1e5 || a < 1e-3 ? v.toExponential(2) : String(Number(v.toPrecision(4)));
};
function time(s) {
  if (!(s >= 0)) return "–";
  if (s < 60) return s.toFixed(s < 10 ? 1 : 0) + " s";
  if (s < 3600) return Math.floor(s / 60) + " m " + String(Math.round(s % 60)).padStart(2, "0") + " s";
  return Math.floor(s / 3600) + " h " + String(Math.round(s % 3600 / 60)).padStart(2, "0") + " m";
}
const smooth = model => {
  const m = catalog.models.find(x => x.name === model);
  return m && Math.max(...m.shape.slice(1)) > 128 ? "smooth" : "";
};
function option(value, text, selected) { return el("option", { value, selected: !!selected }, text); }

// ---- form ----

const formFields = ["model", "steps", "nfe", "guidance", "class", "prompt", "negative", "reward", "particles", "lambda", "seed", "count", "schedule", "schedule-options", "guider", "seeds", "width", "height"];
const verb = () => document.querySelector("input[name=verb]:checked").value;
const model = () => catalog.models.find(m => m.name === $("model").value) || catalog.models[0];

function samplerRow(value) {
  const at = value ? value.indexOf(":") : -1;
  const name = at < 0 ? value || "" : value.slice(0, at);
  const first = $("samplers").children.length === 0;
  const note = el("p", { class: "note" });
  const options = el("input", { type: "text", class: "options", value: at < 0 ? "" : value.slice(at + 1), "aria-label": "Options of the sampler", spellcheck: false });
  const select = el("select", { "aria-label": first ? "Sampler" : "Further sampler" }, option("", "default of the model"), catalog.samplers.map(s => option(s.name, s.name)));
  select.value = name;
  const tell = () => {
    const own = verb() === "steer" ? "ddim:eta=1" : model().sampler;
    select.options[0].textContent = "default (" + own + ")";
    const s = catalog.samplers.find(s => s.name === (select.value || own.split(":")[0]));
    note.textContent = s ? s.summary + (s.order ? " · order " + s.order : "") + (s.nfe_per_step ? " · " + s.nfe_per_step + " NFE per step" : "") + (s.source ? " · " + s.source : "") : "";
    options.hidden = !select.value || !s || !s.options;
    options.placeholder = s && s.options ? "options: " + s.options.map(o => o.name + "=" + o.default).join(", ") : "";
  };
  select.addEventListener("change", () => { options.value = ""; tell(); });
  const row = el("div", { class: "sampler" }, select,
    first ? null : el("button", { type: "button", class: "quiet icon", "aria-label": "Remove this sampler", onclick: () => { row.remove(); changed(); $("add-sampler").focus(); } }, "×"), options, note);
  row.tell = tell;
  row.read = () => select.value ? select.value + (options.value.trim() && !options.hidden ? ":" + options.value.trim() : "") : "";
  $("samplers").append(row);
  tell();
  return row;
}

function showForm() {
  const v = verb(), m = model();
  for (const e of document.querySelectorAll("[data-only]")) e.hidden = !e.dataset.only.split(" ").includes(v);
  $("model-note").textContent = m.summary;
  $("class-field").hidden = v === "bench" || m.classes === 0;
  $("prompt-field").hidden = v === "bench" || !m.text;
  $("guidance-field").hidden = m.classes === 0 && !m.text;
  $("size-field").hidden = v === "bench" || !m.any_size;
  $("count").max = v === "bench" ? catalog.limits.bench : catalog.limits.pictures;
  $("steps-range").value = $("steps").value;
  $("guidance-range").value = $("guidance").value;
  for (const r of $("samplers").children) r.tell();
  $("add-sampler").hidden = $("samplers").children.length >= catalog.limits.samplers;
  const s = catalog.schedules.find(s => s.name === $("schedule").value);
  $("schedule-note").textContent = s ? s.summary + (s.source ? " · " + s.source : "") : "";
  $("schedule-options").hidden = !s || !s.options;
  if (s && s.options) $("schedule-options").placeholder = "options: " + s.options.map(o => o.name + "=" + o.default).join(", ");
  const g = catalog.guiders.find(g => g.name === $("guider").value);
  $("guider-note").textContent = g ? g.summary + (g.source ? " · " + g.source : "") : "";
}

function fillModel(keep) {
  const m = model(), was = $("class").value;
  $("class").replaceChildren(option("", "every class in turn"), option("none", "none (unconditional)"));
  for (let k = 0; k < m.classes; k++) $("class").append(option((m.labels || [])[k] || String(k), (m.labels || [])[k] || "class " + k));
  $("class").value = was;
  if ($("class").selectedIndex < 0) $("class").value = "";
  $("schedule").options[0].textContent = "default (" + (m.schedule || "the model's own") + ")";
  if (!keep) {
    $("steps").value = m.steps;
    $("guidance").value = m.guidance;
  }
}

// request reads the form.
function request() {
  const v = verb(), m = model();
  const num = id => $(id).value === "" ? 0 : Number($(id).value);
  const r = { verb: v, model: m.name, samplers: [...$("samplers").children].map(x => x.read()) };
  if ($("schedule").value) r.schedule = $("schedule").value + ($("schedule-options").value.trim() && !$("schedule-options").hidden ? ":" + $("schedule-options").value.trim() : "");
  if (m.classes > 0 || m.text) {
    r.guidance = num("guidance");
    if ($("guider").value !== "cfg") r.guider = $("guider").value;
  }
  if (v === "bench") {
    r.nfe = $("nfe").value.split(",").map(s => Number(s.trim()));
    r.seed = num("seed");
    r.count = num("count");
    return r;
  }
  r.steps = num("steps");
  if (m.classes > 0 && $("class").value) r.class = $("class").value;
  if (m.text) {
    if ($("prompt").value) r.prompt = $("prompt").value.replace(/\s+/g, " ").trim();
    if ($("negative").value) r.negative = $("negative").value.replace(/\s+/g, " ").trim();
  }
  if (m.any_size) {
    if (num("width")) r.width = num("width");
    if (num("height")) r.height = num("height");
  }
  if ($("seeds").value.trim()) r.seeds = $("seeds").value.replace(/\s+/g, "");
  else {
    r.seed = num("seed");
    r.count = num("count");
  }
  if (v === "steer") {
    r.particles = num("particles");
    r.reward = $("reward").value;
    r.lambda = $("lambda").value.trim();
  }
  return r;
}

// fillForm puts a request back into the form.
function fillForm(r) {
  document.querySelector("input[name=verb][value=" + (["sample", "steer", "bench"].includes(r.verb) ? r.verb : "sample") + "]").checked = true;
  if (catalog.models.some(m => m.name === r.model)) $("model").value = r.model;
  fillModel(false);
  $("samplers").replaceChildren();
  for (const s of r.samplers && r.samplers.length ? r.samplers : [""]) samplerRow(s);
  const [name, ...rest] = (r.schedule || "").split(":");
  $("schedule").value = name;
  $("schedule-options").value = rest.join(":");
  const set = (id, v) => { if (v !== undefined && v !== null && v !== "") $(id).value = v; };
  $("class").value = r.class || "";
  if ($("class").selectedIndex < 0) $("class").value = "";
  $("prompt").value = r.prompt || "";
  $("negative").value = r.negative || "";
  $("seeds").value = r.seeds || "";
  $("guider").value = r.guider || "cfg";
  set("steps", r.steps); set("guidance", r.guidance); set("particles", r.particles); set("reward", r.reward); set("lambda", r.lambda);
  if (r.nfe) $("nfe").value = r.nfe.join(", ");
  if (!r.seeds) { $("seed").value = r.seed || 0; set("count", r.count); }
  $("width").value = r.width || ""; $("height").value = r.height || "";
  changed();
}

let lineTimer = 0, lineTurn = 0, lineText = "";
function changed() {
  showForm();
  const saved = { verb: verb(), samplers: [...$("samplers").children].map(x => x.read()) };
  for (const id of formFields) saved[id] = $(id).value;
  try { localStorage.setItem("drift-form", JSON.stringify(saved)); } catch { /* private windows */ }
  clearTimeout(lineTimer);
  lineTimer = setTimeout(async () => {
    const turn = ++lineTurn;
    try {
      const a = await api("/api/command", { method: "POST", body: request() });
      if (turn !== lineTurn) return;
      lineText = a.commands.join("\n");
      $("problem").textContent = "";
    } catch (e) {
      if (turn !== lineTurn) return;
      lineText = "";
      $("problem").textContent = e.message;
    }
    $("line").textContent = lineText;
    $("copy-line").disabled = !lineText;
  }, 200);
}

async function start(event) {
  event.preventDefault();
  if (!$("form").reportValidity()) return;
  $("start").disabled = true;
  try {
    const a = await api("/api/jobs", { method: "POST", body: request() });
    $("problem").textContent = "";
    const n = a.jobs.length;
    const waiting = state.jobs.some(j => j.status === "running");
    toast(n > 1 ? n + " runs on the same noise are queued" : waiting ? "Queued" : "Started");
    if (innerWidth < 900) $("now").scrollIntoView({ behavior: "smooth" });
  } catch (e) {
    $("problem").textContent = e.message;
  }
  $("start").disabled = false;
}

function setupForm() {
  $("model").append(...catalog.models.map(m => option(m.name, m.name)));
  $("schedule").append(option("", "default"), ...catalog.schedules.map(s => option(s.name, s.name)));
  $("guider").append(...catalog.guiders.map(g => option(g.name, g.name)));
  $("guider").value = "cfg";
  let saved = null;
  try { saved = JSON.parse(localStorage.getItem("drift-form")); } catch { /* none */ }
  if (saved && catalog.models.some(m => m.name === saved.model)) {
    const radio = document.querySelector("input[name=verb][value=" + CSS.escape(saved.verb) + "]");
    if (radio) radio.checked = true;
    $("model").value = saved.model;
    fillModel(true);
    for (const id of formFields) if (typeof saved[id] === "string" && id !== "model") $(id).value = saved[id];
    for (const id of ["class", "schedule", "guider"]) if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
    for (const s of Array.isArray(saved.samplers) && saved.samplers.length ? saved.samplers : [""]) samplerRow(String(s));
  } else {
    fillModel(false);
    samplerRow("");
  }
  $("form").addEventListener("input", changed);
  $("form").addEventListener("change", changed);
  $("form").addEventListener("submit", start);
  $("form").addEventListener("keydown", e => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); $("form").requestSubmit(); } });
  $("model").addEventListener("change", () => fillModel(false));
  for (const id of ["steps", "guidance"]) $(id + "-range").addEventListener("input", () => { $(id).value = $(id + "-range").value; });
  for (const r of document.querySelectorAll("input[name=verb]")) r.addEventListener("change", () => {
    const n = { sample: 16, steer: 4, bench: 256 }[verb()];
    $("count").value = n;
    if (verb() === "bench" && $("samplers").children.length === 1) samplerRow("euler");
  });
  $("add-sampler").addEventListener("click", () => {
    const used = [...$("samplers").children].map(x => x.read());
    const next = ["euler", "heun", "dpmpp-2m", "unipc", "ddim", "deis", "ddpm"].find(s => !used.includes(s)) || "";
    samplerRow(next).querySelector("select").focus();
    changed();
  });
  $("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 1e6); changed(); });
  $("copy-line").addEventListener("click", () => copy(lineText));
  changed();
}

// ---- jobs ----

let shownJob = 0, shownPreview = 0, jobParts = null;

function jobStat(list, name) {
  const dd = el("dd", {}, "–");
  list.append(el("div", {}, el("dt", {}, name), dd));
  return v => { if (dd.textContent !== v) dd.textContent = v; };
}

function showNow() {
  const j = state.jobs.find(j => j.status === "running");
  const body = $("now-body");
  if (!j) {
    if (shownJob !== -1) {
      shownJob = -1;
      body.replaceChildren(el("div", { class: "idle" }, el("b", {}, "Nothing runs"), el("span", {}, "Choose a model and a sampler, then Start. The pictures appear here while they form.")));
    }
    return;
  }
  if (shownJob !== j.id) {
    shownJob = j.id;
    shownPreview = 0;
    const img = el("img", { alt: "Predicted pictures of the run under way", hidden: true, class: smooth(j.request.model) });
    const wait = el("span", {}, j.request.verb === "bench" ? "measuring …" : "noise …"), over = el("small", { hidden: true });
    const stats = el("dl", { class: "stats" });
    const bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    const plot = el("div");
    const cancel = el("button", { type: "button", class: "danger small", id: "cancel", onclick: () => act("/api/jobs/" + j.id, { method: "DELETE" }) }, "Cancel");
    const message = el("p", { class: "note" });
    jobParts = {
      img, wait, over, bar, plot, cancel, message, pictures: jobStat(stats, "pictures"), step: jobStat(stats, "step"), sigma: jobStat(stats, "sigma"), nfe: jobStat(stats, "NFE each"), left: jobStat(stats, "left"), gone: jobStat(stats, "so far"),
    };
    body.replaceChildren(el("div", { class: "job" },
      el("div", { class: "screen" }, wait, img, over),
      el("div", { class: "tell" }, el("h3", {}, j.title), bar, stats, message, el("div", { class: "actions" }, cancel, el("button", { type: "button", class: "quiet small", onclick: () => copy(j.command) }, "Copy as command")), plot)));
  }
  const p = jobParts;
  p.bar.value = j.progress;
  p.pictures(j.request.verb === "bench" ? String(j.pictures) : j.made + " / " + j.pictures);
  p.step(j.steps ? j.step + " / " + j.steps : j.step ? String(j.step) : "–");
  p.sigma(short(j.sigma));
  p.nfe(j.nfe ? short(j.nfe) + (j.nfe_all ? " / " + j.nfe_all : "") : "–");
  p.left(j.progress > 0 && j.left >= 0 ? time(j.left) : "–");
  p.gone(time(j.seconds));
  p.message.textContent = j.message || j.where || j.hint || "";
  p.cancel.disabled = !!j.message;
  if (j.preview && j.preview !== shownPreview) {
    shownPreview = j.preview;
    const next = new Image();
    next.onload = () => { // no flicker: it is swapped when it is there
      if (shownJob !== j.id) return;
      p.img.src = next.src;
      p.img.hidden = false;
      p.img.dataset.version = j.preview;
      p.wait.hidden = true;
      p.over.hidden = false;
      p.over.textContent = "x̂₀ at step " + j.step;
    };
    next.src = "/api/jobs/" + j.id + "/preview.png?v=" + j.preview;
  }
  if (j.checks && j.checks.length > 1) drawChecks(p.plot, [{ name: j.title, checks: j.checks }], "ess", j.request.particles);
}

async function act(path, options) {
  try {
    take(await api(path, options));
  } catch (e) {
    toast(e.message);
  }
}

let queueSign = "", endedSign = "";
function showQueue() {
  const waiting = state.jobs.filter(j => j.status === "waiting");
  const sign = waiting.map(j => j.id).join();
  if (sign !== queueSign) {
    queueSign = sign;
    const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : "";
    $("queue-card").hidden = waiting.length === 0;
    $("queue-count").textContent = waiting.length ? "· " + waiting.length : "";
    $("queue").replaceChildren(...waiting.map((j, i) => {
      const move = (to, sign, name) => el("button", { type: "button", class: "quiet small icon", "data-key": name + j.id, disabled: to < 0 || to >= waiting.length, "aria-label": "Move " + j.title + " " + name, onclick: () => act("/api/jobs/" + j.id + "/move", { method: "POST", body: { to } }) }, sign);
      return el("li", {}, el("div", {}, el("b", {}, j.title), el("p", { class: "note" }, j.request.verb + " · " + j.pictures + " pictures")),
        el("div", { class: "buttons" }, move(i - 1, "↑", "up"), move(i + 1, "↓", "down"),
          el("button", { type: "button", class: "quiet small icon danger", "data-key": "remove" + j.id, "aria-label": "Remove " + j.title, onclick: () => act("/api/jobs/" + j.id, { method: "DELETE" }) }, "×")));
    }));
    const again = focus && document.querySelector('[data-key="' + CSS.escape(focus) + '"]');
    if (again) again.focus();
  }
  const ended = state.jobs.filter(j => ["done", "failed", "cancelled"].includes(j.status)).reverse().slice(0, 8);
  const mark = ended.map(j => j.id + j.status).join();
  if (mark !== endedSign) {
    endedSign = mark;
    $("ended-card").hidden = ended.length === 0;
    $("ended").replaceChildren(...ended.map(j => el("li", {},
      el("div", {}, j.status === "failed" ? el("b", {}, j.title) : el("a", { href: "#run/" + encodeURIComponent(j.run) }, j.title), el("p", { class: "note" }, j.message ? j.message + (j.hint ? " (" + j.hint + ")" : "") : j.run + " · " + time(j.seconds))),
      el("span", { class: "tag " + j.status }, j.status),
      el("div", { class: "buttons" },
        j.status === "cancelled" ? el("button", { type: "button", class: "quiet small", "aria-label": "Go on with " + j.title, onclick: () => act("/api/jobs/" + j.id + "/again", { method: "POST", body: {} }) }, "Go on") : null,
        el("button", { type: "button", class: "quiet small", onclick: () => { fillForm(j.request); location.hash = "create"; toast("The form has its settings"); } }, "Use"),
        el("button", { type: "button", class: "quiet small icon", "aria-label": "Forget " + j.title, onclick: () => act("/api/jobs/" + j.id, { method: "DELETE" }) }, "×")))));
  }
}

let galleryTimer = 0, galleryAt = 0;
function take(s) {
  const fresh = s.gallery !== state.gallery;
  for (const j of s.jobs) { // what ended since
    const was = state.jobs.find(k => k.id === j.id);
    if (was && was.status === "running" && j.status !== "running") toast(j.title + ": " + j.status + (j.status === "failed" && j.message ? ", " + j.message : ""));
  }
  state = s;
  showNow();
  showQueue();
  if (fresh && !galleryTimer) { // at most once in a second
    galleryTimer = setTimeout(() => { galleryTimer = 0; galleryAt = Date.now(); loadRuns(); }, Math.max(0, 1000 - (Date.now() - galleryAt)));
  }
}

// follow listens to the studio; where it cannot, it asks now and then.
let polling = 0;
function follow() {
  const link = (kind, text) => { $("link").className = "link " + kind; $("link").lastElementChild.textContent = text; };
  const source = new EventSource("/api/events");
  source.onmessage = e => { link("on", "live"); take(JSON.parse(e.data)); };
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) { link("", "reconnecting"); return; }
    clearInterval(polling);
    polling = setInterval(async () => {
      try { take(await api("/api/state")); link("on", "asking"); } catch { link("off", "the studio is away"); }
    }, 2000);
    setTimeout(() => { clearInterval(polling); follow(); }, 15000);
  };
}

// ---- gallery ----

const picked = new Set();
const facts = r => {
  const f = [];
  const add = (k, v) => { if (v !== undefined && v !== "" && v !== 0 && v !== null) f.push([k, String(v)]); };
  add("model", r.model); add("sampler", r.sampler); add("schedule", r.schedule); add("steps", r.steps); add("NFE", r.nfe);
  add("guidance", (r.guiders || []).join(" + ")); add("class", r.class); add("prompt", r.prompt); add("method", r.method); add("particles", r.particles); add("reward", r.reward); add("seeds", r.seeds);
  return f;
};
const progressOf = r => r.wanted && r.count < r.wanted && r.kind !== "sheet" ? r.count + " of " + r.wanted : String(r.count);

async function loadRuns() {
  try { runs = await api("/api/runs"); } catch (e) { toast(e.message); return; }
  showLatest();
  const v = current()[0];
  if (v === "gallery") showGallery();
  if (v === "compare") showCompareChoices();
  if (v === "plots") showPlots();
}

function thumbs(r) {
  const link = el("a", { class: "thumbs", href: "#run/" + encodeURIComponent(r.name), "aria-label": r.name, tabIndex: -1 });
  if (r.kind === "bench") {
    link.append(el("div", { class: "spark" }, el("img", { class: "wide", alt: "", loading: "lazy", src: fileURL(r.name, "plot.png"), onerror: e => e.target.replaceWith("quality by evaluations") })));
    return link;
  }
  const n = r.pictures.length;
  if (n === 0) link.append(el("div", { class: "none" }, "no picture yet"));
  else link.append(el("div", { class: "tiles" + (n === 1 ? " n1" : n <= 4 ? " n4" : "") }, r.pictures.slice(0, n <= 4 ? n : 12).map(p => el("img", { src: fileURL(r.name, p), alt: "", loading: "lazy", class: smooth(r.model) }))));
  return link;
}

function showGallery() {
  const want = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const list = runs.filter(r => { const t = [r.name, r.kind, ...facts(r).flat()].join(" ").toLowerCase(); return want.every(w => t.includes(w)); });
  for (const n of picked) if (!runs.some(r => r.name === n)) picked.delete(n);
  $("runs").replaceChildren(...list.map(r => el("article", { class: "card run" }, thumbs(r),
    el("div", { class: "title" }, el("a", { href: "#run/" + encodeURIComponent(r.name) }, r.name), el("span", { class: "tag " + r.kind }, r.kind)),
    el("p", { class: "note" }, r.kind === "bench" ? r.sampler + " · " + r.count + " pictures per point" : [r.sampler, r.steps && r.steps + " steps", r.class, progressOf(r) + " pictures"].filter(Boolean).join(" · ")),
    r.kind === "bench" || r.kind === "sheet" ? null : el("label", { class: "check" }, el("input", { type: "checkbox", checked: picked.has(r.name), onchange: e => { e.target.checked ? picked.add(r.name) : picked.delete(r.name); $("compare-selected").disabled = picked.size < 2; } }), "compare"))));
  if (list.length === 0) $("runs").append(el("p", { class: "empty" }, runs.length ? "Nothing fits the filter." : "Nothing is in " + catalog.folder + " yet: what you start appears here."));
  $("compare-selected").disabled = picked.size < 2;
}

function showLatest() {
  const r = runs.find(r => (r.kind === "sample" || r.kind === "steer") && r.count > 0);
  $("latest-card").hidden = !r;
  if (!r) return;
  $("latest").replaceChildren(
    el("p", { class: "note" }, el("a", { href: "#run/" + encodeURIComponent(r.name) }, r.name), " · " + progressOf(r) + " pictures" + (r.class ? " · " + r.class : "")),
    el("div", { class: "actions" }),
    el("div", { class: "grid" }, r.pictures.map((p, i) => tile(r, p, i))));
}

function tile(r, p, i) {
  return el("button", { type: "button", class: "tile", "aria-label": seedOf(p) + " of " + r.name, onclick: () => openPicture(r, i) }, el("img", { src: fileURL(r.name, p), alt: "", loading: "lazy", class: smooth(r.model) }), el("span", {}, p ? seedOf(p) : r.name));
}

async function showRun(name) {
  let r;
  try { r = await api("/api/runs/" + encodeURIComponent(name)); } catch (e) {
    $("h-run").textContent = name;
    $("run").replaceChildren(el("p", { class: "empty" }, e.message));
    return;
  }
  if (current()[1] !== name) return;
  $("h-run").textContent = r.name;
  const line = el("pre", { tabIndex: 0, "aria-label": "The command line of this run" }, r.command || r.why || "");
  const card = el("section", { class: "card" },
    el("div", { class: "facts" }, facts(r).map(([k, v]) => el("span", {}, el("i", {}, k + " "), v))),
    el("div", { class: "line" }, line),
    el("div", { class: "actions" },
      el("button", { type: "button", class: "small", id: "copy-run", disabled: !r.command, onclick: () => copy(r.command) }, "Copy as command"),
      r.kind === "sample" || r.kind === "steer" ? el("button", { type: "button", class: "small", onclick: () => reuse(r) }, "Use these settings") : null,
      r.kind === "sample" || r.kind === "steer" ? el("a", { class: "button small", href: "#compare/" + encodeURIComponent(r.name) }, "Compare …") : null,
      r.kind === "bench" || r.kind === "steer" ? el("a", { class: "button small", href: "#plots/" + encodeURIComponent(r.name) }, "Plots …") : null));
  const parts = [card], draw = [];
  if (r.checks && r.checks.length > 1) {
    const a = el("div"), b = el("div");
    parts.push(el("div", { class: "two" }, el("section", { class: "card" }, el("h2", {}, "Effective sample size"), a), el("section", { class: "card" }, el("h2", {}, "Reward"), b)));
    draw.push(() => drawChecks(a, [{ name: "ESS", checks: r.checks }, { name: "roots", checks: r.checks, of: "roots" }], "ess", r.particles));
    draw.push(() => drawChecks(b, [{ name: "mean", checks: r.checks, of: "mean" }, { name: "largest", checks: r.checks, of: "max" }], "mean"));
  }
  if (r.scores && r.scores.length) {
    const metrics = [...new Set(r.scores.map(s => s.metric))];
    for (const m of metrics) {
      const d = el("div");
      parts.push(el("section", { class: "card" }, el("h2", {}, m + " against evaluations"), d));
      draw.push(() => drawScores(d, r, m));
    }
  }
  if (r.pictures.length) parts.push(el("section", { class: "card" }, el("h2", {}, r.kind === "sheet" ? "Sheet" : "Pictures ", el("span", { class: "count" }, r.kind === "sheet" ? "" : "· " + progressOf(r))), el("div", { class: r.kind === "sheet" ? "" : "grid" }, r.pictures.map((p, i) => tile(r, p, i)))));
  const extra = (r.plots || []).filter(p => !["ess.png", "reward.png", "plot.png"].includes(p));
  if (extra.length) parts.push(el("details", { class: "card" }, el("summary", {}, "Genealogy, particles and more"), el("div", { class: "sections" }, extra.map(p => el("figure", {}, el("img", { class: "wide", src: fileURL(r.name, p), alt: p, loading: "lazy" }), el("figcaption", { class: "note" }, p))))));
  $("run").replaceChildren(el("div", { class: "sections" }, parts));
  for (const f of draw) f();
}

function reuse(r) {
  const q = { verb: r.kind, model: r.model, samplers: [r.sampler], schedule: r.schedule, steps: r.steps, class: r.class, prompt: r.prompt, seeds: r.seeds, guidance: 1 };
  for (const g of r.guiders || []) {
    const m = /^([a-z-]+):w=([-0-9.e+]+)$/.exec(g);
    if (m) { q.guidance = Number(m[2]); q.guider = m[1]; }
  }
  if (r.kind === "steer") { q.particles = r.particles; q.reward = r.reward; q.lambda = r.lambda; }
  const range = /^(\d+)-(\d+)$/.exec(r.seeds || "");
  if (range) { q.seed = Number(range[1]); q.count = Number(range[2]) - Number(range[1]) + 1; q.seeds = ""; }
  fillForm(q);
  location.hash = "create";
  toast("The form has its settings");
}

let openRun = null, openAt = 0;
async function openPicture(r, i) {
  openRun = r;
  openAt = i;
  const p = r.pictures[i];
  $("picture-title").textContent = p ? seedOf(p) : r.name;
  $("picture-img").src = fileURL(r.name, p);
  $("picture-img").className = smooth(r.model);
  $("picture-img").alt = (p ? seedOf(p) + " of " : "") + r.name;
  $("download").href = fileURL(r.name, p);
  $("download").download = r.name.replace(/\.png$/, "") + (p ? "-" + p.split("/").pop() : ".png");
  $("previous").disabled = i === 0;
  $("next").disabled = i >= r.pictures.length - 1;
  $("facts").replaceChildren();
  $("picture-line").textContent = "";
  $("metadata").textContent = "";
  $("copy-picture").disabled = true;
  if (!$("picture").open) $("picture").showModal();
  try {
    const a = await api("/api/runs/" + encodeURIComponent(r.name) + "/about?file=" + encodeURIComponent(p));
    if (openRun !== r || openAt !== i) return;
    const d = a.drift ? a.drift.run : {};
    const rows = [["run", r.name], ["seed", a.seed], ["class", a.class], ["prompt", d.sets && d.sets[0].prompt], ["model", d.model && d.model.path], ["sampler", d.sampler], ["schedule", d.schedule], ["steps", d.grid && d.grid.t.length - 1], ["NFE", d.nfe],
      ["guidance", (d.guiders || []).join(" + ")], ["reward", d.steer && d.steer.reward], ["particles", d.steer && d.steer.particles], ["kernels", d.model && [d.model.dtype, d.model.tier].filter(Boolean).join(", ")], ["weights", d.model && d.model.hash.slice(0, 12)], ["version", d.version]];
    $("facts").replaceChildren(...rows.filter(x => x[1] !== undefined && x[1] !== "" && x[1] !== null).flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, String(v))]));
    $("picture-line").textContent = a.command || a.why || "";
    $("copy-picture").disabled = !a.command;
    $("metadata").textContent = (a.parameters || "") + "\n\n" + (a.drift ? JSON.stringify(a.drift, null, 1) : "");
  } catch (e) {
    $("facts").replaceChildren(el("dt", {}, "metadata"), el("dd", {}, e.message));
  }
}

function setupPicture() {
  $("close").addEventListener("click", () => $("picture").close());
  $("picture").addEventListener("click", e => { if (e.target === $("picture")) $("picture").close(); });
  const go = d => { if (openRun && openAt + d >= 0 && openAt + d < openRun.pictures.length) openPicture(openRun, openAt + d); };
  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("picture").addEventListener("keydown", e => { if (e.key === "ArrowLeft") go(-1); if (e.key === "ArrowRight") go(1); });
  $("copy-picture").addEventListener("click", () => copy($("picture-line").textContent));
}

// ---- compare ----

let compared = [];
const details = new Map();
async function detail(name) {
  const listed = runs.find(r => r.name === name);
  const stamp = listed ? listed.changed + "/" + listed.count : "";
  if (!details.has(name) || details.get(name).stamp !== stamp) details.set(name, { stamp, run: await api("/api/runs/" + encodeURIComponent(name)) });
  return details.get(name).run;
}

function showCompareChoices() {
  const rest = runs.filter(r => (r.kind === "sample" || r.kind === "steer") && !compared.includes(r.name));
  $("compare-add").replaceChildren(option("", rest.length ? "add a run …" : "no further runs"), ...rest.map(r => option(r.name, r.name)));
  $("compare-add").disabled = rest.length === 0;
}

let compareTurn = 0;
async function showCompare() {
  showCompareChoices();
  const turn = ++compareTurn, box = $("comparison");
  if (compared.length === 0) {
    box.replaceChildren(el("p", { class: "empty" }, "Choose runs here or in the gallery. Start with two samplers at once to get a pair on the same noise."));
    return;
  }
  let list;
  try { list = await Promise.all(compared.map(detail)); } catch (e) { box.replaceChildren(el("p", { class: "empty" }, e.message)); return; }
  if (turn !== compareTurn) return;
  const rows = [...new Set(list.flatMap(r => r.pictures))].sort();
  const diff = $("difference").checked;
  const differs = key => new Set(list.map(r => String(r[key] || ""))).size > 1;
  const keys = ["model", "sampler", "schedule", "steps", "nfe", "class", "prompt", "reward"].filter(differs);
  const head = el("tr", {}, el("td"), list.map((r, i) => el("th", { scope: "col" }, el("div", { class: "heading" }, el("a", { href: "#run/" + encodeURIComponent(r.name) }, r.name),
    el("button", { type: "button", class: "quiet small icon", "aria-label": "Leave out " + r.name, onclick: () => { location.hash = "compare/" + compared.filter(n => n !== r.name).map(encodeURIComponent).join("/"); } }, "×")),
    el("p", { class: "note" }, (keys.length ? keys : ["sampler", "steps"]).map(k => k + " " + (r[k] || "–")).join(" · ") + ((r.guiders || []).length ? " · " + r.guiders.join(" + ") : "")))));
  const body = rows.map(p => el("tr", {}, el("th", { scope: "row" }, seedOf(p)), list.map((r, i) => {
    const at = r.pictures.indexOf(p);
    if (at < 0) return el("td", { class: "note" }, "–");
    if (diff && i > 0 && list[0].pictures.includes(p)) {
      const c = el("canvas", { role: "img", "aria-label": "Difference of " + seedOf(p) }), t = el("span");
      difference(c, t, fileURL(list[0].name, p), fileURL(r.name, p));
      return el("td", {}, el("button", { type: "button", class: "tile", onclick: () => openPicture(r, at) }, c, t));
    }
    return el("td", {}, el("button", { type: "button", class: "tile", "aria-label": seedOf(p) + " of " + r.name, onclick: () => openPicture(r, at) }, el("img", { src: fileURL(r.name, p), alt: "", class: smooth(r.model) })));
  })));
  box.replaceChildren(el("table", { class: "cmp" }, el("thead", {}, head), el("tbody", {}, body)));
}

async function difference(canvas, text, a, b) {
  try {
    const load = src => new Promise((ok, no) => { const i = new Image(); i.onload = () => ok(i); i.onerror = no; i.src = src; });
    const [x, y] = await Promise.all([load(a), load(b)]);
    if (x.width !== y.width || x.height !== y.height) { text.textContent = "other size"; return; }
    canvas.width = x.width;
    canvas.height = x.height;
    const g = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = i => { g.drawImage(i, 0, 0); return g.getImageData(0, 0, i.width, i.height); };
    const p = pixels(x), q = pixels(y);
    let sum = 0;
    for (let k = 0; k < p.data.length; k++) {
      if (k % 4 === 3) continue;
      const d = Math.abs(p.data[k] - q.data[k]);
      sum += d * d;
      p.data[k] = Math.min(255, 4 * d);
    }
    g.putImageData(p, 0, 0);
    text.textContent = sum === 0 ? "equal" : "RMS " + short(Math.sqrt(sum / (p.data.length * 0.75)));
  } catch { text.textContent = "not there"; }
}

// ---- plots ----

const NS = "http://www.w3.org/2000/svg";
function svg(tag, attrs, ...children) {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function ticks(lo, hi, n) {
  const step0 = (hi - lo) / n, p = Math.pow(10, Math.floor(Math.log10(step0))), f = step0 / p;
  const step = (f < 1.5 ? 1 : f < 3 ? 2 : f < 7 ? 5 : 10) * p, out = [];
  for (let v = Math.ceil(lo / step - 1e-9) * step; v <= hi + 1e-9 * step; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}

// A chart is drawn anew where its box gets another width, so that its text keeps its size.
const resized = new ResizeObserver(list => {
  for (const { target } of list) if (target.isConnected && target.clientWidth > 0 && Math.abs(target.clientWidth - target.drawn) > 30) target.redraw();
});

// chart draws lines of points {x, y, e, text}. xs and ys name the axes; log makes the axes logarithmic where it names them.
function chart(box, series, options) {
  const { xs, ys, zero = false, top, log = "" } = options;
  box.redraw = () => chart(box, series, options);
  box.drawn = box.clientWidth;
  resized.observe(box);
  series = series.map(s => ({ ...s, points: s.points.filter(p => Number.isFinite(p.x) && Number.isFinite(p.y)) })).filter(s => s.points.length);
  if (!series.length) { box.replaceChildren(el("p", { class: "empty" }, "No points to draw.")); return; }
  const all = series.flatMap(s => s.points), W = Math.max(300, Math.min(720, box.clientWidth || 640)), H = W < 480 ? 260 : 320, L = 60, R = 14, T = 14, B = 44;
  const lx = log.includes("x") && all.every(p => p.x > 0), ly = log.includes("y") && all.every(p => p.y > 0);
  let x0 = Math.min(...all.map(p => p.x)), x1 = Math.max(...all.map(p => p.x));
  let y0 = Math.min(...all.map(p => p.y - (p.e && !ly ? p.e : 0))), y1 = Math.max(...all.map(p => p.y + (p.e || 0)));
  if (zero) y0 = Math.min(0, y0);
  if (top) y1 = Math.max(y1, top);
  if (x0 === x1) { x0 -= lx ? x0 / 2 : 0.5; x1 += lx ? x1 : 0.5; }
  if (y0 === y1) { y0 -= ly ? y0 / 2 : 0.5; y1 += ly ? y1 : 0.5; }
  if (ly) { y0 /= 1.06; y1 *= 1.03; } else { const pad = (y1 - y0) * 0.06; if (!(zero && y0 === 0)) y0 -= pad; y1 += pad; }
  const fx = v => lx ? Math.log(v) : v, fy = v => ly ? Math.log(v) : v;
  const X = v => L + (W - L - R) * (fx(v) - fx(x0)) / (fx(x1) - fx(x0)), Y = v => H - B - (H - T - B) * (fy(v) - fy(y0)) / (fy(y1) - fy(y0));
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": ys + " by " + xs + ": " + series.map(s => s.name).join(", ") });
  const tx = lx ? [...new Set(all.map(p => p.x))].sort((a, b) => a - b) : ticks(x0, x1, 7), ty = ly ? logTicks(y0, y1) : ticks(y0, y1, 5);
  for (const v of ty) root.append(svg("line", { class: "gridline", x1: L, x2: W - R, y1: Y(v), y2: Y(v) }), svg("text", { x: L - 8, y: Y(v) + 4, "text-anchor": "end" }, short(v)));
  let last = -99;
  for (const v of tx) if (X(v) - last > 26) { last = X(v); root.append(svg("line", { class: "axis", x1: X(v), x2: X(v), y1: H - B, y2: H - B + 5 }), svg("text", { x: X(v), y: H - B + 19, "text-anchor": "middle" }, short(v))); }
  root.append(svg("line", { class: "axis", x1: L, x2: W - R, y1: H - B, y2: H - B }), svg("text", { x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, xs),
    svg("text", { x: 13, y: (T + H - B) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(T + H - B) / 2})` }, ys));
  const tip = el("p", { class: "tip", "aria-hidden": "true" }, " ");
  const dots = [];
  series.forEach((s, k) => {
    const c = k % 8;
    root.append(svg("polyline", { class: "series c" + c + " d" + Math.min(2, Math.floor(k / 8)), points: s.points.map(p => X(p.x).toFixed(1) + "," + Y(p.y).toFixed(1)).join(" ") }));
    const many = s.points.length > 40;
    for (const p of s.points) {
      if (p.e) root.append(svg("line", { class: "err c" + c, x1: X(p.x), x2: X(p.x), y1: Y(Math.max(p.y - p.e, ly ? y0 : -1e300)), y2: Y(p.y + p.e) }));
      const d = svg("circle", { class: "dot f" + c, cx: X(p.x), cy: Y(p.y), r: many ? 1.6 : 4 });
      root.append(d);
      dots.push({ px: X(p.x), py: Y(p.y), text: s.name + ": " + (p.text || short(p.y) + " at " + short(p.x)) });
    }
  });
  root.addEventListener("pointermove", e => {
    const r = root.getBoundingClientRect(), mx = (e.clientX - r.left) * W / r.width, my = (e.clientY - r.top) * H / r.height;
    let best = null, d = 900;
    for (const p of dots) { const q = (p.px - mx) ** 2 + (p.py - my) ** 2; if (q < d) { d = q; best = p; } }
    tip.textContent = best ? best.text : " ";
  });
  const xsAll = [...new Set(all.map(p => p.x))].sort((a, b) => a - b).slice(0, 200);
  const table = el("details", {}, el("summary", {}, "As a table"), el("div", { class: "scroll" }, el("table", { class: "data" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, xs), series.map(s => el("th", { scope: "col" }, s.name)))),
    el("tbody", {}, xsAll.map(x => el("tr", {}, el("th", { scope: "row" }, short(x)), series.map(s => { const p = s.points.find(p => p.x === x); return el("td", {}, p ? short(p.y) + (p.e ? " ± " + short(p.e) : "") : ""); })))))));
  const old = box.querySelector("details");
  if (old && old.open) table.open = true;
  box.replaceChildren(root, tip, el("ul", { class: "legend" }, series.map((s, k) => el("li", {}, el("i", { class: "k" + k % 8 }), s.name))), table);
}
function logTicks(lo, hi) {
  if (hi / lo < 12) return ticks(lo, hi, 5).filter(v => v > 0);
  const out = [];
  for (let e = Math.floor(Math.log10(lo)); e <= Math.ceil(Math.log10(hi)); e++) for (const m of [1, 2, 5]) { const v = m * Math.pow(10, e); if (v >= lo * 0.999 && v <= hi * 1.001) out.push(v); }
  return out.length > 1 ? out : [lo, hi];
}

const checkNames = { ess: "effective sample size", roots: "roots", mean: "reward", max: "largest reward" };
function drawChecks(box, list, what, particles) {
  chart(box, list.map(l => ({ name: l.name, points: (l.checks || []).map(c => ({ x: c.step, y: c[l.of || what] })) })),
    { xs: "step", ys: checkNames[what], zero: what === "ess" || what === "roots", top: what === "ess" || what === "roots" ? particles : undefined });
}
function drawScores(box, r, metric) {
  const by = new Map();
  for (const s of r.scores.filter(s => s.metric === metric)) {
    if (!by.has(s.name)) by.set(s.name, []);
    by.get(s.name).push({ x: s.nfe, y: s.value, e: s.stderr, text: short(s.value) + (s.stderr ? " ± " + short(s.stderr) : "") + " with " + s.nfe + " evaluations, " + s.steps + " steps, " + s.n + " pictures" });
  }
  chart(box, [...by].map(([name, points]) => ({ name, points: points.sort((a, b) => a.x - b.x) })), { xs: "evaluations per picture (NFE)", ys: metric, log: /fid|kid|mmd/.test(metric) ? "xy" : "x" });
}

let plotRun = "";
const steerPicked = new Set();
async function showPlots() {
  const benches = runs.filter(r => r.kind === "bench"), steers = runs.filter(r => r.kind === "steer");
  const was = $("bench-run").value;
  $("bench-run").replaceChildren(...benches.map(r => option(r.name, r.name)));
  $("bench-run").hidden = $("bench-metric").hidden = benches.length === 0;
  if (benches.some(r => r.name === plotRun)) $("bench-run").value = plotRun;
  else if (benches.some(r => r.name === was)) $("bench-run").value = was;
  if (!benches.length) $("bench-actions").replaceChildren();
  if (!benches.length) $("bench-plot").replaceChildren(el("p", { class: "empty" }, "No bench yet. ", el("a", { href: "#create", onclick: () => { document.querySelector("input[name=verb][value=bench]").click(); } }, "Run a small one"), ", or put the folder of a drift bench into " + catalog.folder + "."));
  else await drawBench();
  if (steers.some(r => r.name === plotRun)) steerPicked.add(plotRun);
  for (const n of [...steerPicked]) if (!steers.some(r => r.name === n)) steerPicked.delete(n);
  if (!steerPicked.size && steers.length) steerPicked.add((steers.find(r => r.wanted && r.count >= r.wanted) || steers[0]).name);
  plotRun = "";
  $("steer-what").hidden = steers.length === 0;
  $("steer-runs").replaceChildren(...steers.slice(0, 24).map(r => el("label", { class: "check" }, el("input", { type: "checkbox", checked: steerPicked.has(r.name), onchange: e => { e.target.checked ? steerPicked.add(r.name) : steerPicked.delete(r.name); drawSteers(); } }), r.name)));
  if (!steers.length) $("steer-plot").replaceChildren(el("p", { class: "empty" }, "No steered run yet."));
  else await drawSteers();
}
async function drawBench() {
  try {
    const r = await detail($("bench-run").value);
    const metrics = [...new Set((r.scores || []).map(s => s.metric))], was = $("bench-metric").value;
    $("bench-metric").replaceChildren(...metrics.map(m => option(m, m)));
    if (metrics.includes(was)) $("bench-metric").value = was;
    drawScores($("bench-plot"), { scores: r.scores || [] }, $("bench-metric").value);
    $("bench-actions").replaceChildren(el("button", { type: "button", class: "quiet small", disabled: !r.command, onclick: () => copy(r.command) }, "Copy as command"), el("a", { class: "button small", href: "#run/" + encodeURIComponent(r.name) }, "The run"));
  } catch (e) { $("bench-plot").replaceChildren(el("p", { class: "empty" }, e.message)); }
}
async function drawSteers() {
  try {
    const list = await Promise.all([...steerPicked].map(detail)), what = $("steer-what").value;
    drawChecks($("steer-plot"), list.map(r => ({ name: r.name, checks: r.checks })), what, Math.max(0, ...list.map(r => r.particles || 0)));
  } catch (e) { $("steer-plot").replaceChildren(el("p", { class: "empty" }, e.message)); }
}

// ---- views ----

function current() {
  const parts = location.hash.slice(1).split("/").map(p => { try { return decodeURIComponent(p); } catch { return ""; } });
  return views.includes(parts[0]) ? parts : ["create"];
}
function show() {
  const [v, ...rest] = current();
  for (const name of views) $("view-" + name).hidden = name !== v;
  for (const a of document.querySelectorAll("nav a")) {
    if (a.dataset.view === (v === "run" ? "gallery" : v)) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if ($("picture").open) $("picture").close();
  if (v === "gallery") showGallery();
  if (v === "run") { $("run").replaceChildren(); showRun(rest[0] || ""); }
  if (v === "compare") { if (rest.length && rest[0]) compared = rest.filter(Boolean).slice(0, 8); else if (location.hash.endsWith("/")) compared = []; showCompare(); }
  if (v === "plots") { plotRun = rest[0] || ""; showPlots(); }
  document.title = v === "create" ? "drift studio" : (v === "run" ? rest[0] : v) + " · drift studio";
}

addEventListener("DOMContentLoaded", async () => {
  if (location.search) history.replaceState(null, "", location.pathname + location.hash); // the token is in the cookie now
  showTheme();
  $("theme").addEventListener("click", () => {
    theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("drift-theme", theme); } catch { /* for this visit */ }
    showTheme();
  });
  setupPicture();
  $("filter").addEventListener("input", showGallery);
  $("compare-selected").addEventListener("click", () => { location.hash = "compare/" + [...picked].map(encodeURIComponent).join("/"); });
  $("compare-add").addEventListener("change", e => { if (e.target.value) location.hash = "compare/" + [...compared, e.target.value].map(encodeURIComponent).join("/"); });
  $("difference").addEventListener("change", showCompare);
  $("size").addEventListener("input", e => $("comparison").style.setProperty("--size", e.target.value + "px"));
  $("bench-run").addEventListener("change", drawBench);
  $("bench-metric").addEventListener("change", drawBench);
  $("steer-what").addEventListener("change", drawSteers);
  try { catalog = await api("/api/catalog"); } catch (e) {
    $("now-body").replaceChildren(el("div", { class: "idle" }, el("b", {}, "The studio does not answer"), el("span", {}, e.message)));
    return;
  }
  setupForm();
  addEventListener("hashchange", show);
  await loadRuns();
  show();
  follow();
});
