(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var xs = [];
  for (var i = 0; i < data.n; i++) xs.push(data.start + i * data.step);
  var plots = [], zoom = null, busy = false;
  var style = function (name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); };
  var full = function (v) { var out = (v || []).slice(0, data.n); while (out.length < data.n) out.push(null); return out; };
  var wait = function (us) { return us == null ? "" : us >= 1e6 ? +(us / 1e6).toPrecision(3) + " s" : us >= 1e3 ? +(us / 1e3).toPrecision(3) + " ms" : +us.toPrecision(3) + " µs"; };
  var byPod = {};
  data.notes = data.notes || [];
  data.notes.forEach(function (n) { if (n.cut || n.back) (byPod[n.pod] = byPod[n.pod] || []).push(n); });

  function follow(u) {
    if (busy) return;
    var s = u.scales.x, all = s.min <= xs[0] && s.max >= xs[xs.length - 1];
    zoom = all ? null : [s.min, s.max];
    busy = true;
    plots.forEach(function (p) { if (p !== u) p.setScale("x", { min: s.min, max: s.max }); });
    busy = false;
  }
  // Times are the node's, whatever the reader's zone is.
  var two = function (n) { return (n < 10 ? "0" : "") + n; };
  var clock = function (v, fine) {
    var s = (((v + data.zone) % 86400) + 86400) % 86400, h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, sec = s - 3600 * h - 60 * m;
    return two(h) + ":" + two(m) + (fine ? ":" + (sec < 10 ? "0" : "") + sec.toFixed(fine > 1 ? 1 : 0) : "");
  };
  var hours = function (u, splits) {
    var each = splits.length > 1 ? splits[1] - splits[0] : 60;
    return splits.map(function (v) { return clock(v, each < 1 ? 2 : each < 60 ? 1 : 0); });
  };
  function axes(values, size) {
    var dim = style("--dim"), grid = { stroke: style("--line"), width: 0.5 };
    return [{ stroke: dim, grid: grid, ticks: grid, font: "11px system-ui", values: hours, size: 34 }, { stroke: dim, grid: grid, ticks: grid, font: "11px system-ui", values: values, size: size || 62 }];
  }
  // The lane below the wait: its verdicts.
  function lane(level) {
    return function (u) {
      var c = u.ctx, y = u.bbox.top + u.bbox.height - 5, w = u.valToPos(xs[0] + data.step, "x", true) - u.valToPos(xs[0], "x", true);
      var colour = { 1: style("--warn"), 2: style("--bad"), 3: style("--unknown") };
      c.save();
      c.beginPath(); c.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height); c.clip();
      for (var i = 0; i < level.length; i++) if (colour[level[i]]) { c.fillStyle = colour[level[i]]; c.fillRect(u.valToPos(xs[i], "x", true), y, Math.max(1, w), 5); }
      c.restore();
    };
  }
  function marks(notes) {
    return function (u) {
      var c = u.ctx;
      c.save();
      notes.forEach(function (n) {
        var x = Math.round(u.valToPos(data.start + n.t, "x", true));
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
        c.fillStyle = style(n.cut ? "--bad" : "--good");
        c.fillRect(x, n.cut ? u.bbox.top + u.bbox.height - 9 : u.bbox.top, 1.5, 9);
      });
      c.restore();
    };
  }
  var causes = ["--bad", "--may", "--accent", "--warn", "--unknown"];
  var share = function (v) { return v == null ? "" : +v.toPrecision(3) + " %"; };
  var plain = function (v) { return v == null ? "" : "" + +v.toPrecision(3); };
  var fromZero = function (least) { return function (u, a, b) { return [0, Math.max(least, b) * 1.08]; }; };
  var drawn = function (label, colour, value, more) { return Object.assign({ label: label, stroke: style(colour), width: 1.4, value: function (u, v) { return value(v); } }, more); };
  var limit = function (label, value) { return drawn(label, "--bad", value, { dash: [5, 4], width: 1, points: { show: false } }); };
  var stepped = uPlot.paths.stepped({ align: 1 });
  var scaled = function (v, by) { return full(v).map(function (x) { return x == null ? null : x / by; }); };
  // What a card shows: its rows, series and options, by its kind.
  var kinds = {
    wait: function (l) {
      var rows = [full(l.p99), full(l.objective)], pos = rows[0].concat(rows[1]).filter(function (v) { return v > 0; });
      var lo = Math.min.apply(null, pos.concat([100])), hi = Math.max.apply(null, pos.concat([1000]));
      return {
        rows: rows, series: [drawn("p99", "--accent", wait), limit("objective", wait)],
        opts: { scales: { y: { distr: 3, range: [Math.pow(10, Math.floor(Math.log10(lo / 1.2))), Math.pow(10, Math.ceil(Math.log10(hi * 1.1)))] } }, axes: axes(function (u, v) { return v.map(function (x) { return x == null || Math.abs(Math.log10(x) - Math.round(Math.log10(x))) > 1e-6 ? "" : wait(x); }); }), hooks: { draw: [lane(l.level || "")] } }
      };
    },
    cpu: function (l) {
      var cpus = function (v) { return v == null ? "" : v + " CPUs"; };
      return {
        rows: [full(l.used), full(l.may)],
        series: [drawn("used", "--accent", cpus, { fill: style("--accent") + "22" }), drawn("granted", "--may", cpus, { points: { show: false }, paths: stepped })],
        opts: { scales: { y: { range: fromZero(1) } }, axes: axes(null, 44), hooks: { draw: [lane(l.held || ""), marks(byPod[l.pod] || [])] } }
      };
    },
    cpi: function (l, c) {
      return {
        rows: c.lines.map(function (v) { return scaled(v, 1000); }),
        series: [drawn("CPI", "--accent", plain), drawn("normal", "--good", plain, { width: 1, points: { show: false } }), limit("bound", plain)],
        opts: { scales: { y: { range: fromZero(1) } }, axes: axes(null, 44), hooks: { draw: [lane(c.level || "")] } }
      };
    },
    stall: function (l, c) {
      return {
        rows: [scaled(c.lines[0], 10), scaled(c.lines[1], 10)], series: [drawn("stalled", "--accent", share), limit("objective", share)],
        opts: { scales: { y: { range: fromZero(1) } }, axes: axes(function (u, v) { return v.map(share); }, 52), hooks: { draw: [lane(c.level || "")] } }
      };
    },
    hardware: function (l, c) {
      var moved = axes(null, 52)[1];
      moved.scale = "MB/s"; moved.side = 1; moved.grid = { show: false };
      return {
        rows: c.lines.map(full),
        series: [drawn("ways", "--may", share, { points: { show: false }, paths: stepped }), drawn("bandwidth", "--warn", share, { points: { show: false }, paths: stepped }), drawn("moved", "--accent", function (v) { return v == null ? "" : +v.toPrecision(3) + " MB/s"; }, { scale: "MB/s" })],
        opts: { scales: { y: { range: [0, 108] }, "MB/s": { range: fromZero(1) } }, axes: axes(function (u, v) { return v.map(share); }, 52).concat([moved]), hooks: {} }
      };
    },
    blame: function (l) {
      var ms = function (v) { return v == null ? "" : +v.toPrecision(3) + " ms/s"; }, own = l.blame.map(function (b) { return full(b.ms); });
      var top = xs.map(function () { return null; }), rows = own.map(function (v) { return top = top.map(function (t, i) { return t == null && v[i] == null ? null : (t || 0) + (v[i] || 0); }); });
      var series = l.blame.map(function (b, k) {
        return drawn(b.cause, causes[k], ms, { width: 1, fill: style(causes[k]) + "66", points: { show: false }, value: function (u, v, s, i) { return i == null ? "" : ms(own[k][i]); } });
      });
      var bands = own.slice(1).map(function (v, k) { return { series: [k + 2, k + 1] }; }); // each is filled down to the one below it
      return { rows: rows, series: series, opts: { bands: bands, scales: { y: { range: fromZero(1) } }, axes: axes(null), hooks: {} } };
    }
  };
  kinds.memory = kinds.io = kinds.stall;
  var titles = { cpi: "cycles per instruction", memory: "stalled on memory, %", io: "stalled on IO, %", hardware: "cache and bandwidth granted, % and MB/s moved", blame: "wait by cause, ms a second" };

  function make(card) {
    if (card.plot) return;
    var shown = kinds[card.kind](card.line, card.chart), opts = shown.opts;
    var time = { label: "time", value: function (u, v) { return v == null ? "" : clock(v, 2); } };
    var common = { width: Math.max(240, card.clientWidth - 22), height: 170, cursor: { sync: { key: "time" }, points: { size: 5 } } };
    var rows = [xs].concat(shown.rows), series = [time].concat(shown.series);
    opts.hooks.setScale = [function (u, key) { if (key === "x") follow(u); }];
    busy = true;
    var u = new uPlot(Object.assign(common, opts, { series: series }), rows, card);
    if (zoom) u.setScale("x", { min: zoom[0], max: zoom[1] });
    busy = false;
    card.plot = u;
    plots.push(u);
  }
  var seen = "IntersectionObserver" in window ? new IntersectionObserver(function (es) {
    es.forEach(function (e) { if (e.isIntersecting) { make(e.target); seen.unobserve(e.target); } });
  }, { rootMargin: "400px" }) : null;
  function cards(where, lines, kind) {
    var box = document.getElementById(where);
    function add(l, kind, chart) {
      var card = document.createElement("div"), h = document.createElement("h3");
      card.className = "plot"; h.textContent = l.pod + (titles[kind] ? ": " + titles[kind] : ""); card.dataset.pod = l.pod;
      card.line = l; card.kind = kind; card.chart = chart;
      card.appendChild(h); box.appendChild(card);
      if (seen) seen.observe(card); else make(card);
    }
    lines.forEach(function (l) {
      add(l, kind);
      (l.charts || []).forEach(function (c) { add(l, c.kind, c); });
      if (l.blame && l.blame.length) add(l, "blame");
    });
  }
  cards("onlinePlots", data.online || [], "wait");
  cards("offlinePlots", data.offline || [], "cpu");

  document.getElementById("filter").addEventListener("input", function (e) {
    var want = e.target.value.toLowerCase();
    document.querySelectorAll("[data-pod]").forEach(function (el) { el.style.display = el.dataset.pod.toLowerCase().indexOf(want) >= 0 ? "" : "none"; });
  });
  document.getElementById("reset").addEventListener("click", function () {
    zoom = null; busy = true;
    plots.forEach(function (p) { p.setScale("x", { min: xs[0], max: xs[xs.length - 1] }); });
    busy = false;
  });
  function again() { // colours are read when a plot is made
    plots.forEach(function (p) { p.destroy(); }); plots = [];
    document.querySelectorAll(".plot").forEach(function (c) { if (c.plot) { c.plot = null; make(c); } });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  var timer; window.addEventListener("resize", function () { clearTimeout(timer); timer = setTimeout(again, 150); });
  window.addEventListener("beforeprint", function () { // what was not scrolled to yet; of a great many the worst
    document.documentElement.classList.add("paper"); // ink on white, whatever the screen is like
    again();
    Array.prototype.slice.call(document.querySelectorAll("#onlinePlots .plot"), 0, 24).forEach(make);
    Array.prototype.slice.call(document.querySelectorAll("#offlinePlots .plot"), 0, 24).forEach(make);
    document.querySelectorAll(".plot").forEach(function (c) { if (!c.plot) c.style.display = "none"; });
  });
  window.addEventListener("afterprint", function () {
    document.documentElement.classList.remove("paper");
    again();
    document.querySelectorAll(".plot").forEach(function (c) { c.style.display = ""; });
  });
  window.qosReport = { plots: function () { return plots; }, data: data, xs: xs };
})();
