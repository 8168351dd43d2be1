(() => {
  const bad = [], name = (e) => (e.getAttribute("aria-label") || (e.getAttribute("aria-labelledby") && document.getElementById(e.getAttribute("aria-labelledby"))?.textContent) || e.labels?.[0]?.textContent || e.textContent || "").trim();
  for (const e of document.querySelectorAll("button, a[href], input, select, progress, canvas, [role=region], summary")) if (!name(e)) bad.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) bad.push(`no alt: ${e.src.slice(0, 40)}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) bad.push(`twice: ${id}`);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((e) => Number(e.tagName[1]));
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) bad.push(`heading ${level} behind ${levels[i - 1]}`); });
  if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) bad.push("h1 or main");
  if (!document.documentElement.lang || !document.title) bad.push("lang or title");
  for (const th of document.querySelectorAll("th")) if (!th.scope || !th.textContent.trim()) bad.push(`th: ${th.outerHTML}`);
  for (const e of document.querySelectorAll("button, select, input[type=range], .drop")) { const box = e.getBoundingClientRect(); if (e.checkVisibility() && (box.height < 24 || box.width < 24)) bad.push(`small: ${e.outerHTML.slice(0, 60)}`); }
  return bad;
})()
