// The scrolling picture: cycles in a lane, log-mel spectrogram, waveform; seconds below, Hz at the left.

import { MARKS, classOf, clock } from "./shell.js";

const RATE = 100; // columns a second
const KEPT = 40 * RATE;
const GUTTER = 52, AXIS = 24, LANE = 34, GAP = 6;
const LAG_SECONDS = 0.25; // the picture stays so far behind the sound, so that it scrolls evenly
const FRAME_MILLISECONDS = 1000 / 31;

export class Scope {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.cycles = [];
    this.reset(null);
    new ResizeObserver(() => this.fit()).observe(canvas);
    document.addEventListener("theme", () => this.readColours());
    this.readColours();
    this.fit();
    const draw = (now) => { requestAnimationFrame(draw); this.frame(now); };
    requestAnimationFrame(draw);
  }

  readColours() {
    // Custom properties keep light-dark() unresolved; a colour in use does not.
    const probe = document.createElement("i");
    document.body.append(probe);
    this.colours = {};
    for (const name of ["paper", "card", "ink", "dim", "line", "normal", "abnormal", "on-mark"]) {
      probe.style.color = `var(--${name})`;
      this.colours[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    this.stale = true;
  }

  reset(picture) {
    this.picture = picture;
    this.end = this.shown = 0;
    this.outline = new Int16Array(2 * KEPT);
    this.cycles = [];
    this.peak = 1;
    this.stale = true;
    if (!picture) return;
    this.spectrum = new OffscreenCanvas(KEPT, picture.mels);
    this.spectrumPen = this.spectrum.getContext("2d");
    const bytes = Uint8Array.from(atob(picture.palette), (letter) => letter.charCodeAt(0));
    this.colour = Uint32Array.from({ length: 256 }, (_, at) =>
      0xff000000 | (bytes[3 * at + 2] << 16) | (bytes[3 * at + 1] << 8) | bytes[3 * at]);
  }

  fit() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.span = this.width < 560 ? 10 : 20;
    this.stale = true;
  }

  sound(buffer) {
    if (!this.picture) return null;
    const head = new DataView(buffer);
    const start = head.getFloat64(0, true), first = head.getFloat64(8, true);
    const columns = head.getUint16(16, true), outlined = head.getUint16(18, true);
    const outline = new Int16Array(buffer, 24, 2 * outlined);
    const from = Math.floor(start / 160);
    for (let at = 0; at < outlined; at++) {
      const place = (from + at) % KEPT;
      this.outline[2 * place] = outline[2 * at];
      this.outline[2 * place + 1] = outline[2 * at + 1];
    }
    this.addColumns(first, columns, new Uint8Array(buffer, 24 + 4 * outlined));
    this.end = Math.max(this.end, (first + columns) / RATE);
    this.stale = true;
    return head.getFloat32(20, true);
  }

  addColumns(first, count, bytes) {
    const mels = this.picture.mels;
    for (let at = 0; at < count;) {
      const place = (first + at) % KEPT;
      const width = Math.min(count - at, KEPT - place);
      const image = new ImageData(width, mels);
      const pixels = new Uint32Array(image.data.buffer);
      for (let x = 0; x < width; x++) {
        for (let mel = 0; mel < mels; mel++) pixels[(mels - 1 - mel) * width + x] = this.colour[bytes[(at + x) * mels + mel]];
      }
      this.spectrumPen.putImageData(image, place, 0);
      at += width;
    }
  }

  add(cycle) {
    // A cycle as found, or with its verdict, which replaces the former.
    const found = this.cycles.findIndex((other) => Math.abs(other.start - cycle.start) < 0.001);
    if (found >= 0) this.cycles[found] = cycle;
    else this.cycles.push(cycle);
    if (this.cycles.length > 60) this.cycles.shift();
    this.stale = true;
  }

  frame(now) {
    const passed = now - (this.drawn ?? 0);
    if (passed < FRAME_MILLISECONDS || !this.width) return;
    this.drawn = now;
    const target = this.end - LAG_SECONDS;
    const behind = target - this.shown;
    if (behind > 1.5 || behind < -1) this.shown = target;
    else if (behind > 0) this.shown = Math.min(this.end, this.shown + (passed / 1000) * (1 + behind - 0.1));
    if (this.stale || behind > 0.001) this.draw();
    this.stale = false;
  }

  x(seconds) {
    const right = Math.max(this.shown, this.span);
    return GUTTER + ((seconds - right + this.span) / this.span) * (this.width - GUTTER);
  }

  draw() {
    const { pen, width, height, colours } = this;
    const low = height < 230;
    const spectrum = { top: LANE + GAP, height: (height - LANE - AXIS - 2 * GAP) * (low ? 1 : 0.68) };
    const wave = low ? null : { top: spectrum.top + spectrum.height + GAP, height: height - AXIS - LANE - spectrum.height - 2 * GAP };
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = colours.paper;
    pen.fillRect(GUTTER, LANE + GAP, width - GUTTER, height - AXIS - LANE - GAP);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, width - GUTTER, height);
    pen.clip();
    this.drawSpectrum(spectrum);
    if (wave) this.drawWave(wave);
    this.drawCycles(spectrum, wave);
    pen.restore();
    this.drawAxes(spectrum, wave);
  }

  drawSpectrum({ top, height }) {
    if (!this.picture) return;
    const right = this.shown * RATE;
    let from = Math.max(0, right - this.span * RATE);
    this.pen.imageSmoothingEnabled = true;
    while (from < right) {
      const place = from % KEPT, columns = Math.min(right - from, KEPT - place);
      const x = this.x(from / RATE);
      this.pen.drawImage(this.spectrum, place, 0, columns, this.picture.mels, x, top, this.x((from + columns) / RATE) - x + 0.5, height);
      from += columns;
    }
  }

  drawWave({ top, height }) {
    const { pen } = this, middle = top + height / 2;
    const from = Math.max(0, Math.floor((this.shown - this.span) * RATE)), to = Math.floor(this.shown * RATE);
    let peak = 1;
    for (let at = from; at < to; at++) {
      const place = 2 * (at % KEPT);
      peak = Math.max(peak, -this.outline[place], this.outline[place + 1]);
    }
    this.peak = peak;
    pen.beginPath();
    for (let at = from; at < to; at++) {
      const place = 2 * (at % KEPT), x = this.x(at / RATE);
      pen.moveTo(x, middle - (this.outline[place + 1] / peak) * height * 0.46 - 0.4);
      pen.lineTo(x, middle - (this.outline[place] / peak) * height * 0.46 + 0.4);
    }
    pen.strokeStyle = this.colours.ink;
    pen.lineWidth = 1;
    pen.stroke();
  }

  drawCycles(spectrum, wave) {
    const { pen, colours } = this;
    const bottom = wave ? wave.top + wave.height : spectrum.top + spectrum.height;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (const cycle of this.cycles) {
      const x = this.x(cycle.start), width = this.x(cycle.end) - x;
      if (x + width < GUTTER || x > this.width) continue;
      const kind = cycle.type === "cycle" ? classOf(cycle) : "waiting";
      const filled = kind !== "none" && kind !== "waiting";
      const colour = kind === "normal" ? colours.normal : kind === "none" || kind === "waiting" ? colours.dim : colours.abnormal;
      pen.strokeStyle = "rgba(255,255,255,.75)";
      pen.lineWidth = 1.5;
      this.line(x, spectrum.top, bottom, []);
      this.line(x + width, spectrum.top, bottom, []);
      if (cycle.phase) this.drawPhase(this.x(cycle.phase), x, width, spectrum, bottom);
      pen.fillStyle = pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.roundRect(x + 1.5, 2, Math.max(2, width - 3), LANE - 4, 6);
      if (filled) pen.fill();
      else { pen.setLineDash([5, 4]); pen.stroke(); pen.setLineDash([]); pen.fillStyle = colours.dim; }
      if (filled) pen.fillStyle = colours["on-mark"];
      this.write(kind, x, width);
    }
  }

  write(kind, x, width) {
    const { pen } = this;
    const word = { waiting: "…", none: "not gradable" }[kind] ?? kind;
    pen.font = "700 15px system-ui, 'DejaVu Sans', sans-serif";
    const text = pen.measureText(word).width < width - 8 ? word : kind === "waiting" ? "…" : MARKS[kind];
    if (pen.measureText(text).width < width + 4) pen.fillText(text, x + width / 2, LANE / 2 + 1);
  }

  drawPhase(at, x, width, spectrum, bottom) {
    this.line(at, spectrum.top, bottom, [4, 4]);
    const { pen } = this;
    pen.font = "600 13px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillStyle = "rgba(255,255,255,.9)";
    if (at - x > 22) pen.fillText("in", (x + at) / 2, spectrum.top + 11);
    if (x + width - at > 26) pen.fillText("out", (at + x + width) / 2, spectrum.top + 11);
  }

  line(x, top, bottom, dash) {
    const { pen } = this;
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(x, top);
    pen.lineTo(x, bottom);
    pen.stroke();
    pen.setLineDash([]);
  }

  drawAxes(spectrum, wave) {
    const { pen, colours, height } = this;
    pen.fillStyle = colours.dim;
    pen.font = "13px system-ui, 'DejaVu Sans', sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [hertz, share] of this.picture?.ticks ?? []) {
      const y = spectrum.top + spectrum.height * (1 - share);
      pen.fillText(hertz >= 1000 ? `${hertz / 1000} kHz` : `${hertz} Hz`, GUTTER - 6, Math.min(Math.max(y, spectrum.top + 7), spectrum.top + spectrum.height - 7));
      pen.fillRect(GUTTER - 4, y, 4, 1);
    }
    if (wave) {
      const peak = (this.peak / 32767).toPrecision(1);
      pen.fillText(peak, GUTTER - 6, wave.top + 8);
      pen.fillText("0", GUTTER - 6, wave.top + wave.height / 2);
      pen.fillText(`−${peak}`, GUTTER - 6, wave.top + wave.height - 8);
    }
    pen.textAlign = "center";
    const step = this.span > 10 ? 5 : 2, right = Math.max(this.shown, this.span);
    for (let second = Math.ceil((right - this.span) / step) * step; second <= right; second += step) {
      const x = this.x(second);
      if (x < GUTTER + 14 || x > this.width - 30) continue;
      pen.fillText(clock(second), x, height - AXIS / 2 + 2);
      pen.fillRect(x, height - AXIS, 1, 4);
    }
    pen.textAlign = "right";
    pen.fillText("s", this.width - 4, height - AXIS / 2 + 2);
  }
}
