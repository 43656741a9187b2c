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
  function make(card) {
    if (card.plot) return;
    var l = card.line, online = card.online, opts, series, rows;
    var time = { label: "time", value: function (u, v) { return v == null ? "" : clock(v, 2); } };
    var common = { width: Math.max(240, card.clientWidth - 22), height: 170, cursor: { sync: { key: "time" }, points: { size: 5 } } };
    if (online) {
      rows = [xs, full(l.p99), full(l.objective)];
      var pos = rows[1].concat(rows[2]).filter(function (v) { return v > 0; });
      var lo = Math.min.apply(null, pos.concat([100])), hi = Math.max.apply(null, pos.concat([1000]));
      series = [time, { label: "p99", stroke: style("--accent"), width: 1.4, value: function (u, v) { return wait(v); } },
        { label: "objective", stroke: style("--bad"), dash: [5, 4], width: 1, points: { show: false }, value: function (u, v) { return wait(v); } }];
      opts = { scales: { y: { distr: 3, range: [Math.pow(10, Math.floor(Math.log10(lo / 1.2))), Math.pow(10, Math.ceil(Math.log10(hi * 1.1)))] } }, axes: axes(function (u, v) { return v.map(function (x) { return x == null || Math.abs(Math.log10(x) - Math.round(Math.log10(x))) > 1e-6 ? "" : wait(x); }); }), hooks: { draw: [lane(l.level || "")] } };
    } else {
      rows = [xs, full(l.used), full(l.may)];
      series = [time, { label: "used", stroke: style("--accent"), width: 1.4, fill: style("--accent") + "22", value: function (u, v) { return v == null ? "" : v + " CPUs"; } },
        { label: "granted", stroke: style("--may"), width: 1.4, points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }), value: function (u, v) { return v == null ? "" : v + " CPUs"; } }];
      opts = { scales: { y: { range: function (u, a, b) { return [0, Math.max(1, b) * 1.08]; } } }, axes: axes(null, 44), hooks: { draw: [marks(byPod[l.pod] || [])] } };
    }
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
  function cards(where, lines, online) {
    var box = document.getElementById(where);
    lines.forEach(function (l) {
      var card = document.createElement("div"), h = document.createElement("h3");
      card.className = "plot"; h.textContent = l.pod; card.dataset.pod = l.pod;
      card.line = l; card.online = online;
      card.appendChild(h); box.appendChild(card);
      if (seen) seen.observe(card); else make(card);
    });
  }
  cards("onlinePlots", data.online || [], true);
  cards("offlinePlots", data.offline || [], false);

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
