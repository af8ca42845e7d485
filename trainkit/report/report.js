"use strict";
// Charts and the confusion matrix of a report. Nothing is fetched; data lie in the page as JSON.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const read = (id) => (byId(id) ? JSON.parse(byId(id).textContent) : null);
  const data = read("curve-data");
  const state = { smoothing: 0, x: "step", range: null };
  const charts = [];

  function make(kind, attributes, parent, text) {
    const isSvg = parent instanceof SVGElement || kind === "svg";
    const node = isSvg ? document.createElementNS(SVG, kind) : document.createElement(kind);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }

  function shown(value, unit) {
    if (value === null || value === undefined) return "none (NaN/Inf)";
    if (unit === "percent") return `${(100 * value).toFixed(2)} %`;
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  function ticks(low, high, count, log) {
    const found = [];
    if (log) {
      const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
      const parts = last - first > 2 ? [1] : [1, 2, 5];
      const every = Math.max(1, Math.ceil((last - first) / count));
      for (let power = first; power <= last; power += every)
        for (const part of parts) found.push(part * 10 ** power);
    } else {
      const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 2.5, 5, 10].find((each) => each * power >= rough) * power;
      for (let each = Math.ceil(low / step); each * step <= high; each++) found.push(each * step);
    }
    return found.filter((each) => each >= low && each <= high);
  }

  // exponential mean, corrected for its beginning, as in TensorBoard
  function smooth(values, weight) {
    let mean = 0, share = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      share = weight * share + 1 - weight;
      return mean / share;
    });
  }

  const perEpoch = (series) => data.runs[series.run].per_epoch;
  const places = (series, steps) => {
    const divisor = state.x === "epoch" && perEpoch(series) ? perEpoch(series) : 1;
    return steps.map((step) => step / divisor);
  };

  class Chart {
    constructor(holder, spec) {
      this.spec = spec;
      this.log = false;
      this.hidden = new Set();
      this.box = make("figure", { class: "chart", "data-chart": spec.name }, holder);
      const head = make("figcaption", {}, this.box);
      make("span", { class: "chart-title" }, head, spec.title);
      const button = make("button", { type: "button", class: "quiet", "aria-pressed": "false" }, head, "log");
      button.title = "logarithmic scale";
      button.addEventListener("click", () => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", String(this.log));
        this.draw();
      });
      this.legend = make("div", { class: "legend" }, this.box);
      this.plot = make("div", { class: "plot" }, this.box);
      this.tip = make("div", { class: "tip", hidden: "" }, this.plot);
      this.plot.addEventListener("pointermove", (event) => this.move(event));
      this.plot.addEventListener("pointerleave", () => this.leave());
      this.plot.addEventListener("pointerdown", (event) => this.begin(event));
      this.plot.addEventListener("pointerup", (event) => this.end(event));
      this.plot.addEventListener("dblclick", () => zoom(null));
      this.makeLegend();
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    get series() { return this.spec.series.filter((_, number) => !this.hidden.has(number)); }

    label(series) {
      const several = data.runs.length > 1, one = new Set(this.spec.series.map((each) => each.label)).size === 1;
      if (!several) return series.label;
      return one ? data.runs[series.run].name : `${data.runs[series.run].name}, ${series.label}`;
    }

    look(series) {
      const labels = [...new Set(this.spec.series.map((each) => each.label))];
      const kind = labels.indexOf(series.label);
      const several = data.runs.length > 1;
      return { color: `var(--series-${(several ? series.run : kind) % 8})`, dash: several && kind ? `${7 - kind} ${2 + kind}` : "" };
    }

    makeLegend() {
      if (this.spec.series.length < 2) return;
      this.spec.series.forEach((series, number) => {
        const { color, dash } = this.look(series);
        const key = make("button", { type: "button", class: "key" }, this.legend);
        const line = make("svg", { width: 18, height: 8, "aria-hidden": "true" }, key);
        make("line", { x1: 0, x2: 18, y1: 4, y2: 4, style: `stroke:${color}`, "stroke-width": 2.5, "stroke-dasharray": dash }, line);
        make("span", {}, key, this.label(series));
        key.addEventListener("click", () => {
          if (this.hidden.has(number)) this.hidden.delete(number); else this.hidden.add(number);
          key.classList.toggle("off", this.hidden.has(number));
          this.draw();
        });
      });
    }

    // the part of the data that is shown, and functions from values to pixels
    scale() {
      const width = this.plot.clientWidth, height = this.plot.clientHeight;
      const left = 58, right = width - 12, top = 10, bottom = height - 24;
      let xs = [], ys = [];
      for (const series of this.spec.series) xs = xs.concat(places(series, series.x));
      // a failure is of a step after the last row
      data.runs.forEach((run, number) => {
        xs = xs.concat(places({ run: number }, run.marks.map((mark) => mark.step)));
      });
      let [low, high] = state.range || [xs.reduce((a, b) => Math.min(a, b), Infinity), xs.reduce((a, b) => Math.max(a, b), -Infinity)];
      if (low === high) { low -= 0.5; high += 0.5; }
      for (const series of this.series) {
        const at = places(series, series.x);
        series.y.forEach((value, number) => {
          if (value !== null && at[number] >= low && at[number] <= high && (!this.log || value > 0)) ys.push(value);
        });
      }
      let bottomY = ys.reduce((a, b) => Math.min(a, b), Infinity), topY = ys.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!ys.length) { bottomY = this.log ? 0.1 : 0; topY = 1; }
      const f = this.log ? Math.log10 : (value) => value;
      let margin = 0.06 * (f(topY) - f(bottomY)) || (this.log ? 0.3 : Math.abs(topY) * 0.1 || 1);
      const from = f(bottomY) - margin, to = f(topY) + margin;
      return {
        width, height, left, right, top, bottom, low, high,
        lowY: this.log ? 10 ** from : from, highY: this.log ? 10 ** to : to,
        x: (value) => left + ((value - low) / (high - low)) * (right - left),
        y: (value) => bottom - ((f(value) - from) / (to - from)) * (bottom - top),
        back: (pixel) => low + ((pixel - left) / (right - left)) * (high - low),
      };
    }

    path(scale, at, values) {
      let text = "", begun = false;
      at.forEach((x, number) => {
        const value = values[number];
        if (value === null || (this.log && value <= 0)) { begun = false; return; }
        text += `${begun ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(value).toFixed(1)}`;
        begun = true;
      });
      return text;
    }

    draw() {
      if (!this.plot.clientWidth) return;
      const scale = (this.scaled = this.scale());
      if (this.svg) this.svg.remove();
      const svg = (this.svg = make("svg", { width: scale.width, height: scale.height, role: "img", "aria-label": this.spec.title }));
      this.plot.insertBefore(svg, this.tip);
      const clip = `clip-${this.spec.name}`.replace(/[^\w-]/g, "_");
      const area = { x: scale.left - 4, y: 0, width: Math.max(0, scale.right - scale.left + 8), height: scale.bottom + 1 };
      make("rect", area, make("clipPath", { id: clip }, make("defs", {}, svg)));
      for (const each of ticks(scale.lowY, scale.highY, 4, this.log)) {
        make("line", { class: "grid", x1: scale.left, x2: scale.right, y1: scale.y(each), y2: scale.y(each) }, svg);
        const text = this.spec.unit === "percent" ? `${Number((100 * each).toPrecision(4))} %` : shown(each, "number");
        make("text", { x: scale.left - 8, y: scale.y(each) + 4, "text-anchor": "end" }, svg, text);
      }
      for (const each of ticks(scale.low, scale.high, scale.width < 420 ? 4 : 6, false)) {
        const x = scale.x(each);
        const anchor = x > scale.right - 14 ? "end" : "middle";
        make("text", { x, y: scale.height - 6, "text-anchor": anchor }, svg, each.toLocaleString("en"));
      }
      make("line", { class: "axis", x1: scale.left, x2: scale.right, y1: scale.bottom, y2: scale.bottom }, svg);
      const inside = make("g", { "clip-path": `url(#${clip})` }, svg);
      this.drawMarks(scale, inside);
      for (const series of this.series) this.drawSeries(scale, inside, series);
      this.cross = make("line", { class: "cross", y1: scale.top, y2: scale.bottom, visibility: "hidden" }, svg);
      this.band = make("rect", { class: "band", y: scale.top, height: scale.bottom - scale.top, visibility: "hidden" }, svg);
    }

    drawSeries(scale, parent, series) {
      const { color, dash } = this.look(series), at = places(series, series.x);
      const weight = state.smoothing, style = `stroke:${color}`;
      make("path", { class: "raw" + (weight ? " faint" : ""), d: this.path(scale, at, series.y), style, "stroke-dasharray": dash }, parent);
      const few = at.filter((x) => x >= scale.low && x <= scale.high).length <= 60;
      at.forEach((x, number) => {
        const value = series.y[number];
        if (value === null) {
          const cross = make("text", { class: "gap", x: scale.x(x), y: scale.bottom - 4, "text-anchor": "middle" }, parent, "×");
          make("title", {}, cross, "NaN/Inf");
        } else if (few && (!this.log || value > 0)) {
          make("circle", { class: "point", cx: scale.x(x), cy: scale.y(value), r: 2.6, style: `fill:${color}` }, parent);
        }
      });
      if (weight) {
        const means = series.mean_y || series.y, where = places(series, series.mean_x || series.x);
        make("path", { class: "smooth", d: this.path(scale, where, smooth(means, weight)), style, "stroke-dasharray": dash }, parent);
      }
    }

    drawMarks(scale, parent) {
      this.marks = [];
      data.runs.forEach((run, number) => {
        for (const mark of run.marks) {
          const x = scale.x(places({ run: number }, [mark.step])[0]);
          const top = mark.kind === "skip" ? scale.bottom - 10 : scale.top;
          const own = data.runs.length > 1 && mark.kind === "best" ? `stroke:var(--series-${number % 8})` : "";
          make("line", { class: `mark ${mark.kind}`, x1: x, x2: x, y1: top, y2: scale.bottom, style: own }, parent);
          this.marks.push({ x, text: (data.runs.length > 1 ? `${run.name}: ` : "") + `step ${mark.step}: ${mark.text}` });
        }
      });
    }

    move(event) {
      const scale = this.scaled;
      if (!scale) return;
      const place = this.plot.getBoundingClientRect(), pixel = event.clientX - place.left;
      if (this.start !== undefined) {
        const [a, b] = [Math.min(pixel, this.start), Math.max(pixel, this.start)];
        this.band.setAttribute("x", a);
        this.band.setAttribute("width", b - a);
        this.band.setAttribute("visibility", b - a > 6 ? "visible" : "hidden");
      }
      const wanted = scale.back(Math.min(Math.max(pixel, scale.left), scale.right));
      const rows = [];
      let best = null;
      for (const series of this.series) {
        const at = places(series, series.x);
        let found = -1;
        at.forEach((x, number) => {
          if (x >= scale.low && x <= scale.high && (found < 0 || Math.abs(x - wanted) < Math.abs(at[found] - wanted))) found = number;
        });
        if (found < 0) continue;
        rows.push({ series, x: at[found], step: series.x[found], value: series.y[found] });
        if (best === null || Math.abs(at[found] - wanted) < Math.abs(best.x - wanted)) best = rows[rows.length - 1];
      }
      if (best === null) return this.leave();
      this.tip.replaceChildren();
      const epoch = perEpoch(best.series) ? `, epoch ${Number((best.step / perEpoch(best.series)).toPrecision(4))}` : "";
      make("div", { class: "tip-head" }, this.tip, `step ${best.step.toLocaleString("en")}${epoch}`);
      for (const row of rows) {
        const line = make("div", { class: "tip-row" }, this.tip);
        make("i", { style: `background:${this.look(row.series).color}` }, line);
        const other = row.step === best.step ? "" : ` (step ${row.step})`;
        make("span", {}, line, `${this.label(row.series)}${other}`);
        make("b", {}, line, shown(row.value, this.spec.unit));
      }
      for (const mark of this.marks) if (Math.abs(mark.x - pixel) < 7) make("div", { class: "tip-mark" }, this.tip, mark.text);
      this.tip.hidden = false;
      const x = scale.x(best.x), width = this.tip.offsetWidth;
      this.tip.style.left = `${Math.max(0, x + 14 + width > scale.width ? Math.min(x - width - 14, scale.width - width) : x + 14)}px`;
      this.tip.style.top = "8px";
      for (const chart of charts) chart.point(best.x);
    }

    point(x) {
      if (!this.cross || !this.scaled) return;
      const inside = x >= this.scaled.low && x <= this.scaled.high;
      this.cross.setAttribute("x1", this.scaled.x(x));
      this.cross.setAttribute("x2", this.scaled.x(x));
      this.cross.setAttribute("visibility", inside ? "visible" : "hidden");
    }

    leave() {
      this.tip.hidden = true;
      for (const chart of charts) if (chart.cross) chart.cross.setAttribute("visibility", "hidden");
    }

    begin(event) {
      if (event.button || !this.scaled) return;
      this.start = event.clientX - this.plot.getBoundingClientRect().left;
      this.plot.setPointerCapture(event.pointerId);
    }

    end(event) {
      if (this.start === undefined) return;
      const pixel = event.clientX - this.plot.getBoundingClientRect().left, start = this.start;
      this.start = undefined;
      if (Math.abs(pixel - start) > 8) {
        const ends = [start, pixel].map((each) => this.scaled.back(Math.min(Math.max(each, this.scaled.left), this.scaled.right)));
        zoom([Math.min(...ends), Math.max(...ends)]);
      }
    }
  }

  function zoom(range) {
    state.range = range;
    byId("reset-zoom").hidden = range === null;
    redraw();
  }

  function redraw() { for (const chart of charts) chart.draw(); }

  function tools() {
    const slider = byId("smoothing");
    slider.addEventListener("input", () => {
      state.smoothing = Number(slider.value);
      byId("smoothing-value").textContent = state.smoothing.toFixed(2);
      redraw();
    });
    byId("x-axis").addEventListener("change", (event) => { state.x = event.target.value; zoom(null); });
    byId("reset-zoom").addEventListener("click", () => zoom(null));
  }

  // a row for each true class; its colour says which share of the class was called what
  function confusion() {
    const given = read("confusion-data"), holder = byId("confusion");
    if (!given || !holder) return;
    const canvas = make("canvas", { role: "img", "aria-label": "confusion matrix" }, holder);
    const tip = make("div", { class: "tip", hidden: "" }, holder);
    const count = given.names.length, sums = given.matrix.map((row) => row.reduce((a, b) => a + b, 0));
    let side = 0, left = 0, top = 0;
    function paint() {
      const colors = {};  // of the theme, which only a computed style tells
      for (const name of ["cell", "accent", "bad", "muted", "text", "on-color"]) {
        canvas.style.color = `var(--${name})`;
        colors[name] = getComputedStyle(canvas).color;
      }
      const room = holder.clientWidth, brush = canvas.getContext("2d");
      if (!room) return;
      const size = 12;
      brush.font = `${size}px system-ui, sans-serif`;
      const longest = Math.min(room * 0.32, Math.max(...given.names.map((name) => brush.measureText(name).width)) + 14);
      side = Math.min(44, Math.max(3, Math.floor((room - longest) / count)));
      const named = side >= 11;
      left = named ? Math.ceil(longest) : 0;
      if (!named) side = Math.min(44, Math.max(2, Math.floor(room / count)));
      top = named ? Math.ceil(Math.min(longest, 110)) : 0;
      const width = left + side * count, height = top + side * count, ratio = window.devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      brush.setTransform(ratio, 0, 0, ratio, 0, 0);
      brush.font = `${size}px system-ui, sans-serif`;
      const cut = (name, most) => {
        if (brush.measureText(name).width <= most) return name;
        let text = name;
        while (text.length > 1 && brush.measureText(text + "…").width > most) text = text.slice(0, -1);
        return text + "…";
      };
      brush.textBaseline = "middle";
      brush.fillStyle = colors.muted;
      if (named) {
        given.names.forEach((name, number) => {
          brush.textAlign = "right";
          brush.fillText(cut(name, left - 10), left - 8, top + (number + 0.5) * side);
          brush.save();
          brush.translate(left + (number + 0.5) * side, top - 8);
          brush.rotate(-Math.PI / 2);
          brush.textAlign = "left";
          brush.fillText(cut(name, top - 10), 0, 0);
          brush.restore();
        });
      }
      const gap = side > 8 ? 1 : 0;
      given.matrix.forEach((row, right) => row.forEach((number, called) => {
        const share = sums[right] ? number / sums[right] : 0;
        const x = left + called * side, y = top + right * side;
        brush.globalAlpha = 1;
        brush.fillStyle = colors.cell;
        brush.fillRect(x, y, side - gap, side - gap);
        brush.globalAlpha = share ? 0.04 + 0.96 * share ** 0.6 : 0;
        brush.fillStyle = right === called ? colors.accent : colors.bad;
        brush.fillRect(x, y, side - gap, side - gap);
        if (side >= 26 && share >= 0.005) {
          brush.globalAlpha = 1;
          brush.fillStyle = share ** 0.6 > 0.55 ? colors["on-color"] : colors.text;
          brush.textAlign = "center";
          brush.font = "11px system-ui, sans-serif";
          brush.fillText(String(Math.round(100 * share)), x + (side - gap) / 2, y + (side - gap) / 2 + 1);
          brush.font = `${size}px system-ui, sans-serif`;
        }
      }));
      brush.globalAlpha = 1;
    }
    canvas.addEventListener("pointermove", (event) => {
      const place = canvas.getBoundingClientRect();
      const called = Math.floor((event.clientX - place.left - left) / side), right = Math.floor((event.clientY - place.top - top) / side);
      if (called < 0 || right < 0 || called >= count || right >= count) { tip.hidden = true; return; }
      const number = given.matrix[right][called], share = sums[right] ? (100 * number) / sums[right] : 0;
      tip.replaceChildren();
      make("div", { class: "tip-head" }, tip, `${given.names[right]} → ${given.names[called]}`);
      make("div", { class: "tip-row" }, tip, `${number.toLocaleString("en")} ${given.unit}, ${share.toFixed(1)} % of the class`);
      tip.hidden = false;
      const x = event.clientX - place.left, width = tip.offsetWidth;
      tip.style.left = `${Math.max(0, x + 14 + width > holder.clientWidth ? x - width - 14 : x + 14)}px`;
      tip.style.top = `${event.clientY - place.top + 14}px`;
    });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    new ResizeObserver(paint).observe(holder);
    themed.push(paint);
  }

  // a click on a column's head sorts a table by it
  function sorting() {
    for (const table of document.querySelectorAll("table.sorted")) {
      table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
        const head = button.closest("th"), column = head.cellIndex, body = table.tBodies[0];
        const rising = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
        const order = (a, b) => (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b));
        body.append(...[...body.rows].sort((a, b) => (rising ? order(a, b) : order(b, a))));
      }));
    }
  }

  const themed = [];
  function theme() {
    const root = document.documentElement, dark = window.matchMedia("(prefers-color-scheme: dark)");
    byId("theme").addEventListener("click", () => {
      const now = root.dataset.theme || (dark.matches ? "dark" : "light");
      root.dataset.theme = now === "dark" ? "light" : "dark";
      for (const paint of themed) paint();
    });
    dark.addEventListener("change", () => { for (const paint of themed) paint(); });
  }

  theme();
  sorting();
  confusion();
  if (data && byId("charts")) {
    for (const spec of data.charts) charts.push(new Chart(byId("charts"), spec));
    tools();
  }
  document.documentElement.dataset.ready = "";
})();
