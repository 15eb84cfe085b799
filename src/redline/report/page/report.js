"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const UNITS = {
    s: [[1e-9, " ns"], [1e-6, " µs"], [1e-3, " ms"], [1, " s"]],
    B: [[1, " B"], [1e3, " kB"], [1e6, " MB"], [1e9, " GB"], [1e12, " TB"]],
    flops: [[1, ""], [1e3, " k"], [1e6, " M"], [1e9, " G"], [1e12, " T"]],
  };

  // The shortest text for a tick: 0.5 ms, 20 ms, 1e-6.
  const tickText = (value, unit) => {
    if (value === 0) return "0";
    if (unit === "%") return `${+(100 * value).toPrecision(4)} %`;
    if (!UNITS[unit]) return value >= 0.01 && value < 1e4 ? String(+value.toPrecision(4)) : value.toExponential().replace("e+", "e");
    const fits = UNITS[unit].filter(([size]) => value >= size * 0.999);
    const [size, name] = fits.length ? fits[fits.length - 1] : UNITS[unit][0];
    return +(value / size).toPrecision(4) + name;
  };

  const make = (parent, tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };

  // A scale from values to pixels: log when all are positive and far apart, else linear.
  const scale = (values, from, to, { log, room = 0.08 } = {}) => {
    let low = Math.min(...values), high = Math.max(...values);
    log = log ?? (low > 0 && high / low > 8);
    if (log && high / low < 1.5) [low, high] = [low / 1.25, high * 1.25];
    if (!log && high - low < 0.2 * high) [low, high] = [low - 0.1 * high, high + 0.1 * high];
    if (low === high) high = low + 1; // all are zero
    const f = log ? Math.log10 : (x) => x;
    const margin = (f(high) - f(low)) * room;
    const [a, b] = [f(low) - margin, f(high) + margin];
    const at = (x) => from + ((f(x) - a) / (b - a)) * (to - from);
    at.ticks = log ? logTicks(10 ** a, 10 ** b) : linearTicks(a, b);
    at.low = log ? 10 ** a : a;
    at.high = log ? 10 ** b : b;
    return at;
  };
  const logTicks = (low, high) => {
    const span = Math.log10(high / low);
    if (span < 0.8) return linearTicks(low, high);
    const steps = span > 3.5 ? [1] : span > 1.6 ? [1, 3] : [1, 2, 5];
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const step of steps) {
        const value = Number(`${step}e${power}`);
        if (value >= low && value <= high) found.push(value);
      }
    return found;
  };
  const linearTicks = (low, high) => {
    const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
    return found;
  };

  const draw = (figure, height, label) => {
    const canvas = figure.querySelector(".canvas");
    const width = Math.max(260, canvas.clientWidth);
    canvas.replaceChildren();
    figure.querySelector(".tip").hidden = true;
    const svg = make(canvas, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label });
    svg.style.maxWidth = "100%";
    const narrow = width < 500;
    const box = { left: narrow ? 54 : 72, right: width - 16, top: 22, bottom: height - 40, width, narrow };
    return { svg, box };
  };

  const axes = (svg, box, x, y, xUnit, yUnit, xTitle, yTitle) => {
    let last = -Infinity;
    for (const tick of x.ticks) {
      make(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom });
      const text = tickText(tick, xUnit), half = text.length * 3.6;
      if (x(tick) - half < last + 6 || x(tick) + half > box.width) continue;
      last = x(tick) + half;
      make(svg, "text", { x: x(tick), y: box.bottom + 16, "text-anchor": "middle" }, text);
    }
    let lowest = Infinity;
    for (const tick of y.ticks) {
      make(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) });
      if (y(tick) > lowest - 14) continue;
      lowest = y(tick);
      make(svg, "text", { x: box.left - 8, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick, yUnit));
    }
    make(svg, "text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, xTitle);
    make(svg, "text", { x: 0, y: 12 }, yTitle);
  };

  const addPoint = (svg, point, cx, cy, span) => {
    const group = make(svg, "g", {
      class: `point k${point.colour}${point.winner ? " winner" : ""}`, tabindex: 0, role: "img",
      "aria-label": point.tip.replaceAll("\n", ", "), "data-id": point.id,
    });
    if (span) make(group, "line", { class: "error", x1: span[0], x2: span[1], y1: cy, y2: cy });
    make(group, "circle", { class: "ring", cx, cy, r: 10 });
    make(group, "path", { class: "mark", d: data.shapes[point.colour], transform: `translate(${cx} ${cy})` });
    return { group, point, cx, cy };
  };

  // One tip for the figure: the pointer shows the nearest point, the keyboard the one in focus.
  const addTips = (figure, svg, box, marks) => {
    const tip = figure.querySelector(".tip");
    const show = ({ point, cx, cy }) => {
      tip.textContent = point.tip;
      tip.hidden = false;
      const left = Math.min(Math.max(cx - tip.offsetWidth / 2, 0), Math.max(0, box.width - tip.offsetWidth));
      const above = cy - tip.offsetHeight - 16;
      tip.style.left = `${left}px`;
      tip.style.top = `${above > -40 ? above : cy + 18}px`;
    };
    const hide = () => { tip.hidden = true; };
    const pick = (event) => {
      const corner = svg.getBoundingClientRect();
      const far = ({ cx, cy }) => Math.hypot(event.clientX - corner.left - cx, event.clientY - corner.top - cy);
      const nearest = marks.reduce((one, other) => (far(other) < far(one) ? other : one));
      if (far(nearest) < 28) show(nearest);
      else hide();
    };
    svg.addEventListener("pointermove", pick);
    svg.addEventListener("click", pick);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    for (const mark of marks) {
      mark.group.addEventListener("focus", () => show(mark));
      mark.group.addEventListener("blur", hide);
      mark.group.addEventListener("keydown", (event) => event.key === "Escape" && hide());
    }
  };

  // Put a name beside each point where it covers nothing; the winner is placed first.
  const addNames = (svg, box, places) => {
    const taken = places.map(({ from, to, cy }) => [from - 2, cy - 8, to + 2, cy + 8]);
    const clear = (a) => a[0] >= box.left && a[2] <= box.width && a[1] >= box.top - 10 && a[3] <= box.bottom + 4
      && !taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
    const order = [...places].sort((a, b) => b.point.winner - a.point.winner);
    for (const { point, cx, cy, from, to } of order) {
      const name = point.id.length > 34 ? point.id.slice(0, 33) + "…" : point.id;
      const w = name.length * (point.winner ? 7 : 6.4);
      const spots = [[to + 5, cy + 4, "start"], [from - 5, cy + 4, "end"]];
      for (const anchor of ["middle", "start", "end"]) spots.push([cx, cy - 14, anchor], [cx, cy + 24, anchor]);
      for (const [x, y, anchor] of spots) {
        const left = anchor === "start" ? x : anchor === "end" ? x - w : x - w / 2;
        const area = [left, y - 11, left + w, y + 3];
        if (!clear(area)) continue;
        taken.push(area);
        make(svg, "text", { class: point.winner ? "name winner" : "name", x, y, "text-anchor": anchor }, name);
        break;
      }
    }
  };

  const drawPlot = (figure, key) => {
    const axis = data.axes.find((one) => one.key === key);
    const points = data.points.filter((point) => point[key] !== null);
    const absent = data.points.length - points.length;
    figure.querySelector(".left-out").textContent = absent ? `not shown: ${absent} without ${axis.label}` : "";
    const { svg, box } = draw(figure, 380, `Latency against ${axis.label}`);
    const x = scale(points.flatMap((point) => [point.low, point.high]), box.left + 10, box.right - 10, { log: true });
    const y = scale(points.map((point) => point[key]), box.bottom - 8, box.top + 10);
    axes(svg, box, x, y, "s", axis.unit, "latency →", `${axis.label} ${axis.more ? "(more is better)" : ""} ↑`);
    const sign = axis.more ? -1 : 1;
    const front = [];
    for (const point of [...points].sort((a, b) => a.latency - b.latency || sign * (a[key] - b[key])))
      if (!front.length || sign * point[key] < sign * front[front.length - 1][key]) front.push(point);
    const path = front.map((point, i) => (i ? `H${x(point.latency)}V${y(point[key])}` : `M${x(point.latency)} ${y(point[key])}`));
    make(svg, "path", { class: "front", d: path.join("") });
    const places = points.map((point) => {
      const cx = x(point.latency), reach = point.winner ? 11 : 8; // its mark, or its interval if wider
      return { point, cx, cy: y(point[key]), from: Math.min(cx - reach, x(point.low)), to: Math.max(cx + reach, x(point.high)) };
    });
    addNames(svg, box, places);
    places.sort((a, b) => a.point.winner - b.point.winner); // the winner is drawn over the others
    addTips(figure, svg, box, places.map(({ point, cx, cy }) => addPoint(svg, point, cx, cy, [x(point.low), x(point.high)])));
  };

  const drawRoof = (figure, roof) => {
    const { svg, box } = draw(figure, 340, "Roofline: arithmetic rate against arithmetic intensity");
    const ridge = roof.peak / roof.bandwidth;
    const rates = data.points.map((point) => roof.flops / point.latency);
    const x = scale([Math.min(roof.intensity, ridge) / 6, Math.max(roof.intensity, ridge) * 6], box.left, box.right, { log: true });
    const floor = Math.min(...rates, roof.bandwidth * Math.min(roof.intensity, ridge)) / 3;
    const y = scale([floor, Math.max(roof.peak, ...rates) * 1.6], box.bottom, box.top, { log: true, room: 0 });
    axes(svg, box, x, y, "", "flops", "FLOP per byte →", "FLOP/s ↑");
    const start = Math.max(x.low, y.low / roof.bandwidth);
    make(svg, "path", { class: "roof", d: `M${x(start)} ${y(start * roof.bandwidth)}L${x(ridge)} ${y(roof.peak)}H${box.right}` });
    make(svg, "text", { class: "rooftext", x: box.right, y: y(roof.peak) - 8, "text-anchor": "end" }, roof.peakText);
    const middle = Math.sqrt(start * ridge), rise = y(ridge * roof.bandwidth) - y(start * roof.bandwidth);
    const angle = (Math.atan2(rise, x(ridge) - x(start)) * 180) / Math.PI;
    make(svg, "text", { class: "rooftext", "text-anchor": "middle",
      transform: `translate(${x(middle)} ${y(middle * roof.bandwidth) - 9}) rotate(${angle})` }, roof.bandwidthText);
    const top = Math.min(roof.peak, roof.bandwidth * roof.intensity);
    const cx = x(roof.intensity);
    if (roof.attained) {
      const cy = y(roof.attained);
      make(svg, "line", { class: "gap", x1: cx, x2: cx, y1: y(top), y2: cy });
      const left = cx + 16 + roof.share.length * 7 > box.width;
      make(svg, "text", { class: "name winner", x: cx + (left ? -16 : 16), y: (y(top) + cy) / 2 + 4, "text-anchor": left ? "end" : "start" }, roof.share);
    }
    const order = [...data.points].sort((a, b) => a.winner - b.winner);
    addTips(figure, svg, box, order.map((point) => addPoint(svg, point, cx, y(roof.flops / point.latency))));
  };

  const sortTable = (table, index, direction) => {
    const body = table.tBodies[0];
    const value = (row) => row.cells[index].dataset.value;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const [one, two] = [value(a), value(b)];
      if (one === "" || two === "") return (one === "") - (two === ""); // the unknown stay last
      const gap = Number(one) - Number(two);
      return sign * (Number.isNaN(gap) ? one.localeCompare(two) : gap);
    });
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((head, i) =>
      i === index ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
  };

  const table = document.getElementById("candidates");
  if (table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.firstElementChild.addEventListener("click", () =>
      sortTable(table, index, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending")));
    document.getElementById("sorter").addEventListener("change", (event) => sortTable(table, Number(event.target.value), "ascending"));
  }

  const plot = document.getElementById("plot"), roof = document.getElementById("roof");
  const radios = [...document.querySelectorAll("[data-axis]")];
  let chosen = radios.length ? radios[0].dataset.axis : null;
  const choose = (radio, focus) => {
    chosen = radio.dataset.axis;
    for (const one of radios) {
      one.setAttribute("aria-checked", String(one === radio));
      one.tabIndex = one === radio ? 0 : -1;
    }
    if (focus) radio.focus();
    drawPlot(plot, chosen);
  };
  radios.forEach((radio, i) => {
    radio.addEventListener("click", () => choose(radio, false));
    radio.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(radios[(i + step + radios.length) % radios.length], true);
    });
  });

  const widths = new Map();
  const redraw = (figure) => {
    if (figure === plot) drawPlot(plot, chosen);
    else drawRoof(roof, data.roof);
  };
  const watcher = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      if (widths.get(target) === contentRect.width) continue; // drawing changes the height only
      widths.set(target, contentRect.width);
      redraw(target);
    }
  });
  for (const figure of [plot, roof]) if (figure) watcher.observe(figure);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
