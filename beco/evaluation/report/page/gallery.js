"use strict";
{
  const { classes, safe, unsure, errors } = JSON.parse(document.getElementById("colours").textContent);
  const rgb = hex => [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
  const numbers = text => text ? text.split(" ").map(Number) : [];
  const decode = uri => Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), char => char.charCodeAt(0));

  const checksums = Uint32Array.from({ length: 256 }, (_, value) => {
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xEDB88320 ^ value >>> 1 : value >>> 1;
    return value;
  });
  const checksum = bytes => ~bytes.reduce((sum, byte) => checksums[(sum ^ byte) & 255] ^ sum >>> 8, ~0) >>> 0;

  // The PNG of a data URI with other colours: `entries` are [red, green, blue, alpha] for each index. A chunk is its
  // length, its name, its data and the checksum of the latter two.
  const repaint = (uri, entries) => {
    const bytes = decode(uri), view = new DataView(bytes.buffer);
    const fill = { PLTE: entries.flatMap(entry => entry.slice(0, 3)), tRNS: entries.map(entry => entry[3]) };
    for (let at = 8; at < bytes.length; at += view.getUint32(at) + 12) {
      const end = at + 8 + view.getUint32(at), name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
      if (!fill[name]) continue;
      bytes.set(fill[name].slice(0, end - at - 8), at + 8);
      view.setUint32(end, checksum(bytes.subarray(at + 4, end)));
    }
    return "data:image/png;base64," + btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
  };

  // Each class of a picture has its own colour as long as there are enough; classes keep to the same one if they can.
  const dealt = article => {
    const found = {}, taken = new Set();
    for (const value of [...numbers(article.dataset.present), ...numbers(article.dataset.seen)]) {
      let place = (value - 1) % safe.length;
      while (taken.has(place) && taken.size < safe.length) place = (place + 1) % safe.length;
      taken.add(place);
      found[value] = safe[place];
    }
    return found;
  };
  const colour = (value, own) => own ? own[value] || "#888888" : classes[value] || "#888888";

  // --- one picture ------------------------------------------------------------------------------------------

  class Picture {
    constructor(article) {
      this.article = article;
      this.own = null;      // class colours if not VOC's
      this.keys = {};       // the layers on the left and on the right
    }

    // From text to elements, once.
    build() {
      const strip = document.createElement("template");
      strip.innerHTML = this.article.querySelector("noscript").textContent;
      const [picture, ...figures] = strip.content.querySelectorAll("figure");
      this.base = picture.querySelector("img");
      this.layers = { picture: { caption: "picture" } };
      for (const figure of figures) {
        const { key, classes, errors } = figure.dataset, caption = figure.querySelector("figcaption").textContent;
        const layer = { uri: figure.querySelector("img").src, caption, classes: classes && numbers(classes) };
        this.layers[key] = layer;
        if (errors) this.layers["errors of " + key] = { ...layer, caption: "errors of " + caption, errors: numbers(errors) };
      }
      const name = this.article.dataset.name;
      const body = document.createElement("div");
      body.className = "body";
      body.innerHTML = '<div class="stage"><img class="layer left" alt=""><img class="layer right" alt="">'
        + '<input type="range" class="wipe" min="0" max="100"></div><div class="picks"><select class="left"></select>'
        + '<button type="button">all layers</button><select class="right"></select></div>';
      this.stage = body.firstChild;
      this.base.removeAttribute("loading");
      this.stage.prepend(this.base);
      this.wipe = body.querySelector(".wipe");
      this.wipe.setAttribute("aria-label", `wipe from the left to the right layer of ${name}`);
      this.wipe.addEventListener("input", () => this.stage.style.setProperty("--at", this.wipe.value + "%"));
      for (const side of ["left", "right"]) {
        const select = body.querySelector("select." + side);
        select.setAttribute("aria-label", `${side} layer of ${name}`);
        select.append(...Object.entries(this.layers).map(([key, layer]) => new Option(layer.caption, key)));
        select.addEventListener("change", () => this.show(side, select.value));
      }
      body.querySelector("button").addEventListener("click", () => this.enlarge());
      this.article.querySelector("h3").after(body);
      this.body = body;
    }

    source(layer) {
      if (layer.errors) return repaint(layer.uri, layer.errors.map(kind => errors[kind]));
      if (!layer.classes || !this.own) return layer.uri || "";
      const entry = value => value === 255 ? unsure : [...rgb(colour(value, this.own)), value ? 255 : 0];
      return repaint(layer.uri, layer.classes.map(entry));
    }

    // Layers that this picture does not have leave it bare.
    show(side, key) {
      this.keys[side] = key;
      if (!this.stage) return;
      const layer = this.layers[key] || this.layers.picture, image = this.stage.querySelector(".layer." + side);
      const source = this.source(layer);
      image.hidden = !source;
      image.classList.toggle("map", !layer.classes);
      image.alt = `${side}: ${layer.caption}`;
      if (source) image.src = source; else image.removeAttribute("src");
      this.body.querySelector("select." + side).value = this.layers[key] ? key : "picture";
    }

    paint(safely) {
      this.own = safely ? dealt(this.article) : null;
      this.article.querySelectorAll("i[data-class]").forEach(
        chip => chip.style.background = colour(Number(chip.dataset.class), this.own));
      Object.entries(this.keys).forEach(([side, key]) => this.show(side, key));
    }

    slide(value) {
      if (!this.stage) return;
      this.stage.style.removeProperty("--at");
      this.wipe.value = value;
    }

    // Everything known of the picture, side by side.
    enlarge() {
      const dialog = document.getElementById("enlarged"), grid = dialog.querySelector(".grid");
      dialog.querySelector("h3").textContent = this.article.dataset.name;
      const chips = [...this.article.querySelectorAll(".chip")].map(chip => chip.cloneNode(true));
      dialog.querySelector(".chips").replaceChildren(...chips);
      grid.classList.toggle("crisp", this.article.classList.contains("crisp"));
      grid.replaceChildren(...Object.values(this.layers).map(layer => {
        const figure = document.createElement("figure"), stage = document.createElement("div");
        const source = this.source(layer);
        stage.className = "stage";
        stage.append(this.base.cloneNode());
        if (source) {
          const image = Object.assign(new Image(), { src: source, alt: layer.caption, className: "layer" });
          image.classList.toggle("map", !layer.classes);
          stage.append(image);
        }
        figure.append(stage, Object.assign(document.createElement("figcaption"), { textContent: layer.caption }));
        return figure;
      }));
      grid.style.cssText = this.article.style.cssText;
      grid.style.setProperty("--opacity", getComputedStyle(this.stage).getPropertyValue("--opacity"));
      dialog.showModal();
    }
  }

  // --- a gallery --------------------------------------------------------------------------------------------

  const sorted = (pictures, order) => {
    const key = order.slice(0, -1), side = order.endsWith("-") ? -1 : 1;
    const value = picture => picture.article.dataset[key];
    const number = text => text === undefined ? Infinity : side * Number(text);
    return [...pictures].sort((a, b) => key === "name"
      ? side * value(a).localeCompare(value(b), undefined, { numeric: true })
      : number(value(a)) === number(value(b)) ? 0 : number(value(a)) - number(value(b)));
  };

  const start = gallery => {
    const tools = gallery.querySelector(".tools"), field = tools.elements, stages = gallery.querySelector(".stages");
    const pictures = [...stages.children].map(article => new Picture(article));
    const byArticle = new Map(pictures.map(picture => [picture.article, picture]));
    const safely = () => field.colours.value === "safe";
    const watcher = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
      watcher.unobserve(entry.target);
      const picture = byArticle.get(entry.target);
      picture.build();
      picture.slide(field.wipe.value);
      picture.paint(safely());
    }), { rootMargin: "800px 0px" });
    const layers = side => pictures.forEach(picture => picture.show(side, field[side].value));
    const on = (name, event, act) => field[name].addEventListener(event, act);

    on("left", "change", () => layers("left"));
    on("right", "change", () => layers("right"));
    on("wipe", "input", () => {
      gallery.style.setProperty("--at", field.wipe.value + "%");
      pictures.forEach(picture => picture.slide(field.wipe.value));
    });
    on("opacity", "input", () => gallery.style.setProperty("--opacity", field.opacity.value / 100));
    on("order", "change", () => stages.append(...sorted(pictures, field.order.value).map(picture => picture.article)));
    on("class", "change", () => {
      const wanted = field.class.value;
      const without = article => wanted !== "" && !article.dataset.present.split(" ").includes(wanted);
      pictures.forEach(({ article }) => article.hidden = without(article));
      const count = pictures.filter(picture => !picture.article.hidden).length;
      field.count.value = `${count} picture${count === 1 ? "" : "s"}`;
    });
    on("colours", "change", () => {
      pictures.forEach(picture => picture.paint(safely()));
      gallery.querySelector(".legend.classes").hidden = safely();
      gallery.querySelector(".safe").hidden = !safely();
    });
    tools.addEventListener("submit", event => event.preventDefault());
    tools.reset();  // a reload would keep what was chosen before, but not what was shown
    tools.hidden = false;
    gallery.classList.add("live");
    ["left", "right"].forEach(layers);
    pictures.forEach(picture => watcher.observe(picture.article));
  };

  document.querySelectorAll(".gallery").forEach(start);
}
