// Every map of a page: marks on a canvas, a card for the one that is pointed at, pictures of the one that is chosen.
// The data lie beside it as JSON; texts are written, never HTML.

for (const root of document.querySelectorAll('.hpa-map:not([data-ready])')) {
  root.dataset.ready = 1;
  const find = css => root.querySelector(css);
  const data = JSON.parse(find('.hpa-map-data').textContent);
  const n = data.x.length;
  const canvas = find('canvas'), pen = canvas.getContext('2d');
  const tip = find('.hpa-map-tip'), legend = find('.hpa-map-keys'), picked = find('.hpa-map-picked');
  const margin = 14;  // around the marks, in pixels
  const radius = n > 4000 ? 2 : n > 800 ? 3 : 4.5;

  let colouring = data.groups[0];  // names, and the number of the name of each image
  let pointed = -1, chosen = -1;  // images; -1: none
  let width = 0, height = 0;  // of the canvas
  const hidden = new Set();  // groups

  const groupOf = i => colouring.of[i];
  const colourOf = group => colouring.hues[group];
  const shapeOf = group => colouring.shapes[group];
  const place = i => [margin + (width - 2*margin)*data.x[i], margin + (height - 2*margin)*(1 - data.y[i])];
  const isShown = i => !hidden.has(groupOf(i));
  const likeIt = i => i < 0 ? [] : data.like[i] || [];

  // Drawing: circle, square, triangle, diamond, triangle on its tip, plus, cross, star

  const turned = (points, angle) => points.map(([x, y]) => [
    x*Math.cos(angle) - y*Math.sin(angle), x*Math.sin(angle) + y*Math.cos(angle)]);
  const plus = [[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4], [.4, 1.2], [-.4, 1.2], [-.4, .4],
    [-1.2, .4], [-1.2, -.4], [-.4, -.4]];
  const star = [...Array(10).keys()].map(k => turned([[0, k % 2 ? -.6 : -1.4]], k*Math.PI/5)[0]);
  const outlines = [null, null, [[0, -1.2], [1.1, .8], [-1.1, .8]], [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
    [[0, 1.2], [1.1, -.8], [-1.1, -.8]], plus, turned(plus, Math.PI/4), star];
  const outline = (x, y, r, shape) => {
    pen.beginPath();
    if (shape == 0) pen.arc(x, y, r, 0, 7);
    else if (shape == 1) pen.rect(x - .9*r, y - .9*r, 1.8*r, 1.8*r);
    else {
      const points = outlines[shape];
      for (const [dx, dy] of points) pen.lineTo(x + dx*r, y + dy*r);
      pen.closePath();
    }
  };
  const ring = (i, r) => {
    if (i < 0) return;
    pen.strokeStyle = getComputedStyle(root).color;
    pen.lineWidth = 2;
    outline(...place(i), r, 0);
    pen.stroke();
  };
  const draw = () => {
    const scale = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    [width, height] = [box.width, box.height];
    canvas.width = width*scale;
    canvas.height = height*scale;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.globalAlpha = .85;
    for (let i = 0; i < n; i++) if (isShown(i)) {
      pen.fillStyle = colourOf(groupOf(i));
      outline(...place(i), radius, shapeOf(groupOf(i)));
      pen.fill();
    }
    pen.globalAlpha = 1;
    ring(pointed, radius + 4);
    ring(chosen, radius + 4);
    for (const i of likeIt(chosen)) if (isShown(i)) ring(i, radius + 2);
  };

  // Words and pictures

  const element = (tag, text) => {
    const made = document.createElement(tag);
    made.textContent = text;
    return made;
  };
  const picture = i => {
    if (!data.thumb[i]) return '';
    const made = document.createElement('img');
    made.src = data.thumb[i];
    made.alt = 'cells of ' + data.id[i];
    return made;
  };
  const groupNames = i => data.groups.map(g => g.names[g.of[i]]).join(' · ');

  const nearest = (event, reach) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = reach*reach;
    for (let i = 0; i < n; i++) if (isShown(i)) {
      const [a, b] = place(i), distance = (a - x)**2 + (b - y)**2;
      if (distance < least) { least = distance; best = i; }
    }
    return best;
  };
  const point = i => {
    pointed = i;
    tip.hidden = i < 0;
    draw();
    if (i < 0) return;
    tip.replaceChildren(picture(i), element('b', data.id[i]), element('div', groupNames(i)));
    const [x, y] = place(i), gap = 14;
    const left = x + gap + tip.offsetWidth < width ? x + gap : x - gap - tip.offsetWidth;
    tip.style.left = Math.max(2, Math.min(left, width - tip.offsetWidth - 2)) + 'px';
    tip.style.top = Math.max(2, Math.min(y - 40, height - tip.offsetHeight - 2)) + 'px';
  };
  const choose = i => {
    chosen = i;
    picked.replaceChildren(...(i < 0 ? [] : [i, ...likeIt(i)]).map(j => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(picture(j), element('div', data.id[j]), element('div', groupNames(j)));
      button.onclick = () => choose(j);
      return button;
    }));
    find('.hpa-map-like').hidden = !likeIt(i).length;
    draw();
  };
  const writeLegend = () => legend.replaceChildren(...colouring.names.map((name, group) => {
    const button = document.createElement('button'), mark = element('span', data.glyphs[shapeOf(group)]);
    const count = colouring.of.filter(g => g == group).length;
    button.type = 'button';
    mark.style.color = colourOf(group);
    button.append(mark, `${name} (${count})`);
    button.setAttribute('aria-pressed', !hidden.has(group));
    button.onclick = () => {
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute('aria-pressed', !hidden.has(group));
      point(-1);
    };
    return button;
  }));

  // What the reader does

  canvas.addEventListener('pointermove', event => point(nearest(event, 16)));
  canvas.addEventListener('pointerleave', event => { if (event.pointerType == 'mouse') point(-1); });
  canvas.addEventListener('click', event => {
    const i = nearest(event, 24);
    point(i);
    choose(i);
  });
  const select = find('select');
  if (select) select.onchange = () => {
    colouring = data.groups[select.selectedIndex];
    hidden.clear();
    writeLegend();
    point(-1);
  };
  new ResizeObserver(() => {
    const box = canvas.getBoundingClientRect();
    if (box.width == width && box.height == height) return;  // drawn at this size already
    tip.hidden = true;
    draw();
  }).observe(canvas);
  matchMedia('(prefers-color-scheme:dark)').addEventListener('change', draw);
  new MutationObserver(draw).observe(document.documentElement, {attributes: true, attributeFilter: ['data-theme']});
  writeLegend();
  draw();
}
