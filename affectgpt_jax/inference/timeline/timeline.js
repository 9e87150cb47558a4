// The recording and its curves move together. Without this script the page still shows all of it.
(() => {
  const { seconds, records } = JSON.parse(document.getElementById("records").textContent);
  const media = document.getElementById("media");
  const now = document.getElementById("now");
  const drawings = [...document.querySelectorAll("svg[data-person]")];
  const rows = [...document.querySelectorAll(".windows tbody tr")];
  let time = 0;

  const clock = (t) => {
    const s = Math.floor(t), m = Math.floor(s / 60) % 60, h = Math.floor(s / 3600);
    const two = (x) => String(x).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
  };

  // Of each person the window whose middle is nearest, among those that are open at a time.
  const current = (t) => {
    const found = new Map();
    records.forEach((record, i) => {
      if (t < record.start || (t >= record.end && t < seconds) || t > record.end) return;
      const far = Math.abs(t - (record.start + record.end) / 2);
      const other = found.get(record.person);
      if (!other || far < other.far) found.set(record.person, { i, far });
    });
    return [...found.values()].map((one) => one.i).sort((a, b) => a - b);
  };

  const say = (name, text, parent) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };

  const show = (t) => {
    time = t;
    const open = current(t);
    for (const drawing of drawings) {
      const { left, right, person } = drawing.dataset;
      const x = (s) => Number(left) + ((Number(right) - Number(left)) * s) / Math.max(seconds, 1e-9);
      const cursor = drawing.querySelector(".cursor");
      cursor.setAttribute("transform", `translate(${x(t) - Number(left)} 0)`);
      const own = open.map((i) => records[i]).find((record) => record.person === person);
      const band = drawing.querySelector(".window");
      band.setAttribute("x", own ? x(own.start) : 0);
      band.setAttribute("width", own ? x(own.end) - x(own.start) : 0);
      drawing.setAttribute("aria-valuenow", t.toFixed(2));
      drawing.setAttribute("aria-valuetext", `${clock(t)}${own && own.labels ? `, ${own.labels}` : ""}`);
    }
    rows.forEach((row, i) => row.classList.toggle("here", open.includes(i)));
    now.replaceChildren();
    for (const i of open) {
      const record = records[i];
      say("h3", `${clock(record.start)}-${clock(record.end)}, ${record.name}`, now);
      if (record.labels) say("p", record.labels, now).className = "hit";
      if (record.valence !== null) say("p", `valence ${record.valence}`, now);
      say("p", record.answer || "(empty)", now);
      if (record.words) say("p", `“${record.words}”`, now).className = "faint";
    }
  };

  const seek = (t) => {
    const place = Math.min(Math.max(t, 0), seconds);
    if (media.readyState > 0) media.currentTime = place;
    show(place);
  };

  for (const drawing of drawings) {
    const { left, right, width } = drawing.dataset;
    drawing.addEventListener("click", (event) => {
      const box = drawing.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * Number(width);
      seek(((x - Number(left)) / (Number(right) - Number(left))) * seconds);
    });
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
      if (step) seek(time + step);
      else if (event.key === "Home") seek(0);
      else if (event.key === "End") seek(seconds);
      else return;
      event.preventDefault();
    });
  }
  for (const button of document.querySelectorAll("button[data-start]")) {
    button.addEventListener("click", () => seek(Number(button.dataset.start)));
  }
  media.addEventListener("timeupdate", () => show(media.currentTime));
  media.addEventListener("error", () => { document.getElementById("unplayable").style.display = "block"; });
  show(0);
})();
