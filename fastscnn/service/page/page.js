// The page: a picture in, its label map laid over it, shares and times beside it.
// Without modules or libraries, so that what the server sends is what runs.

const $ = (id) => document.getElementById(id);
const ENDPOINT = new URL("v1/segment?output=labels", document.baseURI);
const LIVE_WIDTH = 960; // of camera frames: larger ones take longer to send than to segment

let shown = null; // object URL of the photo on show
let live = null; // the camera's MediaStream while it runs

async function segment(picture) {
  const sent = performance.now();
  const response = await fetch(ENDPOINT, {
    method: "POST",
    headers: { "Content-Type": picture.type || "application/octet-stream", Accept: "application/json" },
    body: picture,
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const wait = response.headers.get("Retry-After");
    throw new Error((answer.detail || `the server answered ${response.status}`) +
      (wait ? ` (in ${wait} s)` : ""));
  }
  return { ...answer, total: performance.now() - sent };
}

function show(answer) {
  $("labels").src = answer.picture;
  $("labels").alt = "Label map: " + answer.classes
    .map((c) => `${c.name} ${percent(c.share)}`).join(", ");
  $("save").href = answer.picture;
  fit(answer.width, answer.height);
  $("legend").replaceChildren(...answer.classes.map(legendRow));
  const { wait, ...stages } = answer.milliseconds;
  const rows = Object.entries(stages);
  if (wait >= 1) rows.unshift(["waiting", wait]);
  rows.push(["with sending", answer.total]);
  $("times").replaceChildren(...rows.flatMap(([name, ms]) => [
    element("dt", name), element("dd", `${ms.toFixed(ms < 10 ? 1 : 0)} ms`)]));
  $("result").hidden = false;
  const [first] = answer.classes;
  return `${answer.width} x ${answer.height}: ${first.name} covers ${percent(first.share)}; ` +
    `network ${answer.milliseconds.network.toFixed(0)} ms, ${answer.total.toFixed(0)} ms with sending.`;
}

const fit = (width, height) => $("stage").style.setProperty("--aspect", width / height);

function legendRow(c) {
  const swatch = element("span", "", "swatch");
  swatch.style.backgroundColor = c.color;
  const name = element("th");
  name.scope = "row";
  name.append(swatch, c.name);
  const row = element("tr");
  row.append(name, element("td", percent(c.share)));
  return row;
}

const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function fail(error) {
  $("error").textContent = error instanceof TypeError
    ? "The server does not answer: is it still running?" : error.message;
  $("error").hidden = false;
  $("status").textContent = "";
}

async function open(picture) {
  stopLive();
  $("error").hidden = true;
  $("status").textContent = "Segmenting ...";
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await segment(picture);
    const url = URL.createObjectURL(picture);
    $("photo").src = url;
    if (shown) URL.revokeObjectURL(shown);
    shown = url;
    $("status").textContent = show(answer);
  } catch (error) {
    fail(error);
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

async function startLive() {
  $("error").hidden = true;
  const video = $("video");
  try {
    live = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: LIVE_WIDTH } } });
    video.srcObject = live;
    await video.play();
  } catch (error) {
    stopLive();
    return fail(new Error(`The camera cannot be used: ${error.message}`));
  }
  $("labels").removeAttribute("src");
  fit(video.videoWidth, video.videoHeight);
  $("photo").hidden = true;
  video.hidden = $("result").hidden = false;
  $("live").setAttribute("aria-pressed", "true");
  $("live").textContent = "Stop the camera";
  $("status").textContent = "The camera runs.";
  const canvas = document.createElement("canvas");
  const running = live;
  while (live === running) {
    const scale = Math.min(1, LIVE_WIDTH / video.videoWidth);
    canvas.width = Math.round(scale * video.videoWidth);
    canvas.height = Math.round(scale * video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const frame = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
    try {
      const answer = await segment(frame);
      if (live === running) show(answer);
    } catch (error) {
      if (live === running) { stopLive(); fail(error); }
    }
  }
}

function stopLive() {
  if (live) live.getTracks().forEach((track) => track.stop());
  if (live) $("labels").removeAttribute("src"); // of the last frame, not of the photo behind it
  live = null;
  $("video").srcObject = null;
  $("video").hidden = true;
  $("photo").hidden = false;
  if (!$("photo").src) $("result").hidden = true;
  else fit($("photo").naturalWidth, $("photo").naturalHeight);
  $("live").setAttribute("aria-pressed", "false");
  $("live").textContent = "Live camera";
  $("status").textContent = "";
}

for (const id of ["file", "capture"]) {
  $(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) open(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
}
$("live").addEventListener("click", () => (live ? stopLive() : startLive()));
$("live").hidden = !navigator.mediaDevices?.getUserMedia; // needs HTTPS or this very machine
$("shot").hidden = !matchMedia("(pointer: coarse)").matches; // on a desktop it only opens files

function setOpacity() {
  $("labels").style.opacity = $("opacity").value / 100;
  $("percent").textContent = `${$("opacity").value} %`;
}
$("opacity").addEventListener("input", setOpacity);
setOpacity();

const fileOf = (transfer) => [...(transfer?.files ?? [])].find((f) => f.type.startsWith("image/"));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const picture = fileOf(event.dataTransfer);
  if (picture) open(picture);
  else fail(new Error("That was no picture: drop a JPEG, PNG, WebP or BMP file."));
});
addEventListener("paste", (event) => {
  const picture = fileOf(event.clipboardData);
  if (picture) open(picture);
});
$("endpoint").textContent = new URL("v1/segment", document.baseURI).href;
