"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg", KEPT = 120, WINDOW = 10, SHOWN = 4096;
  const find = (id) => document.getElementById(id);
  const state = { history: [], chosen: "", metadata: null, key: "", busy: false, turn: 0 };

  const element = (tag, text = "", kind = "") => {
    const node = document.createElement(tag);
    if (text !== "") node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const drawn = (parent, tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
  };

  const seconds = (value) => {
    if (value === null || !Number.isFinite(value)) return "–";
    const [size, unit] = value < 1e-3 ? [1e-6, "µs"] : value < 1 ? [1e-3, "ms"] : [1, "s"];
    return `${+(value / size).toPrecision(3)} ${unit}`;
  };
  const rate = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(2)));
  const bytes = (value) => (value < 1e9 ? `${Math.round(value / 1e6)} MB` : `${(value / 1e9).toFixed(1)} GB`);

  const headers = (more = {}) => (state.key ? { ...more, "X-API-Key": state.key } : more);

  // Percentile of counts by upper bounds, even within a bucket; null for no request.
  const quantile = (bounds, counts, share) => {
    const all = counts.reduce((sum, one) => sum + one, 0);
    if (!all) return null;
    let seen = 0, low = 0;
    for (let index = 0; index < bounds.length; index++) {
      if (counts[index] && seen + counts[index] >= share * all)
        return low + (bounds[index] - low) * (share * all - seen) / counts[index];
      seen += counts[index];
      low = bounds[index];
    }
    return bounds[bounds.length - 1];
  };

  // What happened between two polls: per version and in all.
  const between = (now, then) => {
    const found = {}, all = { rate: 0, latency: now.bounds.map(() => 0).concat(0), failed: 0, pending: 0 };
    const time = Math.max(0.001, now.at - then.at);
    for (const [key, row] of Object.entries(now.counted)) {
      const old = then.counted[key];
      // Counts that went down belong to a model that was loaded anew.
      const fresh = !old || old.success > row.success;
      const latency = row.latency.map((count, index) => count - (fresh ? 0 : old.latency[index]));
      const done = row.success - (fresh ? 0 : old.success);
      found[key] = {
        rate: done / time, p50: quantile(now.bounds, latency, 0.5), p99: quantile(now.bounds, latency, 0.99), row,
      };
      all.rate += done / time;
      all.failed += row.failure;
      all.pending += row.pending;
      latency.forEach((count, index) => { all.latency[index] += count; });
    }
    all.p50 = quantile(now.bounds, all.latency, 0.5);
    all.p99 = quantile(now.bounds, all.latency, 0.99);
    return { found, all };
  };

  const poll = async () => {
    try {
      const response = await fetch("/page/state", { headers: headers() });
      if (response.status === 401) {
        find("keyform").hidden = false;
        health("key needed", "mild");
        return;
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      const now = await response.json();
      find("keyform").hidden = true;
      now.at = performance.now() / 1000;
      state.history.push(now);
      if (state.history.length > KEPT + WINDOW) state.history.shift();
      show(now);
    } catch (error) {
      health("not reachable", "bad");
    }
  };

  const health = (text, tone) => {
    const node = find("health");
    node.textContent = text;
    node.className = `badge ${tone}`;
  };

  const show = (now) => {
    health(now.ready ? "ready" : now.live ? "live, not ready" : "not live", now.ready ? "good" : "bad");
    find("version").textContent = `${now.server.name} ${now.server.version}`;
    const last = state.history[state.history.length - 2] ?? now;
    const { all } = between(now, last);
    const wide = between(now, state.history[Math.max(0, state.history.length - 1 - WINDOW)]);
    now.point = { rate: all.rate, p50: all.p50, p99: all.p99 };
    find("rate").textContent = rate(wide.all.rate);
    find("p50").textContent = seconds(wide.all.p50);
    find("p99").textContent = seconds(wide.all.p99);
    find("failed").textContent = wide.all.failed.toLocaleString("en");
    find("pending").textContent = wide.all.pending.toLocaleString("en");
    find("memory").textContent = bytes(now.memory);
    table(now, wide.found);
    choices(now);
    const points = state.history.filter((one) => one.point).slice(-KEPT);
    chart(find("throughput"), points, [["rate", "k1"]], rate);
    chart(find("latency"), points, [["p50", "k1"], ["p99", "k2"]], seconds);
  };

  const table = (now, found) => {
    const rows = now.models.map((model) => {
      const row = element("tr"), name = element("th", model.name), cell = element("td");
      name.scope = "row";
      const text = model.state || "UNAVAILABLE";
      cell.append(element("span", text.toLowerCase(), `badge ${text === "READY" ? "good" : text === "LOADING" ? "mild" : "bad"}`));
      if (model.reason && text !== "READY") cell.append(element("span", model.reason, "why"));
      row.append(name, element("td", model.version ?? ""), cell);
      const of = found[`${model.name}/${model.version}`];
      const cells = of
        ? [rate(of.rate), seconds(of.p50), seconds(of.p99), of.row.success.toLocaleString("en"), of.row.failure.toLocaleString("en"),
          of.row.runs ? String(+(of.row.rows / of.row.runs).toPrecision(3)) : "–"]
        : Array(6).fill("–");
      row.append(...cells.map((one) => element("td", one, "num")));
      return row;
    });
    find("models").replaceChildren(...rows);
    find("none").hidden = rows.length > 0;
  };

  // The next 1, 2, 4, 6, 8 or 10 times a power of ten: half of it is a short number too.
  const rounded = (value) => {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    return power * ([1, 2, 4, 6, 8].find((step) => value <= step * power) || 10);
  };

  const chart = (svg, points, series, text) => {
    const width = svg.clientWidth || 400, height = 150, left = 58, bottom = 18, top = 10;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const values = points.flatMap((one) => series.map(([name]) => one.point[name])).filter((value) => value !== null);
    const high = rounded(Math.max(...values, 0) * 1.05);
    const end = points[points.length - 1].at;
    const x = (at) => left + (width - left - 6) * (1 - (end - at) / KEPT);
    const y = (value) => top + (height - top - bottom) * (1 - value / high);
    for (const share of [0, 0.5, 1]) {
      drawn(svg, "line", { class: "grid", x1: left, x2: width, y1: y(high * share), y2: y(high * share) });
      drawn(svg, "text", { x: left - 6, y: y(high * share) + 4, "text-anchor": "end" }, values.length ? text(high * share) : "");
    }
    drawn(svg, "text", { x: left, y: height - 2 }, "2 min ago");
    drawn(svg, "text", { x: width - 2, y: height - 2, "text-anchor": "end" }, "now");
    for (const [name, kind] of series) {
      let path = "", joined = false;
      for (const one of points) {
        const value = one.point[name];
        if (value !== null) path += `${joined ? "L" : "M"}${x(one.at).toFixed(1)} ${y(value).toFixed(1)}`;
        joined = value !== null;
      }
      drawn(svg, "path", { class: `line ${kind}`, d: path });
      const last = points[points.length - 1].point[name];
      if (last !== null) drawn(svg, "circle", { class: `dot ${kind}`, cx: x(end), cy: y(last), r: 3 });
    }
  };

  // The form

  const choices = (now) => {
    const ready = now.models.filter((one) => one.state === "READY").map((one) => [`${one.name} ${one.version}`, one]);
    const select = find("model"), names = ready.map(([label]) => label).join("\n");
    if (select.dataset.names === names) return;
    select.dataset.names = names;
    const before = select.value;
    select.replaceChildren(...ready.map(([label, one]) => {
      const option = element("option", label);
      option.value = `/v2/models/${encodeURIComponent(one.name)}/versions/${encodeURIComponent(one.version)}`;
      return option;
    }));
    if ([...select.options].some((option) => option.value === before)) select.value = before;
    if (select.value !== state.chosen) choose();
  };

  const choose = async () => {
    const path = (state.chosen = find("model").value), turn = ++state.turn;
    find("run").disabled = true;
    find("inputs").replaceChildren();
    if (!path) return;
    try {
      const response = await fetch(path, { headers: headers() });
      const told = await response.json();
      if (!response.ok) throw new Error(told.error);
      if (turn !== state.turn) return; // another was chosen meanwhile
      state.metadata = told;
      find("inputs").replaceChildren(...told.inputs.map(field));
      find("run").disabled = false;
      fill();
    } catch (error) {
      complain(error);
    }
  };

  const field = (input) => {
    const set = element("fieldset"), shape = element("span", "", "shape");
    set.append(element("legend", `${input.name} ${input.datatype}`));
    for (const size of input.shape) {
      const box = element("input");
      box.type = "number";
      box.min = 0;
      box.value = size < 0 ? 1 : size;
      box.disabled = size >= 0;
      box.setAttribute("aria-label", `${input.name}, size of an axis`);
      box.addEventListener("change", fill);
      shape.append(box, " ");
    }
    const area = element("textarea");
    area.rows = 3;
    area.spellcheck = false;
    area.setAttribute("aria-label", `${input.name}, values`);
    set.append(shape, area);
    return set;
  };

  const shapeOf = (set) => [...set.querySelectorAll(".shape input")].map((box) => Number(box.value));

  const fill = () => {
    [...find("inputs").children].forEach((set, index) => {
      const input = state.metadata.inputs[index], length = Tensor.count(shapeOf(set)), area = set.querySelector("textarea");
      area.readOnly = length > SHOWN;
      area.value = length > SHOWN
        ? `${length.toLocaleString("en")} values, made when it runs`
        : JSON.stringify(Tensor.sample(input.datatype, length, find("fill").value));
    });
  };

  const valuesOf = (input, set) => {
    const shape = shapeOf(set), length = Tensor.count(shape), area = set.querySelector("textarea");
    if (area.readOnly) return Tensor.sample(input.datatype, length, find("fill").value);
    let values;
    try { values = JSON.parse(area.value).flat(Infinity); } catch { throw new Error(`${input.name}: expected a JSON list of values`); }
    if (values.length !== length) throw new Error(`${input.name}: got ${values.length} values, expected ${length} for shape [${shape}]`);
    return values;
  };

  const run = async (event) => {
    event.preventDefault();
    if (state.busy) return;
    state.busy = true;
    find("run").disabled = true;
    try {
      const sets = [...find("inputs").children];
      const parts = state.metadata.inputs.map((input, index) => Tensor.encode(input.datatype, valuesOf(input, sets[index])));
      const head = new TextEncoder().encode(JSON.stringify({
        inputs: state.metadata.inputs.map((input, index) => ({
          name: input.name, datatype: input.datatype, shape: shapeOf(sets[index]), parameters: { binary_data_size: parts[index].length },
        })),
        parameters: { binary_data_output: true },
      }));
      const start = performance.now();
      const response = await fetch(`${state.chosen}/infer`, {
        method: "POST",
        headers: headers({ "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) }),
        body: new Blob([head, ...parts]),
      });
      const body = new Uint8Array(await response.arrayBuffer());
      result(response, body, (performance.now() - start) / 1000);
    } catch (error) {
      complain(error);
    } finally {
      state.busy = false;
      find("run").disabled = false;
    }
  };

  const result = (response, body, took) => {
    const length = Number(response.headers.get("Inference-Header-Content-Length") ?? body.length);
    const told = JSON.parse(new TextDecoder().decode(body.subarray(0, length)));
    if (!response.ok) throw new Error(told.error ?? `status ${response.status}`);
    const shown = [element("p", `answered in ${seconds(took)}, seen from this page`, "muted")];
    let at = length;
    for (const output of told.outputs) {
      const size = output.parameters?.binary_data_size ?? 0;
      const values = output.data ? output.data.flat(Infinity) : Tensor.decode(output.datatype, body.subarray(at, at + size));
      at += size;
      shown.push(element("h3", `${output.name} ${output.datatype} [${output.shape.join(", ")}]`), element("pre", summary(output.datatype, values)));
    }
    find("result").replaceChildren(...shown);
  };

  const summary = (datatype, values) => {
    const brief = (value) => (typeof value === "number" && !Number.isInteger(value) ? +value.toPrecision(6) : typeof value === "bigint" ? value.toString() : value);
    const first = values.slice(0, 64).map((value) => (datatype === "BYTES" ? JSON.stringify(value) : String(brief(value)))).join(", ");
    const more = values.length > 64 ? `, … ${(values.length - 64).toLocaleString("en")} more` : "";
    if (!values.length || datatype === "BYTES" || datatype === "BOOL") return first + more;
    const numbers = values.map(Number);
    const low = numbers.reduce((a, b) => Math.min(a, b)), high = numbers.reduce((a, b) => Math.max(a, b));
    const mean = numbers.reduce((a, b) => a + b) / numbers.length;
    return `${first}${more}\nmin ${brief(low)}   max ${brief(high)}   mean ${brief(mean)}   largest at ${numbers.indexOf(high)}`;
  };

  const complain = (error) => find("result").replaceChildren(element("p", error.message || String(error), "error"));

  find("try").addEventListener("submit", run);
  find("model").addEventListener("change", choose);
  find("fill").addEventListener("change", fill);
  find("keyform").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = find("key").value;
    poll();
  });
  const loop = async () => {
    if (!document.hidden) await poll();
    setTimeout(loop, 1000);
  };
  loop();
})();
