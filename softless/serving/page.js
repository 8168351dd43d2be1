// The page of `softless serve`: an image is dropped, sent, and the answer put in its place. Without this file the
// same forms work, each answer as a page of its own.
"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const $ = (id) => document.getElementById(id);
  const command = $("command");
  if (command) command.textContent = command.textContent.replace("ADDRESS", location.origin);

  const upload = $("upload"), samples = $("samples"), answer = $("answer"), state = $("state"), drop = $("drop");
  let asking = null;

  const say = (text) => { if (state) state.textContent = text; };
  const show = (html) => {
    // the server made it, and escaped every name in it
    answer.innerHTML = html;
    answer.scrollIntoView({ block: "nearest" });
  };
  const ask = async (form) => {
    if (asking) asking.abort();
    const mine = asking = new AbortController();
    say("looking …");
    answer.setAttribute("aria-busy", "true");
    try {
      const reply = await fetch("/look", { method: "POST", body: form, headers: { "X-Part": "1" }, signal: mine.signal });
      show(await reply.text());
      say(reply.ok ? "" : "no answer");
    } catch (error) {
      if (error.name === "AbortError") return;
      say("The server cannot be reached: is it still running?");
    } finally {
      if (asking === mine) { asking = null; answer.removeAttribute("aria-busy"); }
    }
  };
  const send = (file) => {
    if (!file) return;
    const form = new FormData();
    form.append("image", file);
    press(null);
    ask(form);
  };
  const press = (button) => {
    for (const other of document.querySelectorAll("#samples button")) other.setAttribute("aria-pressed", String(other === button));
  };

  if (upload) {
    const input = upload.elements.image;
    input.addEventListener("change", () => { send(input.files[0]); input.value = ""; });
    upload.addEventListener("submit", (event) => { event.preventDefault(); send(input.files[0]); });
    for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    for (const name of ["dragleave", "drop"]) addEventListener(name, () => drop.classList.remove("over"));
    addEventListener("drop", (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });
    addEventListener("paste", (event) => send([...event.clipboardData.files][0]));
  }
  if (samples) {
    samples.addEventListener("submit", (event) => {
      event.preventDefault();
      const form = new FormData();
      form.append("sample", event.submitter.value);
      press(event.submitter);
      ask(form);
    });
  }

  const viewer = document.querySelector(".viewer");
  if (viewer) slide(viewer);

  // A slide: tiles of 256 pixels at halves of its size, and a map over them.
  function slide(viewer) {
    const canvas = viewer.querySelector("canvas"), pen = canvas.getContext("2d");
    const width = Number(viewer.dataset.width), height = Number(viewer.dataset.height), base = viewer.dataset.tiles;
    const TILE = 256, deepest = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / TILE)));
    const tiles = new Map(), KEPT = 400;
    let moved = false, scale = 1, x = 0, y = 0, wanted = false, least = 1, map = null, covers = null;

    const fit = () => {
      const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
      canvas.width = Math.round(box.width * ratio); canvas.height = Math.round(box.height * ratio);
      least = Math.min(canvas.width / width, canvas.height / height);
    };
    const whole = () => { moved = false; scale = least; x = (width - canvas.width / scale) / 2; y = (height - canvas.height / scale) / 2; draw(); };
    const keep = () => {
      scale = Math.min(Math.max(scale, least * 0.8), 8);
      x = Math.min(Math.max(x, -canvas.width / scale * 0.8), width - canvas.width / scale * 0.2);
      y = Math.min(Math.max(y, -canvas.height / scale * 0.8), height - canvas.height / scale * 0.2);
    };
    const zoom = (by, cx = canvas.width / 2, cy = canvas.height / 2) => {
      const px = x + cx / scale, py = y + cy / scale;
      moved = true; scale *= by; keep(); x = px - cx / scale; y = py - cy / scale; keep(); draw();
    };
    const move = (dx, dy) => { moved = true; x += dx / scale; y += dy / scale; keep(); draw(); };

    const tile = (level, row, column) => {
      const key = `${level}/${row}/${column}`;
      let image = tiles.get(key);
      if (!image) {
        image = new Image();
        image.onload = draw;
        image.onerror = () => { setTimeout(() => tiles.delete(key), 2000); };
        image.src = `${base}/${key}`;
        tiles.set(key, image);
        if (tiles.size > KEPT) tiles.delete(tiles.keys().next().value);
      }
      return image;
    };
    const level = (at) => {
      const step = 2 ** at, side = TILE * step;
      const rows = Math.ceil(height / side), columns = Math.ceil(width / side);
      const top = Math.max(0, Math.floor(y / side)), left = Math.max(0, Math.floor(x / side));
      const bottom = Math.min(rows - 1, Math.floor((y + canvas.height / scale) / side));
      const right = Math.min(columns - 1, Math.floor((x + canvas.width / scale) / side));
      for (let row = top; row <= bottom; row++) for (let column = left; column <= right; column++) {
        const image = tile(at, row, column);
        if (!image.complete || !image.naturalWidth) continue;
        const w = Math.min(side, width - column * side), h = Math.min(side, height - row * side);
        pen.drawImage(image, (column * side - x) * scale, (row * side - y) * scale, w * scale, h * scale);
      }
    };
    const paint = () => {
      wanted = false;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingEnabled = scale < 2;
      const at = Math.min(deepest, Math.max(0, Math.floor(Math.log2(1 / scale))));
      if (at < deepest) level(deepest);
      level(at);
      const opacity = viewer.querySelector("[name=opacity]");
      if (map && map.complete && map.naturalWidth && opacity) {
        pen.globalAlpha = Number(opacity.value) / 100;
        pen.imageSmoothingEnabled = false;
        pen.drawImage(map, (covers[0] - x) * scale, (covers[1] - y) * scale, covers[2] * scale, covers[3] * scale);
        pen.globalAlpha = 1;
      }
      const place = viewer.querySelector(".place");
      if (place) place.textContent = `${(100 * scale / (devicePixelRatio || 1)).toPrecision(2)} %`;
    };
    function draw() { if (!wanted) { wanted = true; requestAnimationFrame(paint); } }

    const at = (event) => {
      const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
      return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    };
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, at(event)); });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId), now = at(event);
      if (!before) return;
      pointers.set(event.pointerId, now);
      if (pointers.size === 1) { move(before[0] - now[0], before[1] - now[1]); return; }
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      zoom(far(now) / far(before), other[0], other[1]);
    });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...at(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 80 * (devicePixelRatio || 1);
      const keys = {
        ArrowLeft: () => move(-step, 0), ArrowRight: () => move(step, 0), ArrowUp: () => move(0, -step), ArrowDown: () => move(0, step),
        "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": whole, Home: whole,
      };
      if (keys[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); keys[event.key](); }
    });
    viewer.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-do]");
      if (button) ({ in: () => zoom(1.5), out: () => zoom(1 / 1.5), whole }[button.dataset.do])();
    });
    viewer.addEventListener("input", (event) => { if (event.target.name === "map") choose(event.target.selectedOptions[0]); draw(); });
    const choose = (option) => {
      if (!option || !option.value) { map = null; return; }
      covers = option.dataset.covers.split(" ").map(Number);
      map = new Image(); map.onload = draw; map.src = option.value;
    };
    const select = viewer.querySelector("[name=map]");
    if (select) choose(select.selectedOptions[0]);
    new ResizeObserver(() => { fit(); canvas.dataset.ready = "1"; if (moved) keep(); else whole(); paint(); }).observe(canvas);
  }

  // A slide that is being looked at: its state every second, until it is done.
  const job = $("job");
  if (job && job.dataset.state === "at work") {
    const bar = job.querySelector("progress"), words = job.querySelector(".words");
    const tick = async () => {
      try {
        const now = await (await fetch(job.dataset.at)).json();
        if (now.state !== "at work") { location.reload(); return; }
        bar.value = now.done; bar.max = now.total || 1; words.textContent = now.words;
      } catch { words.textContent = "The server cannot be reached: is it still running?"; }
      setTimeout(tick, 700);
    };
    tick();
  }
})();
