// The live page of qos-agent. The stream sends a full frame first and then what changed; a frame is
// {at: ms, sections: {name: value}, rows: {index: figures}, notes: [entry]}. Figures are in the order of F below.
"use strict";
(() => {
  const F = { levels: 0, p99: 1, waiting: 2, cpu: 3, quota: 4, throttled: 5, mem: 6, psiCPU: 7, psiMem: 8, psiIO: 9, cpi: 10, mpki: 11, llc: 12, bw: 13, age: 14 };
  const AXES = ["cpu", "memory", "io", "cache", "bandwidth"];
  const LEVEL = { o: "ok", w: "watch", v: "violated", u: "unknown" };
  const BAD = { violated: 3, watch: 2, unknown: 1, ok: 0 };
  const KEEP = 120; // seconds of history
  const NOTES = 1000; // entries kept
  const STALE = 4000; // ms without a frame

  const $ = (id) => document.getElementById(id);

  // el makes an element. Text goes in as text only: names come from whoever makes pods.
  function el(tag, attrs, ...kids) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(attrs || {})) {
      if (v === undefined || v === null || v === false) continue;
      if (k === "class") e.className = v;
      else if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
      else e.setAttribute(k, v === true ? "" : v);
    }
    e.append(...kids.filter((k) => k !== undefined && k !== null));
    return e;
  }
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  // ---- figures for people
  function dur(s) {
    if (s === 0) return "0";
    const a = Math.abs(s);
    if (a < 1e-3) return trim(s * 1e6) + " µs";
    if (a < 1) return trim(s * 1e3) + " ms";
    if (a < 120) return trim(s) + " s";
    if (a < 7200) return Math.round(s / 60) + " min";
    return Math.round(s / 3600) + " h";
  }
  const trim = (v) => String(Number(Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 10 ? v.toFixed(1) : v.toFixed(2)));
  const pct = (r) => (r * 100 < 10 && r > 0 ? (r * 100).toFixed(1) : Math.round(r * 100)) + " %";
  const bytes = (b) => (b >= 1 << 30 ? trim(b / (1 << 30)) + " GiB" : b >= 1 << 20 ? trim(b / (1 << 20)) + " MiB" : Math.round(b / 1024) + " KiB");
  const clock = (t) => new Date(t).toLocaleTimeString("en-GB");
  const date = (t) => new Date(t).toLocaleString("sv-SE"); // as in ISO 8601
  const number = (n) => n.toLocaleString("en-GB");
  const some = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;

  // ---- what is known
  const S = { sections: {}, at: 0, seen: 0, trouble: "" };
  let items = []; // containers, in the order of rows
  let held = new Map(); // pod -> settings
  const history = new Map(); // container -> {p99, cpu, psi, cpi}
  let notes = []; // newest first
  const nodeHistory = { busy: [], cpu: [], memory: [], io: [] };

  function push(list, v) {
    list.push(v);
    if (list.length > KEEP) list.shift();
  }

  function apply(frame, full) {
    S.at = frame.at;
    if (full) notes = [];
    const changed = frame.sections;
    Object.assign(S.sections, changed);
    if (changed.pods) rebuild(changed.pods);
    for (const [i, row] of Object.entries(frame.rows)) if (items[i]) items[i].row = row;
    for (const n of frame.notes) notes.unshift(n);
    notes.length = Math.min(notes.length, NOTES);
    for (const it of items) {
      const r = it.row, h = it.history;
      push(h.p99, r[F.p99]); push(h.cpu, r[F.cpu]); push(h.cpi, r[F.cpi]);
      push(h.psi, r[F.psiMem] === null ? null : Math.max(r[F.psiMem], r[F.psiIO]));
    }
    const now = S.sections.now || {};
    push(nodeHistory.busy, now.cpu ? now.cpu.busyRatio : null);
    for (const k of ["cpu", "memory", "io"]) push(nodeHistory[k], now.pressure ? now.pressure[k + "SomeRatio"] : null);
    if (changed.knobs) {
      held = new Map();
      for (const k of changed.knobs.list) {
        if (!held.has(k.pod)) held.set(k.pod, new Map());
        if (k.knob !== "cpu.weight" || k.current !== "0") held.get(k.pod).set(k.knob, k.current); // weight 0 is how the kernel shows cpu.idle
      }
    }
    render(changed, frame.notes.length > 0 || full);
  }

  const nothing = ["-----", null, null, null, null, null, null, null, null, null, null, null, null, null, null];
  function rebuild(pods) {
    items = [];
    const alive = new Set();
    for (const p of pods) {
      p.k.forEach((name, i) => {
        let key = p.n + "/" + name;
        while (alive.has(key)) key += "'"; // the old and the new instance of a container that restarts
        alive.add(key);
        if (!history.has(key)) history.set(key, { p99: [], cpu: [], psi: [], cpi: [] });
        items.push({ key, pod: p, container: name, first: i === 0, many: p.k.length > 1, row: nothing, history: history.get(key) });
      });
    }
    for (const key of history.keys()) if (!alive.has(key)) history.delete(key);
  }

  // ---- drawing
  function spark(canvas, list, top) {
    const w = canvas.clientWidth, h = canvas.clientHeight, dpr = window.devicePixelRatio || 1;
    if (!w) return;
    if (canvas.width !== Math.round(w * dpr)) { canvas.width = Math.round(w * dpr); canvas.height = Math.round(h * dpr); }
    const c = canvas.getContext("2d");
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, w, h);
    const max = Math.max(top || 0, ...list.filter((v) => v !== null)) || 1;
    c.strokeStyle = c.fillStyle = getComputedStyle(canvas).color;
    c.lineWidth = 1.2;
    c.lineJoin = "round";
    const span = Math.max(list.length - 1, 30); // a short history is stretched
    const x = (i) => w - 1.5 - ((list.length - 1 - i) * (w - 3)) / span;
    const y = (v) => h - 1.5 - (v / max) * (h - 3);
    c.beginPath();
    let pen = false;
    list.forEach((v, i) => {
      if (v === null) { pen = false; return; }
      if (pen) c.lineTo(x(i), y(v)); else c.moveTo(x(i), y(v));
      pen = true;
    });
    c.stroke();
    const last = list[list.length - 1];
    if (last !== null && last !== undefined) { c.beginPath(); c.arc(x(list.length - 1), y(last), 1.5, 0, 7); c.fill(); }
  }

  function render(changed, newNotes) {
    if (changed.agent || changed.node || changed.policy) renderHead();
    renderNode();
    if (changed.troubles) renderTroubles();
    if (changed.matrix) renderMatrix();
    renderPods(Boolean(changed.pods));
    if (changed.knobs) renderKnobs();
    if (changed.classes) renderClasses();
    if (newNotes) renderLog();
    if (changed.capabilities) renderCapabilities();
    document.body.dataset.frames = String(Number(document.body.dataset.frames || 0) + 1);
  }

  function renderHead() {
    const { agent, node, policy } = S.sections;
    put($("host"), node.hostname);
    document.title = node.hostname + " · qos-agent";
    const mode = $("mode");
    put(mode, agent.mode);
    mode.className = "badge " + agent.mode;
    mode.title = agent.mode === "observe" ? "Everything is measured and judged, nothing is written" : "Settings of offline pods are changed";
    put($("policy"), policy.name ? "policy " + policy.name + (policy.window ? ", window " + policy.window : "") + " · " + policy.id.slice(0, 19) : "no policy");
    put($("about"), `qos-agent ${agent.version}, kernel ${node.kernel}, ${node.cgroupMode} cgroups, ${node.cpus.length} CPUs, since ${date(agent.started)}`);
  }

  const cards = new Map();
  function card(name, value, more, list, top) {
    let c = cards.get(name);
    if (!c) {
      c = { value: el("div", { class: "value" }), more: el("div", { class: "more" }), canvas: list && el("canvas", { "aria-hidden": "true" }) };
      $("cards").append(el("div", { class: "card" }, el("div", { class: "name" }, name), c.value, c.canvas, c.more));
      cards.set(name, c);
    }
    put(c.value, value);
    put(c.more, (more || "").replace(/(\d) (?=%|[µm]?s\b|min\b|h\b)/g, "$1\u00a0")); // a figure and its unit stay together
    if (c.canvas) spark(c.canvas, list, top);
    return c;
  }

  function renderNode() {
    const { now, pods, agent, policy, source, knobs, node, troubles, capabilities } = S.sections;
    if (!now || !pods) return;
    const count = (c) => pods.filter((p) => p.c === c).length;
    const containers = (c) => items.filter((it) => it.pod.c === c).length;
    const c = now.cpu, p = now.pressure, l = now.loop;
    const hurt = troubles.counts.violated;
    card("Violated", number(hurt), hurt ? "objectives, see below" : "every objective that can be judged is kept").value.classList.toggle("bad", hurt > 0);
    card("Held settings", number(knobs.list.length + knobs.hidden), agent.mode === "observe" ? "observe: nothing is written" : "on " + some(held.size, "pod"));
    card("Online pods", number(count("online")), some(containers("online"), "container"));
    card("Offline pods", number(count("offline")), `${some(containers("offline"), "container")}; ${some(count("unclassified"), "pod")} of no class`);
    card("Reaction", l.reaction.count ? dur(l.reaction.p50Seconds) : "–", l.reaction.count ? `p50 of ${number(l.reaction.count)} from event to write; p99 ${dur(l.reaction.p99Seconds)}` : "no event has led to a write yet");
    card("CPU busy", c ? pct(c.busyRatio) : "–", c ? `of ${node.cpus.length} CPUs; steal ${pct(c.stealRatio)}, interrupts ${pct(c.softirqRatio + c.irqRatio)}` : "not measured", nodeHistory.busy, 1);
    for (const [k, name] of [["cpu", "CPU"], ["memory", "Memory"], ["io", "IO"]]) {
      card(name + " pressure", p ? pct(p[k + "SomeRatio"]) : "–", p ? (k === "cpu" ? "some task waited" : `some; all: ${pct(p[k + "FullRatio"])}`) : "not measured", nodeHistory[k], 0.1);
    }
    card("Tick", dur(l.tick.p50Seconds), `p50, every ${dur(agent.intervalSeconds)}; p99 ${dur(l.tick.p99Seconds)}, ${number(l.overruns)} late of ${number(l.ticks)}`);

    const w = [];
    if (!policy.reload.ok) w.push("A new policy was refused, the last good one is in force: " + policy.reload.errors.join("; "));
    if (!policy.name) w.push("There is no policy: nothing is judged or written.");
    if (!source.connected) w.push(`The pod source (${source.source}) is not connected since ${clock(source.since)}: ${source.error || "no reason known"}`);
    if (source.unresolved) w.push(`${source.unresolved} containers or pods are not watched: their control group is not known.`);
    if (source.degraded) w.push("Pods: " + source.degraded);
    if (agent.scheduling.class !== "realtime") w.push(`The agent's loop is ${agent.scheduling.class}: on a saturated node it reacts later. ${agent.scheduling.detail || ""}`);
    const lost = l.lost.events;
    if (lost) w.push(`${number(lost)} events were lost between kernel and agent.`);
    if (l.lost.unmeasured) w.push(`${number(l.lost.unmeasured)} containers are not measured: the kernel side has no slot for them.`);
    for (const k of capabilities) if (k.needed && !k.ok) w.push(`${k.name} is missing: ${k.detail}. Lost: ${k.lost}. To get it: ${k.fix}.`);
    const text = w.join("\n");
    if ($("warnings").dataset.text !== text) {
      $("warnings").dataset.text = text;
      $("warnings").replaceChildren(...w.map((t) => el("li", {}, t)));
    }
  }

  const REASON = {
    contention: "others ran while it waited", "own-queue": "it waited for itself: more runnable threads than CPUs", "self-throttled": "it used up its own CPU quota",
    steal: "the hypervisor took the CPUs", kernel: "kernel threads and interrupts", system: "processes outside every pod", "idle-wakeup": "the CPU had to wake up",
    scattered: "many others, none of whom can be named", unexplained: "too much of the wait could not be attributed", pressure: "it stalled; nobody is named on this axis",
    "few-samples": "too few waits to judge", stale: "the signal is too old", unmeasured: "there is no signal", learning: "what is normal for it is not known yet", "own-phase": "its own program has changed what it does",
  };

  function renderTroubles() {
    const { list: shown, counts } = S.sections.troubles;
    const all = counts.violated + counts.watch + counts.unknown;
    put($("hurt-n"), all ? `${counts.violated} violated, ${counts.watch} near it, ${counts.unknown} unknown` : "");
    const out = shown.slice().sort((a, b) => BAD[b.level] - BAD[a.level]).map((t) => {
      let figure = "";
      if (t.p99) figure = ` p99 ${dur(t.p99)}, promised ${dur(t.objective)}.`;
      else if (t.cpi) figure = ` CPI ${trim(t.cpi)}` + (t.cpiFence ? `, normal up to ${trim(t.cpiFence)}.` : ".");
      else if (t.stall) figure = ` stalled ${pct(t.stall)} of the time, promised ${pct(t.stallMax)}.`;
      const li = el("li", {}, el("span", { class: "level " + t.level }, t.level),
        el("div", {}, el("strong", {}, t.pod), t.container ? el("span", { class: "quiet" }, " " + t.container) : null,
          el("span", {}, ` on ${t.axis} for ${dur(Math.max(1, Math.round(S.at / 1000 - t.since)))}.${figure} `),
          t.reason ? el("span", { class: "quiet" }, `${t.reason}: ${REASON[t.reason] || ""}`) : null,
          t.blame && t.blame.length ? blameOf(t) : null));
      return li;
    });
    if (!out.length) out.push(el("li", {}, el("span", { class: "level ok" }, "ok"), el("div", {}, "Nobody: every online container is inside its objectives.")));
    const more = all - shown.length;
    if (more) out.push(el("li", {}, el("span"), el("div", { class: "quiet" }, `and ${more} more, see the table of pods`)));
    $("troubles").replaceChildren(...out);
  }

  // blameOf says who ran meanwhile; with a bar where it hurts.
  function blameOf(t) {
    const named = new Set(t.culprits || []);
    const text = "Meanwhile ran: " + t.blame.filter((b) => b.ratio >= 0.01).map((b) => `${b.name} ${pct(b.ratio)}${named.has(b.name) ? " (named)" : ""}`).join(", ") + ".";
    if (t.level !== "violated") return el("span", { class: "quiet" }, ". " + text);
    const bar = el("div", { class: "bar", "aria-hidden": "true" });
    for (const b of t.blame) {
      const part = el("i", { class: b.name.includes("/") ? "" : "none", title: `${b.name} ${pct(b.ratio)}` });
      part.style.width = b.ratio * 100 + "%";
      part.style.opacity = b.name.includes("/") ? String(named.has(b.name) ? 1 : 0.55) : "1";
      bar.append(part);
    }
    return el("div", {}, bar, el("div", { class: "quiet" }, text));
  }

  // ---- matrix
  let matrixAll = false;
  $("matrix-all").addEventListener("click", () => { matrixAll = !matrixAll; renderMatrix(); });
  function renderMatrix() {
    const m = S.sections.matrix;
    if (!m) return;
    const n = matrixAll ? Infinity : 12;
    const victims = m.victims.slice(0, n), culprits = m.culprits.slice(0, n);
    const waits = S.sections.capabilities && S.sections.capabilities.find((c) => c.name === "bpf");
    if (waits && !waits.ok) put($("matrix-note"), `Not measured: ${waits.detail}. To get it: ${waits.fix}.`);
    else put($("matrix-note"), m.span ? `Of the longer run-queue waits of the last ${m.span} s: who ran meanwhile. Rows are who waited, with the total of all its tasks; columns are who ran.` : "Waiting for a second reading.");
    const cell = new Map(m.cells.map(([v, c, ms]) => [v + "," + c, ms]));
    const head = el("tr", {}, el("th", { scope: "col" }, el("span", { class: "quiet" }, "waited ↓ · ran →")), el("th", { scope: "col", class: "self" }, "total"),
      ...culprits.map((c) => el("th", { scope: "col", class: c.includes("/") ? "" : "self", title: c }, c)));
    const body = victims.map((v, i) => el("tr", {}, el("th", { scope: "row" }, v), el("td", { class: "self" }, m.totals[i] >= 1 ? dur(m.totals[i] / 1000) : "<1 ms"),
      ...culprits.map((c, j) => {
        const ms = cell.get(i + "," + j);
        if (!ms || !m.totals[i]) return el("td", {}, "");
        const share = ms / m.totals[i];
        const td = el("td", { title: `${v} waited ${dur(ms / 1000)} while ${c} ran`, class: c.includes("/") ? "" : "self" }, pct(share));
        if (c.includes("/")) td.style.background = `color-mix(in srgb, var(--violated) ${Math.round(Math.min(share, 1) * 32)}%, transparent)`;
        return td;
      })));
    $("matrix").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
    const rest = m.victims.length > 12 || m.culprits.length > 12;
    $("matrix-all").hidden = !rest;
    put($("matrix-all"), matrixAll ? "Show the largest only" : `Show all ${m.victims.length} × ${m.culprits.length}`);
    if (!m.victims.length && m.span) put($("matrix-note"), `Nobody online waited for long in the last ${m.span} s.`);
  }

  // ---- pods
  const CLASSES = [["online", "Online"], ["offline", "Offline"], ["unclassified", "No class: never touched"]];
  const worst = (it) => {
    let at = -1, bad = -1;
    for (let i = 0; i < AXES.length; i++) {
      const l = LEVEL[it.row[F.levels][i]];
      if (l && BAD[l] > bad) { bad = BAD[l]; at = i; }
    }
    return at < 0 ? null : { axis: AXES[at], level: LEVEL[it.row[F.levels][at]] };
  };
  const heldText = (it) => {
    const h = held.get(it.pod.n);
    return h ? [...h].map(([k, v]) => `${k.replace(/^cpu\./, "").replace("cpuset.cpus", "cpus")} ${v}`).join(", ") : "";
  };
  const orNull = (v, f) => (v === null ? null : f(v));
  const COLUMNS = [
    { id: "name", name: "Pod", col: "name", sort: (it) => it.key },
    { id: "state", name: "State", col: "levels", only: ["online"], sort: (it) => { const w = worst(it); return w ? -BAD[w.level] * 1e9 - (it.row[F.p99] || 0) : 1; } },
    { id: "held", name: "Held at", col: "held", only: ["offline"], sort: (it) => (held.has(it.pod.n) ? 0 : 1) },
    { id: "p99", name: "Wait p99", col: "fig", desc: true, sort: (it) => it.row[F.p99], text: (r) => orNull(r[F.p99], (v) => dur(v / 1e6)), spark: "p99", top: 1000, missing: ["bpf"] },
    { id: "cpu", name: "CPU", col: "fig", desc: true, sort: (it) => it.row[F.cpu], text: (r) => orNull(r[F.cpu], (v) => (v / 1000).toFixed(2) + (r[F.quota] ? " of " + trim(r[F.quota] / 1000) : "")), spark: "cpu", top: 500,
      title: (r) => (r[F.throttled] ? `throttled in ${r[F.throttled]} % of its periods` : "CPUs in use, of its quota if it has one") },
    { id: "psi", name: "Stall mem / io", col: "wide", desc: true, sort: (it) => orNull(it.row[F.psiMem], (v) => Math.max(v, it.row[F.psiIO])), text: (r) => orNull(r[F.psiMem], (v) => pct(v / 1000) + " / " + pct(r[F.psiIO] / 1000)), spark: "psi", top: 100, missing: ["psi_group"] },
    { id: "cpi", name: "CPI", col: "fig", desc: true, sort: (it) => it.row[F.cpi], text: (r) => orNull(r[F.cpi], (v) => (v / 100).toFixed(2)), spark: "cpi", top: 100, missing: ["perf"], title: (r) => (r[F.mpki] === null ? "" : `${(r[F.mpki] / 100).toFixed(2)} LLC misses per 1000 instructions`) },
    { id: "llc", name: "LLC", col: "small", desc: true, sort: (it) => it.row[F.llc], text: (r) => orNull(r[F.llc], (v) => bytes(v * 1024)), missing: ["cache_monitoring", "resctrl"] },
    { id: "bw", name: "Mem BW", col: "small", desc: true, sort: (it) => it.row[F.bw], text: (r) => orNull(r[F.bw], (v) => v + " MB/s"), missing: ["bandwidth_monitoring", "resctrl"] },
    { id: "mem", name: "Memory", col: "small", desc: true, sort: (it) => it.row[F.mem], text: (r) => orNull(r[F.mem], (v) => bytes(v * (1 << 20))), missing: ["memory"] },
  ];
  const COMPARE = new Intl.Collator("en", { numeric: true }).compare;

  const tables = new Map(); // class -> {table, body, rows: Map, sort, desc, sorted}
  const watcher = new IntersectionObserver((entries) => {
    for (const e of entries) {
      e.target.row.visible = e.isIntersecting;
      if (e.isIntersecting) paint(e.target.row);
    }
  }, { rootMargin: "100px" });

  // columns of a class: one that nothing was measured for is left out, and the capability that is missing says why.
  function columnsOf(cls) {
    const why = [];
    const cols = COLUMNS.filter((c) => {
      if (c.only) return c.only.includes(cls);
      if (!c.missing) return true;
      const probe = (S.sections.capabilities || []).find((p) => c.missing.includes(p.name) && !p.ok);
      if (!probe || items.some((it) => c.text(it.row) !== null)) return true;
      why.push(`${c.name} (${probe.name}: ${probe.detail})`);
      return false;
    });
    return { cols, why };
  }

  function renderPods(rebuilt) {
    const filter = $("pod-filter").value.trim().toLowerCase();
    const { why } = columnsOf("");
    put($("pods-note"), why.length ? "Not shown: " + why.join("; ") : "");
    for (const [cls, title] of CLASSES) {
      const list = items.filter((it) => it.pod.c === cls && (!filter || it.key.toLowerCase().includes(filter)));
      const { cols } = columnsOf(cls);
      const layout = cols.map((c) => c.id).join();
      let t = tables.get(cls);
      if (!t || t.layout !== layout) {
        t = makeTable(cls, title, cols, layout, t);
        tables.set(cls, t);
      }
      t.box.hidden = list.length === 0 && cls === "unclassified";
      put(t.count, `${list.length}`);
      const want = new Set();
      for (const it of list) {
        want.add(it.key);
        let r = t.rows.get(it.key);
        if (!r) { r = makeRow(t, it); t.rows.set(it.key, r); t.dirty = r.fresh = true; }
        r.item = it;
      }
      for (const [key, r] of t.rows) {
        if (want.has(key)) continue;
        watcher.unobserve(r.tr);
        r.tr.remove();
        t.rows.delete(key);
      }
      // Rows do not jump while somebody reads them: the order is made anew now and then, and not under the pointer or the focus.
      const busy = t.box.matches(":hover") || t.box.contains(document.activeElement);
      if (t.dirty || rebuilt || (S.at - t.sorted > 5000 && !busy)) sortTable(t);
      for (const r of t.rows.values()) {
        if (r.visible || r.fresh) paint(r); // nobody sees an empty row on its way into the window
        r.fresh = false;
      }
    }
  }

  function makeTable(cls, title, cols, layout, old) {
    const t = { cls, cols, layout, rows: new Map(), sort: old ? old.sort : cls === "online" ? "state" : "cpu", desc: old ? old.desc : cls !== "online", sorted: 0, dirty: true };
    t.body = el("tbody");
    t.count = el("span", { class: "count" });
    t.heads = cols.map((c) => el("th", { scope: "col", class: c.text ? "num" : "" }, el("button", {
      type: "button",
      onclick: () => { if (t.sort === c.id) t.desc = !t.desc; else { t.sort = c.id; t.desc = Boolean(c.desc); } sortTable(t); },
    }, c.name)));
    const table = el("table", { class: "pods" }, el("caption", { class: "skip" }, title + " pods"), el("colgroup", {}, ...cols.map((c) => el("col", { class: c.col }))),
      el("thead", {}, el("tr", {}, ...t.heads)), t.body);
    const inner = el("div", { class: "scroll" }, table);
    const fresh = cls === "unclassified" ? el("details", {}, el("summary", {}, el("strong", {}, title), " ", t.count), inner)
      : el("div", {}, el("h3", {}, title + " ", t.count), inner);
    if (old) { for (const r of old.rows.values()) watcher.unobserve(r.tr); old.box.replaceWith(fresh); } else $("tables").append(fresh);
    t.box = fresh;
    return t;
  }

  function makeRow(t, it) {
    const r = { item: it, visible: false, cells: [] };
    r.tr = el("tr");
    r.tr.row = r;
    for (const c of t.cols) {
      if (!c.text) { const td = el("td", { class: c.id === "name" ? "name" : "" }); r.cells.push({ c, td }); r.tr.append(td); continue; }
      const text = el("span"), canvas = c.spark ? el("canvas", { "aria-hidden": "true" }) : null;
      const td = el("td", { class: "num" }, el("div", { class: "cell" }, text, canvas));
      r.cells.push({ c, td, text, canvas });
      r.tr.append(td);
    }
    const name = r.cells[0].td;
    name.append(el("span", { title: `class ${it.pod.c} by ${it.pod.r || "nothing"}${it.pod.q ? ", QoS class " + it.pod.q : ""}` }, it.pod.n), " ", el("span", { class: "quiet" }, it.container === it.pod.n.split("/")[1] ? "" : it.container));
    watcher.observe(r.tr);
    return r;
  }

  function paint(r) {
    const it = r.item, w = worst(it);
    r.tr.className = w && BAD[w.level] > 1 ? "worst-" + w.level[0] : "";
    for (const { c, td, text, canvas } of r.cells) {
      if (c.id === "state") {
        const what = w ? (w.level === "ok" ? "ok" : `${w.level} (${w.axis})`) : "not judged";
        if (td.dataset.text !== what) { td.dataset.text = what; td.replaceChildren(el("span", { class: "level " + (w ? w.level : "unknown") }, what)); }
      } else if (c.id === "held") {
        put(td, it.first ? heldText(it) : "");
        td.title = td.textContent;
      } else if (c.text) {
        const v = c.text(it.row);
        put(text, v === null ? "–" : v);
        td.title = it.row[F.age] ? `${it.row[F.age]} s old` : c.title ? c.title(it.row) : "";
        if (canvas) spark(canvas, it.history[c.spark], c.top);
      }
    }
  }

  function sortTable(t) {
    t.sorted = S.at;
    t.dirty = false;
    const col = t.cols.find((c) => c.id === t.sort) || t.cols[0];
    const key = new Map();
    for (const r of t.rows.values()) key.set(r, col.sort(r.item));
    const rows = [...t.rows.values()].sort((a, b) => {
      const x = key.get(a), y = key.get(b);
      if (x === null || y === null) return x === y ? COMPARE(a.item.key, b.item.key) : x === null ? 1 : -1;
      const d = typeof x === "string" ? COMPARE(x, y) : x - y;
      return (t.desc ? -d : d) || COMPARE(a.item.key, b.item.key);
    });
    let at = t.body.firstChild;
    for (const r of rows) {
      if (at === r.tr) at = at.nextSibling;
      else t.body.insertBefore(r.tr, at);
    }
    t.heads.forEach((th, i) => {
      if (t.cols[i] === col) th.setAttribute("aria-sort", t.desc ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
  }
  $("pod-filter").addEventListener("input", () => renderPods(true));

  // ---- held
  function renderKnobs() {
    const { list, hidden } = S.sections.knobs;
    put($("knobs-n"), list.length + hidden ? some(list.length + hidden, "setting") + " on " + some(held.size, "pod") : "nothing");
    const head = el("tr", {}, ...["Pod", "Setting", "Original", "Now", "Why", "For whom", "Since"].map((t) => el("th", { scope: "col" }, t)));
    const sorted = list.slice().sort((a, b) => COMPARE(a.pod, b.pod) || COMPARE(a.cgroup, b.cgroup) || COMPARE(a.knob, b.knob));
    let last = "";
    const rows = sorted.map((k) => {
      const first = k.pod !== last;
      last = k.pod;
      return el("tr", {}, el("td", { class: "name" }, first ? k.pod : ""), el("td", { class: "mono", title: k.cgroup }, k.knob), el("td", { class: "mono" }, k.original), el("td", { class: "mono" }, k.current),
        el("td", { title: RULES[k.rule] || "" }, k.rule), el("td", { class: "name" }, k.victim || "–"), el("td", { class: "nowrap" }, clock(k.since)));
    });
    $("held").replaceChildren(el("thead", {}, head), el("tbody", {}, ...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 7, class: "quiet" }, "The node is as it would be without the agent."))])));
  }

  // Classes of service of resctrl: which pods share how much of cache and memory bandwidth.
  function renderClasses() {
    const list = S.sections.classes;
    $("classes-box").hidden = list.length === 0;
    const head = el("tr", {}, ...["Class", "Cache", "Bandwidth", "Limits", "Pods", "Why", "For whom", "Since"].map((t) => el("th", { scope: "col" }, t)));
    $("classes").replaceChildren(el("thead", {}, head), el("tbody", {}, ...list.map((c) => el("tr", {}, el("td", { class: "mono" }, c.group), el("td", {}, c.ways ? some(c.ways, "way") : "all"),
      el("td", {}, c.percent ? c.percent + " %" : "all"), el("td", { class: "mono" }, c.schemata), el("td", { class: "name", title: c.pods.join(", ") }, c.pods.length > 4 ? `${c.pods.slice(0, 3).join(", ")} and ${c.pods.length - 3} more` : c.pods.join(", ")),
      el("td", {}, c.rule || "–"), el("td", { class: "name" }, c.victim || "–"), el("td", { class: "nowrap" }, clock(c.since * 1000))))));
  }

  // ---- decisions
  const RULES = {
    posture: "how offline pods are always treated", "event-cut": "a single wait was too long, and it ran meanwhile", "tick-cut": "it ran during most of the victim's waits", "joint-cut": "several together ran during most of the victim's waits",
    "widen-cut": "the culprits have nothing left to give", regrow: "calm for long enough: a step back", "regrow-undo": "the last step back hurt", thaw: "the freezer lets go", "take-back": "the cut did not help its victim", proven: "the cut helped its victim",
    release: "blind for too long: back to the posture", policy: "policy or machine changed", skip: "the policy asks for what cannot be done here", press: "a victim rests near its limit: one more step", "own-ways": "a part of the cache for itself", "own-end": "no longer needed, or of no help",
    plea: "cache and bandwidth cannot be cut further: cores instead", burst: "may borrow from quieter periods", "burst-end": "no longer needed",
  };
  const inputsText = (i) => {
    if (!i) return "";
    const out = [];
    if (i.waitSeconds) out.push("wait " + dur(i.waitSeconds));
    if (i.beforeSeconds) out.push("before " + dur(i.beforeSeconds));
    if (i.objectiveSeconds) out.push("promised " + dur(i.objectiveSeconds));
    if (i.cpi) out.push("CPI " + trim(i.cpi));
    if (i.cpiBefore) out.push("before " + trim(i.cpiBefore));
    if (i.cpiFence) out.push("normal up to " + trim(i.cpiFence));
    if (i.shareRatio) out.push("share " + pct(i.shareRatio));
    if (i.belief) out.push("belief " + i.belief);
    if (i.pauseSeconds) out.push("not again for " + dur(i.pauseSeconds));
    return out.join(", ");
  };
  function renderLog() {
    if ($("log-hold").checked) return;
    const filter = $("log-filter").value.trim().toLowerCase(), kind = $("log-kind").value;
    const match = (n) => (!kind || n.kind === kind) && (!filter || [n.pod, n.victim, n.rule, n.knob, n.cgroup, n.result, n.message, n.old, n.new].some((v) => v && v.toLowerCase().includes(filter)));
    const found = notes.filter(match), shown = found.slice(0, 200);
    put($("log-note"), `${shown.length} of ${found.length} shown; more by qos-agent events --since`);
    const head = el("tr", {}, ...["Time", "What", "Pod", "Change", "For whom", "Figures", "Result"].map((t) => el("th", { scope: "col" }, t)));
    const rows = shown.map((n) => {
      const turned = (n.old || n.new) && n.kind !== "policy";
      const change = turned ? `${n.knob ? n.knob + ": " : ""}${n.old || "–"} → ${n.new || "–"}` : n.message || RULES[n.rule] || "";
      return el("tr", { title: n.message || n.cgroup || "" }, el("td", { class: "nowrap" }, clock(n.at)), el("td", { class: "nowrap", title: RULES[n.rule] || "" }, n.kind === "decision" || n.kind === "write" ? `${n.kind} ${n.rule || ""}` : n.kind),
        el("td", { class: "name" }, n.pod || ""), el("td", { class: n.kind === "write" ? "mono" : "name" }, change), el("td", { class: "name" }, n.victim || ""), el("td", {}, inputsText(n.inputs)),
        el("td", { class: ["failed", "mismatch", "refused"].includes(n.result) ? "no" : "" }, n.result || ""));
    });
    $("decisions").replaceChildren(el("thead", {}, head), el("tbody", {}, ...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 7, class: "quiet" }, "Nothing."))])));
  }
  for (const id of ["log-filter", "log-kind", "log-hold"]) $(id).addEventListener("input", renderLog);

  function renderCapabilities() {
    const head = el("tr", {}, ...["Capability", "", "Found", "Without it", "To get it"].map((t) => el("th", { scope: "col" }, t)));
    $("capabilities").replaceChildren(el("thead", {}, head), el("tbody", {}, ...S.sections.capabilities.map((c) => el("tr", {},
      el("td", { class: "mono" }, c.name), el("td", { class: c.ok ? "yes" : "no" }, c.ok ? "✓ yes" : "✗ no"), el("td", { class: "name" }, c.detail), el("td", {}, c.lost || ""), el("td", {}, c.fix || "")))));
  }

  // ---- the stream
  let stream, retry;
  function connect() {
    clearTimeout(retry);
    stream = new EventSource("api/v1/stream");
    const on = (kind, full) => stream.addEventListener(kind, (e) => {
      S.seen = performance.now();
      S.trouble = "";
      apply(JSON.parse(e.data), full);
      link();
    });
    on("full", true);
    on("delta", false);
    stream.addEventListener("stale", (e) => { S.trouble = JSON.parse(e.data); link(); });
    stream.onerror = () => {
      S.trouble = "the agent cannot be reached";
      if (stream.readyState === EventSource.CLOSED) retry = setTimeout(connect, 5000); // refused: too many pages, or no leave
      link();
    };
  }
  function link() {
    const old = S.seen ? performance.now() - S.seen : Infinity;
    const state = old < STALE ? "live" : S.seen ? "stale" : "wait";
    const l = $("link");
    l.dataset.state = state;
    put(l, state === "live" ? "live" : state === "wait" ? "connecting" : "stale");
    l.title = S.at ? "node's time " + date(S.at) : "";
    document.body.classList.toggle("stale", state === "stale");
    $("stale").hidden = state !== "stale" && !(state === "wait" && S.trouble);
    if (!$("stale").hidden) put($("stale"), (S.at ? `What is shown is of ${clock(S.at)}` : "Nothing to show yet") + `: ${S.trouble || "nothing comes from the agent"}. Trying again.`);
  }
  setInterval(link, 1000);

  // ---- colours and keys
  const THEMES = [["", "◐", "as the system has them"], ["light", "☀", "light"], ["dark", "☾", "dark"]];
  let theme = "";
  try { theme = localStorage.getItem("qos-agent-theme") || ""; } catch { /* private windows have none */ }
  function setTheme(name) {
    const t = THEMES.find((t) => t[0] === name) || THEMES[0];
    theme = t[0];
    if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
    put($("theme"), t[1]);
    $("theme").setAttribute("aria-label", "Colours: " + t[2]);
    try { localStorage.setItem("qos-agent-theme", theme); } catch { /* then it is for this page only */ }
    repaint(true);
  }
  const repaint = (all) => { if (S.at) { renderNode(); for (const t of tables.values()) for (const r of t.rows.values()) if (all || r.visible) paint(r); } };
  const nextTheme = () => setTheme(THEMES[(THEMES.findIndex((t) => t[0] === theme) + 1) % THEMES.length][0]);
  $("theme").addEventListener("click", nextTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint(true));
  window.addEventListener("resize", () => repaint(false));
  // On paper, light and whole: rows that nobody has scrolled to are as old as the last look at them.
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    repaint(true);
  });
  window.addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); repaint(true); });

  const GO = { n: "node", h: "hurt", w: "blame", p: "pods", k: "knobs", d: "log", c: "can" };
  let going = 0;
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = e.target.matches("input[type=search], select, textarea");
    if (typing) { if (e.key === "Escape") e.target.blur(); return; }
    if (performance.now() - going < 1500 && GO[e.key]) {
      going = 0;
      location.hash = GO[e.key];
      e.preventDefault();
    } else if (e.key === "g") going = performance.now();
    else if (e.key === "/") { e.preventDefault(); $("pod-filter").focus(); }
    else if (e.key === "t") nextTheme();
  });

  setTheme(theme);
  connect();
})();
