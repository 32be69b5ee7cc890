"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children.filter((child) => child != null));
    return node;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ------------------------------------------------------------------ numbers
  const number = (v) => {
    if (v == null) return "-";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return v.toExponential(2).replace(/\.?0*e\+?/, "e");
    return size >= 1000 ? Math.round(v).toLocaleString("en-US") : String(+v.toPrecision(4));
  };
  const shows = {
    number,
    percent: (v) => (v == null ? "-" : (100 * v).toFixed(1) + "%"),
    seconds: (v) => (v == null ? "-" : (v < 0.001 ? 0 : +v.toPrecision(3)) + " s"),
  };
  const chance = (p) => (p > 0 && p < 0.0005 ? "<0.1%" : shows.percent(p));
  const tick = { ...shows, percent: (v) => +(100 * v).toFixed(1) + "%", seconds: number };

  // ------------------------------------------------------------------ charts
  const smoothed = (column, weight) => {
    if (!weight) return column;
    let mean = 0, seen = 0; // debiased exponential mean, so the first points are not pulled to zero
    return column.map((v) => {
      if (v == null) return null;
      mean = weight * mean + (1 - weight) * v;
      seen = weight * seen + (1 - weight);
      return mean / seen;
    });
  };
  const latest = (column) => column.findLast((v) => v != null);
  const stacked = (columns) => {
    const total = columns[0].map(() => 0);
    return columns.map((column) => column.map((v, i) => (total[i] += v ?? 0)));
  };
  const HEIGHT = 222, FONT = "12px system-ui, sans-serif";
  const STEPS = { label: "optimizer step", labelFont: FONT, labelSize: 18, labelGap: 0, size: 24, gap: 4 }; // the x axis
  const sync = uPlot.sync("step");
  const settings = () => ({ smooth: +($("smooth")?.value ?? 0), log: !!$("log")?.checked });

  function plot(chart, holder, section) {
    const { smooth, log } = section === "curves" ? settings() : { smooth: 0, log: false };
    const [steps, ...raw] = chart.columns;
    const stack = chart.form === "stack";
    const positive = raw.every((column) => column.every((v) => v == null || v > 0));
    const curves = stack ? stacked(raw) : raw.map((c, i) => (chart.dots[i] ? c : smoothed(c, smooth)));
    const ghosts = smooth && !stack ? raw.flatMap((c, i) => (chart.dots[i] ? [] : [[c, i]])) : [];
    const show = shows[chart.show];
    const order = curves.map((_, i) => (stack ? curves.length - 1 - i : i)); // the top of a stack is drawn first
    const nth = (i) => chart.dots.slice(0, i).filter(Boolean).length; // of the dotted lines
    const colour = (i) => css(chart.dots[i] && !chart.colours ? ["--held-out", "--own"][nth(i) % 2] : `--c${(chart.colours?.[i] ?? i) % 5}`);
    const series = order.map((i) => ({
      label: chart.labels[i],
      stroke: colour(i),
      width: chart.dots[i] ? 1.2 : 1.8,
      dash: chart.dots[i] ? (nth(i) % 2 && !chart.colours ? [2, 3] : [5, 4]) : undefined,
      fill: stack ? colour(i) : undefined,
      points: { show: chart.dots[i] || steps.length < 3, size: 6, fill: colour(i) },
      spanGaps: true,
      value: (u, v, si, idx) => show(u.cursor.idx != null ? (stack ? raw : curves)[i][idx] : latest(stack ? raw[i] : curves[i])),
    }));
    const faint = ghosts.map(([, i]) => ({ stroke: colour(i) + "55", width: 1, spanGaps: true, points: { show: false }, label: "", class: "ghost" }));
    const soft = css("--soft"), line = css("--line");
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: FONT };
    const last = steps.length - 1; // the legend shows the latest values while nothing is pointed at
    const options = {
      width: Math.max(holder.clientWidth, 200), height: HEIGHT, padding: [10, 14, 0, 0],
      scales: {
        x: { time: false, range: (u, low, high) => (low === high ? [low, low + 1] : [low, high]) },
        y: log && positive && !stack ? { distr: 3 } : { range: (u, low, high) => range(low, high, chart, stack) },
      },
      axes: [
        { ...axis, ...STEPS, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6], values: (u, at) => at.map(number) },
        { ...axis, size: 52, gap: 4, values: (u, at) => at.map((v) => (v == null ? "" : tick[chart.show](v))) },
      ],
      series: [{ label: "step", value: (u, v) => number(v) }, ...series, ...faint],
      legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke(u, i) } },
      cursor: { sync: { key: sync.key, scales: ["x", null] }, points: { size: 7 }, y: false },
      hooks: { setCursor: [(u) => { if (u.cursor.idx == null) u.setLegend({ idx: last }); }] },
    };
    const u = new uPlot(options, [steps, ...order.map((i) => curves[i]), ...ghosts.map(([c]) => c)], holder);
    u.root.querySelectorAll(".u-legend .ghost, .u-legend .u-series:nth-child(n + " + (series.length + 2) + ")").forEach((row) => row.remove());
    u.setLegend({ idx: last });
    return u;
  }
  function range(low, high, chart, stack) {
    if (low == null) return [0, 1];
    if (stack) return [0, high * 1.06 || 1];
    if (chart.show === "percent" && high - low < 0.02) return [0, 1]; // a flat share says where it is, not how it trembles
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    const floor = low >= 0 && low - room < (high - low) * 0.35 ? 0 : low - room; // start at zero where that costs little
    return [floor, chart.show === "percent" ? Math.min(high + room, 1) || 1 : high + room];
  }

  // A column of cells a logged step; the lines are quantiles, counted in bins
  function plotMap(map, holder) {
    const bins = map.counts[0].length, total = map.counts.map((c) => c.reduce((a, b) => a + b, 0) || 1);
    const most = Math.max(...map.counts.map((c, x) => Math.max(...c) / total[x]));
    const heat = css("--heat"), soft = css("--soft"), ink = css("--ink");
    const value = (at) => { // a place in bins back in the measure's unit
      if (at == null) return "-";
      const i = Math.min(Math.floor(at), bins - 1), low = map.edges[i], high = map.edges[i + 1] ?? low;
      return number(+(low + (at - i) * (high - low)).toPrecision(3));
    };
    const steps = map.steps, middle = (x) => (x <= 0 ? steps[0] - (steps[1] - steps[0]) : steps[x - 1]);
    const cells = (u) => {
      const { ctx } = u;
      ctx.save();
      map.counts.forEach((column, x) => {
        const left = u.valToPos(middle(x), "x", true), right = u.valToPos(steps[x], "x", true);
        column.forEach((count, y) => {
          if (!count) return;
          ctx.fillStyle = `rgba(${heat}, ${(0.06 + 0.74 * Math.sqrt(count / total[x] / most)).toFixed(3)})`;
          const top = u.valToPos(y + 1, "y", true), bottom = u.valToPos(y, "y", true);
          ctx.fillRect(left, top, right - left + 0.5, bottom - top);
        });
      });
      ctx.restore();
    };
    const axis = { stroke: soft, ticks: { show: false }, grid: { show: false }, font: FONT };
    const every = Math.ceil(bins / 8), last = steps.length - 1;
    const lines = [["10%", 1, [3, 3]], ["median", 2, undefined], ["90%", 1, [3, 3]]];
    const u = new uPlot({
      width: Math.max(holder.clientWidth, 200), height: HEIGHT, padding: [10, 14, 0, 0],
      scales: { x: { time: false, range: () => [middle(0), steps[last]] }, y: { range: () => [0, bins] } },
      axes: [
        { ...axis, ...STEPS, values: (u, at) => at.map((v) => (Number.isInteger(v) ? number(v) : "")) },
        { ...axis, size: 52, gap: 4, splits: () => map.edges.map((_, i) => i).filter((i) => i % every === 0), values: (u, at) => at.map((i) => number(+map.edges[i].toPrecision(2))) },
      ],
      series: [{ label: "step", value: (u, v) => number(v) }, ...lines.map(([label, width, dash]) => ({ label, width, dash, stroke: ink, points: { show: false }, value: (u, v, si, idx) => value(u.cursor.idx != null ? v : u.data[si][last]) }))],
      legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke(u, i) } },
      cursor: { sync: { key: sync.key, scales: ["x", null] }, points: { size: 6 }, y: false },
      hooks: { drawClear: [cells], setCursor: [(u) => { if (u.cursor.idx == null) u.setLegend({ idx: last }); }] },
    }, [steps, ...map.quantiles], holder);
    u.setLegend({ idx: last });
    return u;
  }

  const drawn = new Map();
  const redraw = [];
  function figure(section, chart, form, paint) {
    const holder = make("div");
    section.append(make("figure", { className: "chart " + form }, make("figcaption", {}, chart.title, chart.unit ? make("small", { textContent: chart.unit }) : null), holder));
    const again = () => {
      if (!holder.clientWidth) return;
      drawn.get(holder)?.destroy();
      drawn.set(holder, paint(chart, holder));
    };
    redraw.push(again);
    let width = 0; // drawn when first laid out (a closed <details> has no width), resized later
    const fit = () => {
      if (holder.clientWidth === width) return;
      width = holder.clientWidth;
      if (!drawn.has(holder)) again();
      else if (width) drawn.get(holder).setSize({ width, height: HEIGHT });
    };
    new ResizeObserver(() => requestAnimationFrame(fit)).observe(holder);
  }
  for (const section of document.querySelectorAll("[data-section]")) {
    const name = section.dataset.section;
    for (const chart of data.charts[name]) figure(section, chart, chart.form, (c, holder) => plot(c, holder, name));
  }
  for (const section of document.querySelectorAll("[data-maps]"))
    for (const map of data.maps) figure(section, map, "map", plotMap);
  const all = () => redraw.forEach((again) => again());
  $("smooth")?.addEventListener("input", all);
  $("log")?.addEventListener("change", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);

  // ------------------------------------------------------------------ completions
  const strength = (d) => (d == null ? 0 : 0.78 * Math.sqrt(Math.min(Math.abs(d) / data.strongest, 1)));
  const visible = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "(empty)";

  const start = (row) => row.asked.trim() || row.prompt.trim().split("\n").pop() || row.tokens.join("").trim().slice(0, 200);

  function body(row) {
    const text = make("div", { className: "text" });
    row.tokens.forEach((token, i) => {
      const special = /^<\|?[^<>\s]+\|?>$/.test(token);
      const span = make("span", { textContent: token.replace(/\n/g, "↵\n"), className: special ? "special" : "" });
      const v = row[data.coloured]?.[i], alpha = strength(v);
      const hue = data.coloured !== "advantage" ? "--heat" : v > 0 ? "--up" : "--down";
      if (alpha > 0.02) span.style.backgroundColor = `rgba(var(${hue}), ${alpha.toFixed(3)})`;
      span.dataset.i = i;
      text.append(span);
    });
    text.row = row;
    const where = [row.dataset, row.origin].filter(Boolean).join(" · ");
    return make("div", { className: "body" }, row.prompt.trim() !== start(row) ? make("p", { className: "asked", textContent: row.prompt }) : null, text,
      where ? make("p", { className: "where", textContent: where }) : null);
  }
  function card(row, open) {
    const source = { student: "student's own", dataset: "from the dataset" }[row.source] ?? row.source;
    const facts = [`step ${number(row.step)}`, source, `${number(row.tokens.length)} tokens`, row.mean && `mean ${row.mean}`, row.truncated && "cut off"];
    const details = make("details", { className: "completion", open },
      make("summary", {}, make("span", { className: "start", textContent: start(row) }), make("small", { textContent: facts.filter(Boolean).join(" · ") })));
    details.dataset.source = row.source;
    const fill = () => details.open && !details.querySelector(".body") && details.append(body(row));
    details.addEventListener("toggle", fill);
    fill();
    return details;
  }
  const list = $("completions");
  if (list) {
    const high = number(+data.strongest.toPrecision(2));
    $("scale-high").textContent = "≥ " + high;
    if (data.coloured === "advantage") $("scale-low").textContent = "≤ -" + high;
    const rows = [...data.completions].sort((a, b) => (b.step ?? 0) - (a.step ?? 0)); // the newest first
    const cards = rows.map((row, i) => card(row, i < 3));
    const sources = [...new Set(rows.map((row) => row.source))];
    const button = (value, textContent, onclick) => make("button", { type: "button", value, textContent, onclick });
    let chosen = "all", shown = 8;
    const more = button("more", "", () => { shown = Infinity; relist(); });
    const relist = () => {
      const wanted = cards.filter((node) => chosen === "all" || node.dataset.source === chosen);
      list.replaceChildren(...wanted.slice(0, shown), ...(wanted.length > shown ? [more] : []));
      more.textContent = `Show ${wanted.length - shown} more`;
      $("filter").childNodes.forEach((b) => b.setAttribute("aria-pressed", b.value === chosen));
    };
    if (sources.length > 1)
      $("filter").append(...["all", ...sources].map((s) => button(s, s, () => { chosen = s; relist(); })));
    relist();
    // what each side would rather have said, likeliest first; the token that stands there is marked
    const favourites = (row, i) => {
      const sides = [["teacher would say", row.teacher_top?.[i]], ["student would say", row.student_top?.[i]]].filter(([, top]) => top?.length);
      return sides.length ? make("div", { className: "tops" }, ...sides.map(([label, top]) => make("div", {}, make("small", { textContent: label }),
        ...top.map(([token, p]) => {
          const line = make("span", { className: token === row.tokens[i] ? "here" : "" }, make("b", { textContent: visible(token) }), make("i", { textContent: chance(p) }));
          line.style.backgroundSize = `${(100 * p).toFixed(1)}% 100%`;
          return line;
        })))) : "";
    };
    const tip = $("tip");
    let on = null;
    const hide = () => { tip.hidden = true; on?.classList.remove("on"); on = null; };
    const point = (event) => {
      const span = event.target.closest?.(".text > span");
      if (!span) return hide();
      if (span === on) return;
      hide();
      const row = span.parentNode.row, i = +span.dataset.i, table = make("table");
      const entry = (label, v, probability) => v != null && table.append(make("tr", {}, make("th", { textContent: label }), make("td", { textContent: number(v) }),
        make("td", { className: "p", textContent: probability ? chance(Math.exp(v)) : "" })));
      entry("divergence", row.divergence?.[i]);
      entry("advantage", row.advantage?.[i]);
      entry("log-ratio", row.logratio?.[i]);
      entry("log p, teacher", row.teacher_logp?.[i], true);
      entry("log p, student", row.student_logp?.[i], true);
      if (!table.rows.length) table.append(make("tr", {}, make("th", { textContent: "not a training target" })));
      tip.replaceChildren(make("code", { textContent: visible(row.tokens[i]) }), make("small", { textContent: `token ${i + 1} of ${row.tokens.length}` }), table, favourites(row, i));
      tip.hidden = false;
      (on = span).classList.add("on");
      const box = span.getClientRects()[0], me = tip.getBoundingClientRect();
      const below = box.bottom + me.height + 14 < innerHeight;
      tip.style.left = Math.max(6, Math.min(box.left, innerWidth - me.width - 6)) + "px";
      tip.style.top = (below ? box.bottom + 6 : Math.max(6, box.top - me.height - 6)) + "px";
    };
    list.addEventListener("mouseover", point);
    list.addEventListener("mouseleave", hide);
    document.addEventListener("click", point);
    addEventListener("scroll", hide, { passive: true, capture: true });
  }

  // ------------------------------------------------------------------ contents
  const parts = [...document.querySelectorAll("main > section > h2, main > .fold > summary")];
  if (parts.length > 1) {
    const row = make("div"), links = new Map();
    for (const part of parts) {
      const textContent = part.dataset.short || part.firstChild.textContent.trim(), place = part.parentElement;
      place.id = textContent.toLowerCase().replace(/[^a-z]+/g, "-");
      const onclick = () => { if (place.matches("details")) place.open = true; };
      links.set(place, make("a", { href: "#" + place.id, textContent, onclick }));
    }
    row.append(...links.values());
    const nav = make("nav", { className: "toc" }, row);
    nav.setAttribute("aria-label", "On this page");
    document.querySelector("main").prepend(nav);
    const mark = () => { // the last part whose beginning is above the upper third of the window
      const here = [...links].findLast(([place]) => place.getBoundingClientRect().top < innerHeight / 3)?.[1];
      if (here?.hasAttribute("aria-current")) return;
      for (const link of links.values()) link.toggleAttribute("aria-current", link === here);
      row.scrollTo({ left: here ? here.offsetLeft - (row.clientWidth - here.offsetWidth) / 2 : 0 });
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }
  document.documentElement.dataset.ready = "yes";
})();
