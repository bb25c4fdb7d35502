// data: {summary, failed, chips: [{act, label, title, on}], chart: null | {begin, end, label, top, levels: [{at, label}],
// ticks: [{at, label}], bars: [{from, to, total, failed, says}]}}; `at`, `from` and `to` are shares of the width (levels:
// of the height). Triggers: act = {chip} or {begin, end, from, to}.
function caption(data, setTriggerValue) {
  const chips = data.chips.map((each) =>
    make('button', { type: 'button', class: 'small', title: each.title, 'aria-label': each.label, 'aria-pressed': String(each.on),
      onclick: () => setTriggerValue('act', { chip: each.act }) }, each.label,
      each.on ? icon('cross') : null));
  return make('div', { class: 'caption' },
    make('span', { class: 'summary', role: 'status' }, data.summary,
      data.failed ? make('span', { class: 'bad' }, data.failed) : null),
    make('span', { class: 'chips' }, ...chips));
}

function percent(share) { return `${(100 * share).toFixed(3)}%`; }

function chart(data, setTriggerValue) {
  const hint = make('div', { class: 'hint', hidden: true });
  const brush = make('div', { class: 'brush', hidden: true });
  const bars = data.bars.map((bar) => {
    const part = (amount, tone) => (amount ? make('div', { class: tone, style: `height:${(100 * amount) / data.top}%` }) : null);
    return make('div', { class: 'bar', style: `left:${percent(bar.from)};width:${percent(bar.to - bar.from)}` },
      part(bar.total - bar.failed, 'ok'), part(bar.failed, 'bad'));
  });
  const levels = data.levels.map((level) => make('div', { class: 'level', style: `bottom:${percent(level.at)}` }, make('span', {}, level.label)));
  const ticks = data.ticks.map((tick) => make('span', { style: `left:${percent(tick.at)}` }, tick.label));
  const plot = make('div', { class: 'plot', role: 'group', tabindex: '0', 'aria-label': data.label }, ...levels, ...bars, brush, hint);
  listen(plot, data.bars, brush, hint, (from, to) => setTriggerValue('act', { begin: data.begin, end: data.end, from, to }));
  return make('div', { class: 'chart' }, plot, make('div', { class: 'ticks' }, ...ticks));
}

// Zoom by dragging, or by the arrow keys with Shift and then Enter.
function listen(plot, bars, brush, hint, zoom) {
  let anchor = null;
  let head = null;
  const share = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const at = (where) => Math.max(0, bars.findLastIndex((bar) => bar.from <= where));
  const show = () => {
    const [first, last] = [Math.min(anchor, head), Math.max(anchor, head)];
    Object.assign(brush.style, { left: percent(bars[first].from), width: percent(bars[last].to - bars[first].from) });
    brush.hidden = false;
    tell(head);
  };
  const tell = (index) => {
    hint.textContent = bars[index].says;
    hint.style.left = percent(Math.min(.85, bars[index].from));
    hint.hidden = false;
  };
  const finish = () => {
    const [first, last] = [Math.min(anchor, head), Math.max(anchor, head)];
    anchor = null;
    brush.hidden = true;
    zoom(bars[first].from, bars[last].to);
  };
  plot.addEventListener('pointerdown', (event) => {
    plot.setPointerCapture(event.pointerId);
    anchor = head = at(share(event));
  });
  plot.addEventListener('pointermove', (event) => {
    const index = at(share(event));
    if (event.buttons && anchor !== null) { head = index; show(); } else tell(index);
  });
  plot.addEventListener('pointerup', () => { if (anchor !== null && !brush.hidden) finish(); else anchor = null; });
  plot.addEventListener('pointerleave', () => { hint.hidden = true; });
  plot.addEventListener('blur', () => { anchor = null; brush.hidden = true; hint.hidden = true; });
  plot.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && !event.altKey) {
      event.preventDefault();
      head = Math.min(bars.length - 1, Math.max(0, (head ?? bars.length) + step));
      if (!event.shiftKey || anchor === null) anchor = head;
      show();
    } else if (event.key === 'Enter' && anchor !== null) finish();
    else if (event.key === 'Escape') { anchor = null; brush.hidden = true; hint.hidden = true; }
  });
}

export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  host.querySelector('.root').replaceChildren(
    caption(data, setTriggerValue), ...(data.chart ? [chart(data.chart, setTriggerValue)] : []));
}
