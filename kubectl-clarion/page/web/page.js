// The page. It shows what it is sent and decides nothing: who announces what, and why not, is said by the server in the
// words of kubectl clarion explain. All texts are put in as texts, never as HTML.

const $ = (id) => document.getElementById(id);
const narrow = () => matchMedia("(max-width: 760px)").matches;

// h makes an element. Attributes that are null are left out; on… are listeners.
function h(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}
// put replaces what is in an element.
function put(e, ...children) {
  e.replaceChildren(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false));
}
function svg(tag, attrs, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

const glyphs = { good: ["✓", "well"], bad: ["✕", "not well"], unknown: ["?", "not known"], off: ["–", "takes no part"] };
const glyph = (state) => h("span", { class: "glyph " + state, role: "img", "aria-label": glyphs[state][1] }, glyphs[state][0]);
const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const clock = (t) => new Date(t).toLocaleTimeString([], { hour12: false });

// What there is to show.
let overview = null, health = { live: false }, heard = 0, events = [];
let tab = location.hash.slice(1) || "map", picked = null, way = null, opened = new Set(), allProblems = false;
let search = "", state = "", listed = null, grids = new Map(), sessionsShown = 200;

// --- what is live ---

let source;
function connect() {
  source = new EventSource("/api/live");
  source.addEventListener("picture", (e) => { overview = JSON.parse(e.data); refresh(); });
  source.addEventListener("events", (e) => {
    const known = new Set(events.map((x) => x.number));
    events = events.concat(JSON.parse(e.data).filter((x) => !known.has(x.number))).slice(-500);
    if (tab === "time") render(); else tabs();
  });
  source.addEventListener("health", (e) => { health = JSON.parse(e.data); heard = Date.now(); showHealth(); });
  source.onerror = () => {
    health = { ...health, live: false, gone: true };
    showHealth();
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

// A picture is live when the server has just said so. The wall clock is asked, for a computer that slept.
function showHealth() {
  const silent = Date.now() - heard > 4000;
  const live = health.live && !silent;
  const badge = $("health"), bar = $("stale");
  const read = health.read ? clock(health.read) : "";
  badge.className = live ? "live" : health.dump ? "" : health.read || health.failed || health.gone ? "old" : "";
  const text = live ? "Live" : health.dump ? "A dump" : badge.className === "old" ? "Not live" : "Reading …";
  if (badge.textContent !== text) badge.textContent = text;
  document.title = (live || health.dump ? "" : "(old) ") + "Clarion" + (overview ? " · " + overview.cluster : "");
  const old = badge.className === "old" && !health.dump;
  document.body.classList.toggle("old-picture", old);
  bar.hidden = !old;
  const why = health.gone || silent ? "kubectl clarion dashboard does not answer" : health.failed ? "the cluster cannot be read: " + health.failed : "the cluster is being read anew";
  const said = (read ? `This is how it was at ${read}; ` : "") + why + ".";
  if (old && bar.textContent !== said) bar.textContent = said;
}
setInterval(showHealth, 1000);
for (const e of ["visibilitychange", "pageshow", "focus"]) addEventListener(e, showHealth);

async function get(path, query) {
  const r = await fetch(path + "?" + new URLSearchParams(query));
  if (!r.ok) throw new Error((await r.text()).trim());
  return r.json();
}

// refresh shows a new picture: with what is asked for beside it.
async function refresh() {
  grids.clear();
  render();
  if (picked) await explain(picked);
  if (tab === "services") await list();
}

// --- what is picked ---

async function pick(object) {
  picked = object;
  await explain(object);
  if (narrow()) $("panel").scrollTop = 0;
}
function drop() {
  const key = picked;
  picked = way = null;
  $("panel").hidden = true;
  render();
  if (key) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}
async function explain(object) {
  let e;
  try {
    e = await get("/api/explain", { object });
  } catch (err) {
    const known = overview.problems.find((p) => p.about === object);
    e = { object, answer: known ? known.text : err.message, fine: known ? false : undefined };
  }
  if (picked !== object) return;
  way = e;
  panel(e);
  render();
}
function lines(list) {
  const labelled = list.some((l) => l.label);
  return h("dl", {}, list.map((l) => labelled ? [h("dt", {}, l.label || ""), h("dd", {}, l.text)] : h("dd", { class: "whole" }, l.text)));
}
function panel(e) {
  const p = $("panel");
  const on = tab !== "map" && e.addresses?.length ? h("button", { class: "more", onclick: () => go("map") }, "Show its way on the map") : null;
  put(p,
    h("button", { class: "close", "aria-label": "Close the explanation", onclick: drop }, "✕"),
    h("h2", {}, e.object.replace("/", " ")),
    h("p", { class: "answer " + (e.fine === true ? "good" : e.fine === false ? "bad" : "") }, e.answer),
    on,
    e.facts?.length ? lines(e.facts) : null,
    (e.sections || []).map((s) => [h("h3", {}, s.title), lines(s.lines)]),
    Object.entries(e.endpoints || {}).filter(([, nodes]) => nodes.length).map(([a, nodes]) => [h("h3", {}, "Endpoints for " + a), lines([{ text: "on " + few(nodes) }])]),
    (e.notes || []).map((n) => h("p", {}, n)),
    Object.values(e.notShown || {}).map((n) => h("p", { class: "soft small" }, n)),
  );
  p.hidden = false;
}
const few = (names) => names.length > 12 ? names.slice(0, 12).join(", ") + ` and ${names.length - 12} more` : names.join(", ");
addEventListener("keydown", (e) => { if (e.key === "Escape" && picked) drop(); });

// --- views ---

const views = { map: ["Map", map], services: ["Services", services], pools: ["Pools", pools], sessions: ["Sessions", sessions], time: ["Time line", time] };
function go(to) {
  tab = to;
  history.replaceState(null, "", "#" + to);
  render();
  if (picked && way) panel(way);
  if (to === "services") list();
}
function tabs() {
  const bad = overview ? { map: overview.problems.length, services: overview.services.bad, pools: overview.pools.filter((p) => p.state === "bad").length, sessions: overview.sessions.filter((s) => s.state === "bad").length } : {};
  keep($("tabs"), () => $("tabs").replaceChildren(...Object.entries(views).map(([k, [name]]) => h("button", { "data-key": "tab-" + k, "aria-current": tab === k ? "page" : null, onclick: () => go(k) }, name,
    bad[k] ? h("span", { class: "n bad", "aria-label": count(bad[k], "problem") }, "✕ " + bad[k].toLocaleString("en")) : null))));
}

// keep does something that replaces elements, and leaves the focus with that of the same key.
function keep(inside, what) {
  const key = inside.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  what();
  if (key) inside.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}
function render() {
  tabs();
  if (!overview) return;
  $("cluster").textContent = overview.cluster;
  if (!views[tab]) tab = "map";
  const view = $("view");
  view.setAttribute("aria-busy", "false");
  if (view.dataset.tab !== tab) { view.replaceChildren(); view.dataset.tab = tab; }
  keep(view, views[tab][1]);
}

function problems() {
  const all = overview.problems, shown = allProblems ? all : all.slice(0, 4), hidden = Object.entries(overview.notShown || {});
  const bad = overview.services.bad, well = !all.length && !bad;
  const none = bad ? count(bad, "Service") + " not well" : !hidden.length ? "No problems." : "No problems in what is shown.";
  return [
    h("section", { class: "card problems" + (well ? " none" : ""), "aria-label": "Problems" },
      h("h2", {}, glyph(!well ? "bad" : hidden.length ? "unknown" : "good"), all.length ? count(all.length, "problem") : none),
      all.length ? h("ul", {}, shown.map((p) => h("li", {}, h("button", { "data-key": "p-" + p.about + p.text, onclick: () => pick(p.about) }, h("b", {}, p.about), ": " + p.text)))) : null,
      bad ? h("button", { class: "more", "data-key": "bad-services", onclick: () => { search = ""; state = "bad"; go("services"); } }, bad === 1 ? "The Service that is not well" : `The ${bad.toLocaleString("en")} Services that are not well`) : null,
      all.length > 4 ? h("button", { class: "more", "data-key": "problems-more", "aria-expanded": String(allProblems), onclick: () => { allProblems = !allProblems; render(); } }, allProblems ? "Fewer" : `All ${all.length}`) : null),
    hidden.length ? h("section", { class: "card notshown", "aria-label": "Not shown" }, hidden.map(([k, why]) => h("div", {}, h("b", {}, k), " not shown: " + why))) : null,
  ];
}

// --- the map ---

const few24 = 24;

// boxes are what the map shows of the nodes: each, or, where they are many, those that are not well, and groups of the rest.
function boxes() {
  const nodes = overview.nodes;
  if (nodes.length <= few24) return nodes.map((n) => ({ key: "Node/" + n.name, state: n.state, nodes: [n] }));
  const peers = new Map();
  for (const s of overview.sessions) if (s.state === "good") peers.set(s.node, (peers.get(s.node) || []).concat(s.peer));
  const single = [], groups = new Map();
  for (const n of nodes) {
    if (n.state === "bad" && single.length < 16) { single.push({ key: "Node/" + n.name, state: n.state, nodes: [n] }); continue; }
    const to = [...new Set(peers.get(n.name) || [])].join(", ");
    const key = `group/${n.state}/${n.zone || ""}/${to}`;
    if (!groups.has(key)) groups.set(key, { key, state: n.state, zone: n.zone, to, nodes: [] });
    groups.get(key).nodes.push(n);
  }
  return single.concat([...groups.values()].sort((a, b) => a.key < b.key ? -1 : 1));
}
const names = (list) => list.length > 2 ? `${list[0].name} … ${list[list.length - 1].name}` : list.map((n) => n.name).join(", ");

// lit are what the way of what is picked goes through: routers, nodes and addresses.
function lit() {
  if (!picked || !way) return null;
  const on = { routers: new Set(), entries: new Map(), answers: new Map(), addresses: new Set(), ends: new Map(), pools: new Map(), nodes: new Set() };
  const [kind, ...rest] = picked.split("/"), name = rest.join("/");
  for (const a of way.addresses || []) {
    on.addresses.add(a.address);
    on.pools.set(a.address, a.pool);
    for (const n of a.answeredBy || []) { on.answers.set(n + " " + a.address, ""); on.nodes.add(n); }
    for (const r of a.routes || []) { on.routers.add(r.peer); on.nodes.add(r.node); on.entries.set(r.node + " " + r.peer + " " + a.address, r.problem || ""); }
    for (const n of way.endpoints?.[a.address] || []) { on.ends.set(n, a.address); }
  }
  if (kind === "Node" || kind === "Speaker") on.nodes.add(name), on.self = name;
  else if (kind === "BGPPeer") on.routers.add(name);
  else if (!on.addresses.size) return null;
  return on;
}

function map() {
  const on = lit(), at = new Map(), drawn = boxes(), box = new Map();
  for (const b of drawn) for (const n of b.nodes) box.set(n.name, b.key);
  const place = (key, e) => { at.set(key, e); return e; };
  const litClass = (is) => is ? " lit" : "";
  const routers = overview.routers.map((r) => place("router " + r.name, h("button", {
    class: `card box ${r.state}${litClass(on?.routers.has(r.name))}`, "data-key": "BGPPeer/" + r.name, onclick: () => pick("BGPPeer/" + r.name) },
    glyph(r.state), h("span", {}, h("b", {}, r.name), h("span", { class: "soft" }, h("span", { class: "mono" }, r.address), h("br"), r.as ? `AS ${r.as} · ` : "", `${r.up} of ${r.wanted} up`)))));
  const localOn = on && [...on.answers.keys()].length > 0;
  if (overview.local) routers.unshift(place("local", h("div", { class: "card box net" + litClass(localOn) }, h("span", { class: "glyph off", "aria-hidden": "true" }, "⇄"), h("span", {}, h("b", {}, "Local network"), h("span", { class: "soft" }, "ARP and NDP")))));

  const nodeBoxes = drawn.map((b) => {
    const ends = on ? b.nodes.filter((n) => on.ends.has(n.name)).length : 0, onWay = on ? b.nodes.filter((n) => on.nodes.has(n.name)).length : 0;
    const cls = `card box ${b.state}${litClass(ends || onWay)}`;
    const tag = ends ? h("span", { class: "tag" }, b.nodes.length > 1 ? `endpoints on ${ends}` : "endpoints here") : null;
    if (b.nodes.length === 1) {
      const n = b.nodes[0];
      return place(b.key, h("button", { class: cls, "data-key": b.key, onclick: () => pick(b.key) }, glyph(n.state), h("span", {}, h("b", {}, n.name),
        n.text ? h("span", { class: n.state === "bad" ? "why" : "soft" }, n.text) : h("span", { class: "soft" }, [n.answers ? `answers for ${n.answers}` : "", n.sessions ? count(n.sessions, "session") : ""].filter(Boolean).join(" · ") || "ready"), tag)));
    }
    const answers = b.nodes.reduce((a, n) => a + n.answers, 0), open = opened.has(b.key);
    return place(b.key, h("div", {}, h("button", { class: cls, "data-key": b.key, "aria-expanded": String(open), onclick: () => { open ? opened.delete(b.key) : opened.add(b.key); render(); } },
      glyph(b.state), h("span", {}, h("b", {}, count(b.nodes.length, "node") + (b.zone ? " in " + b.zone : "")), h("span", { class: "soft" }, names(b.nodes), h("br"), [answers ? `answer for ${answers.toLocaleString("en")}` : "", b.to ? "sessions: " + b.to : ""].filter(Boolean).join(" · ")),
        onWay ? h("span", { class: "tag" }, `${onWay} on the way`) : null, " ", tag)),
      open ? h("div", { class: "members" }, b.nodes.map((n) => h("button", { "data-key": "m-" + n.name, onclick: () => pick("Node/" + n.name) }, n.name))) : null));
  });

  const poolBoxes = overview.pools.map((p) => {
    const used = p.used4 + p.used6, all = used + p.free4 + p.free6;
    const extra = on ? [...on.addresses].filter((a) => on.pools.get(a) === p.name && !p.shown.some((s) => s.address === a)).map((a) => ({ address: a, services: [picked.replace(/^(Service|Address)\//, "")], state: way.fine === false ? "bad" : "good" })) : [];
    const bar = h("i"); bar.style.width = all ? Math.max(used ? 2 : 0, 100 * used / all) + "%" : "0";
    return h("section", { class: "card pool", "aria-label": "Pool " + p.name },
      place("pool " + p.name, h("button", { "data-key": "IPAddressPool/" + p.name, onclick: () => pick("IPAddressPool/" + p.name) }, p.state === "bad" ? glyph("bad") : null, h("b", {}, p.name), h("span", { class: "soft small" }, `${used.toLocaleString("en")} used · ${(p.free4 + p.free6).toLocaleString("en")} free`))),
      h("div", { class: "bar" }, bar),
      h("div", { class: "chips" }, extra.concat(p.shown).map((a) => place("addr " + a.address, h("button", { class: `chip ${a.state}${litClass(on?.addresses.has(a.address))}`, "data-key": "Address/" + a.address, title: a.text || null, onclick: () => pick("Address/" + a.address) },
        glyph(a.state), h("span", { class: "who" }, a.services.join(", ")), h("span", { class: "mono" }, a.address))))),
      p.hidden ? h("button", { class: "more small", "data-key": "more-" + p.name, onclick: () => { search = ""; state = ""; go("services"); } }, `${p.shown.length ? count(p.hidden, "more address", "more addresses") : count(p.hidden, "address", "addresses")}${p.bad > p.shown.length ? `, ${p.bad - p.shown.length} not well` : p.bad ? "" : ", all well"}`) : null);
  });
  if (!poolBoxes.length) poolBoxes.push(h("p", { class: "soft" }, "No IPAddressPool: no Service gets an address."));

  const linesLayer = svg("svg", { class: "lines" + (on ? " dimmed" : ""), "aria-hidden": "true" });
  const map = h("div", { class: "map" + (on ? " dim" : "") }, linesLayer,
    h("section", { class: "col", "aria-label": "Routers" }, h("h2", { class: "title" }, "Routers"), h("div", { class: "boxes" }, routers.length ? routers : h("p", { class: "soft" }, "No BGPPeer."))),
    h("section", { class: "col", "aria-label": "Nodes" }, h("h2", { class: "title" }, "Nodes"), h("div", { class: "boxes" }, nodeBoxes)),
    h("section", { class: "col pools-col", "aria-label": "Addresses" }, h("h2", { class: "title" }, "Addresses"), h("div", { class: "boxes" }, poolBoxes)));
  const find = h("input", { type: "search", "data-key": "find", placeholder: "Find a Service, an address or a reason", "aria-label": "Find a Service, an address or a reason" });
  find.addEventListener("keydown", (e) => { if (e.key === "Enter") { search = find.value; state = ""; go("services"); } });
  find.value = document.querySelector('[data-key="find"]')?.value || "";
  $("view").replaceChildren(...problems().filter(Boolean), h("div", { class: "tools" }, find,
    h("span", { class: "soft small" }, [count(overview.nodes.length, "node"), count(overview.services.all, "Service"), overview.controller.name ? "controller " + overview.controller.name : ""].filter(Boolean).join(" · "))), map);
  links = { on, at, box, linesLayer, map };
  draw();
}

// --- the lines of the map ---

let links = null;
function draw() {
  if (!links || tab !== "map" || !links.map.isConnected) return;
  const { on, at, box, linesLayer, map } = links, origin = map.getBoundingClientRect(), paths = new Map();
  const add = (from, to, cls) => {
    const a = at.get(from), b = at.get(to);
    if (!a || !b) return;
    const key = from + " > " + to, rank = (c) => (c.includes("on") ? 4 : 0) + (c.includes("bad") ? 2 : 0) + (c.includes("faint") ? -1 : 0);
    const had = paths.get(key);
    if (!had || rank(cls) > rank(had.cls)) paths.set(key, { a, b, cls });
  };
  for (const s of overview.sessions) {
    const lights = on && ((on.self ? on.self === s.node : [...on.entries.keys()].length === 0 && on.routers.has(s.peer)));
    const off = overview.nodes.find((n) => n.name === s.node)?.state === "off";
    add("router " + s.peer, box.get(s.node), (lights ? "on " : "") + (off && s.state === "bad" ? "off" : s.state));
  }
  for (const [key, problem] of on?.entries || []) {
    const [node, peer, address] = key.split(" ");
    add("router " + peer, box.get(node), "on" + (problem ? " bad" : ""));
    if (!problem) add(box.get(node), "addr " + address, "on");
  }
  for (const p of overview.pools) for (const n of p.hidden ? p.owners : []) {
    add("local", box.get(n), "owns" + (on?.self === n ? " on" : ""));
    add(box.get(n), "pool " + p.name, "owns" + (on?.self === n ? " on" : ""));
  }
  for (const p of overview.pools) for (const a of p.shown) {
    for (const n of a.by) {
      add("local", box.get(n), "owns" + (on?.self === n ? " on" : ""));
      add(box.get(n), "addr " + a.address, "owns" + (on?.self === n ? " on" : ""));
    }
    for (const n of a.announce) add(box.get(n), "pool " + p.name, "faint" + (on?.self === n ? " on" : ""));
    if (a.owner && !a.by.length) add(box.get(a.owner), "addr " + a.address, "bad");
  }
  for (const key of on?.answers.keys() || []) {
    const [node, address] = key.split(" ");
    add("local", box.get(node), "on");
    add(box.get(node), "addr " + address, "on");
  }
  for (const [node, address] of on?.ends || []) add(box.get(node), "addr " + address, "on ends");
  linesLayer.replaceChildren(...[...paths.values()].sort((x, y) => x.cls.includes("on") - y.cls.includes("on")).map(({ a, b, cls }) => {
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    let d;
    if (q.left >= p.right) {
      const x1 = p.right - origin.left, y1 = p.top + Math.min(p.height / 2, 30) - origin.top, x2 = q.left - origin.left - (b.closest(".pool") && !b.classList.contains("chip") ? 13 : 0), y2 = q.top + Math.min(q.height / 2, 30) - origin.top, m = (x2 - x1) / 2;
      d = `M${x1} ${y1}C${x1 + m} ${y1} ${x2 - m} ${y2} ${x2} ${y2}`;
    } else {
      const x1 = p.left + p.width / 2 - origin.left, y1 = p.bottom - origin.top, x2 = q.left + Math.min(q.width / 2, 80) - origin.left, y2 = q.top - origin.top, m = Math.max(14, (y2 - y1) / 2);
      d = `M${x1} ${y1}C${x1} ${y1 + m} ${x2} ${y2 - m} ${x2} ${y2}`;
    }
    return svg("path", { d, class: cls });
  }));
}
new ResizeObserver(() => draw()).observe($("view"));

// --- Services ---

let asked = 0;
async function list(more) {
  const mine = ++asked;
  try {
    const got = await get("/api/services", { search, state, offset: more ? listed.items.length : 0, limit: 200 });
    if (mine !== asked) return;
    listed = more ? { total: got.total, items: listed.items.concat(got.items) } : got;
  } catch (err) {
    listed = { total: 0, items: [], failed: err.message };
  }
  if (tab === "services") render();
}
function services() {
  const view = $("view");
  if (!view.querySelector("#search")) {
    const input = h("input", { type: "search", id: "search", placeholder: "Search names, addresses and reasons", "aria-label": "Search Services" });
    input.value = search;
    input.addEventListener("input", () => { search = input.value; list(); });
    const choose = h("select", { "aria-label": "Which Services", id: "choose" }, [["", "All"], ["bad", "Not well"], ["unknown", "Not known"], ["good", "Well"]].map(([v, t]) => h("option", { value: v }, t)));
    choose.value = state;
    choose.addEventListener("change", () => { state = choose.value; list(); });
    view.replaceChildren(h("div", { class: "tools" }, input, choose, h("span", { class: "soft small", role: "status", id: "found" })), h("div", { id: "list" }));
    list();
  }
  if (!listed) return;
  $("found").textContent = listed.failed || count(listed.total, "Service");
  keep($("list"), () => $("list").replaceChildren(...[
    listed.items.length ? h("ul", { class: "card rows services" }, listed.items.map((s) => h("li", {}, h("button", { class: "row", "data-key": "Service/" + s.name, "aria-current": picked === "Service/" + s.name ? "true" : null, onclick: () => pick("Service/" + s.name) },
      glyph(s.state), h("span", { class: "said" }, h("b", {}, s.name), " " + s.answer), h("span", { class: "meta mono" }, s.addresses.join(" ") || "no address"))))) : h("p", { class: "wait" }, listed.total || !overview.services.all ? "No Service that is to be reached from outside." : "None."),
    listed.items.length < listed.total ? h("p", {}, h("button", { class: "more", "data-key": "list-more", onclick: () => list(true) }, `${(listed.total - listed.items.length).toLocaleString("en")} more`)) : ""]));
}

// --- pools ---

const cellStates = [["free", "free"], ["used", "used"], ["used failing", "used, not announced as it should be"], ["reserved", "reserved"], ["quarantined", "quarantined"], ["resting", "resting"], ["kept", "kept by a Service"], ["excluded", "not given out"]];
function pools() {
  $("view").replaceChildren(
    h("ul", { class: "legend", "aria-label": "Legend" }, cellStates.map(([c, t]) => h("li", {}, h("span", { class: "cell " + c }), t))),
    h("div", { class: "pools" }, overview.pools.map((p) => {
      const body = h("div", {});
      fill(p, body);
      return h("section", { class: "card", "aria-label": "Pool " + p.name },
        h("h3", {}, glyph(p.state), h("button", { "data-key": "IPAddressPool/" + p.name, onclick: () => pick("IPAddressPool/" + p.name) }, p.name)),
        h("p", { class: "soft small" }, p.text), body);
    })));
}
async function fill(p, body) {
  let g = grids.get(p.name);
  try {
    if (!g) { g = await get("/api/pool", { name: p.name }); grids.set(p.name, g); }
  } catch (err) { body.replaceChildren(h("p", { class: "soft" }, err.message)); return; }
  const grid = (title, cells, rest) => h("div", { class: "range" }, h("span", { class: "mono small soft" }, title), cellsOf(cells), rest ? h("p", { class: "soft small" }, rest) : null);
  body.replaceChildren(...g.ranges.map((r) => grid(r.title, r.cells, r.rest)), ...(g.outside ? [grid("no longer in the pool", g.outside)] : []), spark(g.history));
}
// cellsOf is a grid that is one stop of the Tab key; the arrows move in it.
function cellsOf(cells) {
  const e = h("div", { class: "cells", role: "group", "aria-label": "Addresses; the arrow keys move" }, cells.map((c, i) => h("button", {
    class: "cell " + c.state + (c.bad ? " failing" : ""), tabindex: i ? "-1" : "0", title: `${c.address} ${c.state}${c.text ? ": " + c.text : ""}`, "aria-label": `${c.address} ${c.state}${c.text ? ": " + c.text : ""}`, "data-key": "cell-" + c.address, onclick: () => pick("Address/" + c.address) })));
  e.addEventListener("keydown", (ev) => {
    const all = [...e.children], i = all.indexOf(document.activeElement), wide = getComputedStyle(e).gridTemplateColumns.split(" ").length;
    const to = all[i + ({ ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[ev.key] || 0)];
    if (!to || to === all[i]) return;
    ev.preventDefault();
    all[i].tabIndex = -1; to.tabIndex = 0; to.focus();
  });
  return e;
}
function spark(samples) {
  if (!samples || samples.length < 2) return h("p", { class: "soft small" }, "Nothing has changed since the page was started.");
  const from = Date.parse(samples[0].time), to = Math.max(Date.now(), from + 1), top = Math.max(...samples.map((s) => s.used), 1) * 1.15;
  const x = (t) => 300 * (Date.parse(t) - from) / (to - from), y = (n) => 40 - 38 * n / top;
  let d = `M0 44V${y(samples[0].used)}`;
  for (const s of samples.slice(1)) d += `H${x(s.time)}V${y(s.used)}`;
  const e = svg("svg", { class: "history", viewBox: "0 0 300 44", preserveAspectRatio: "none", role: "img", "aria-label": `used: ${samples[0].used} at ${clock(samples[0].time)}, ${samples[samples.length - 1].used} now` }, svg("path", { d: d + "H300V44Z" }));
  return h("div", {}, e, h("p", { class: "soft small" }, `Used since ${clock(samples[0].time)}: ${samples[0].used} → ${samples[samples.length - 1].used}`));
}

// --- sessions ---

function sessions() {
  const all = [...overview.sessions].sort((a, b) => (a.state === "bad" ? 0 : 1) - (b.state === "bad" ? 0 : 1));
  const up = all.filter((s) => s.state === "good").length;
  const label = (t) => h("span", { class: "label" }, t + " ");
  $("view").replaceChildren(
    h("div", { class: "tools" }, h("span", { class: "soft" }, `${up.toLocaleString("en")} of ${count(all.length, "session")} up`)),
    all.length ? h("div", { class: "card sessions" },
      h("div", { class: "head", "aria-hidden": "true" }, ["", "Node", "Router", "BFD", "Prefixes", "State"].map((t) => h("span", {}, t))),
      h("ul", { class: "rows" }, all.slice(0, sessionsShown).map((s) => h("li", {}, h("button", { class: "row", "data-key": `s-${s.node}-${s.peer}-${s.address || ""}`, onclick: () => pick("BGPPeer/" + s.peer) },
        glyph(s.state), h("b", {}, s.node), h("span", {}, s.peer, h("br"), h("span", { class: "mono small soft" }, s.address || "")),
        h("span", {}, label("BFD"), s.bfd ? s.bfd + (s.bfdDetectionMilliseconds ? ` · ${s.bfdDetectionMilliseconds} ms` : "") : "–"),
        h("span", {}, label("Prefixes"), `${s.ipv4} IPv4, ${s.ipv6} IPv6`),
        h("span", { class: "said" }, s.state === "good" ? [s.since ? "up since " + s.since : "up", s.holdTimeSeconds ? h("span", { class: "soft" }, ` · hold time ${s.holdTimeSeconds} s`) : null, s.lastError ? h("div", { class: "soft small" }, "went down before that: " + s.lastError) : null] : s.text)))))) : h("p", { class: "wait" }, "No BGPPeer: there are no sessions."),
    all.length > sessionsShown ? h("button", { class: "more", "data-key": "s-more", onclick: () => { sessionsShown += 200; render(); } }, `${all.length - sessionsShown} more`) : "");
}

// --- the time line ---

function time() {
  $("view").replaceChildren(h("div", { class: "tools" }, h("span", { class: "soft" }, "What has changed since kubectl clarion dashboard was started, the newest first.")),
    h("ol", { class: "card rows times" }, events.slice().reverse().map((e) => h("li", {}, h(e.about ? "button" : "div", { class: "row", "data-key": "e-" + e.number, onclick: e.about ? () => pick(e.about) : null },
      h("time", { datetime: e.time }, clock(e.time)), e.state === "unknown" ? h("span", { class: "glyph off", "aria-hidden": "true" }, "·") : glyph(e.state), h("span", { class: "said" }, e.text))))));
}

tabs();
connect();
