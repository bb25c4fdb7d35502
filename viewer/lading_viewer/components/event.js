// data: {chips, sentence: [{text, strong}], error: null | {code, text, advice, tone}, fields: [{name, value, quiet, copy, find}],
// change: null | [{field, before, after}], timeline: [{id, time, gap, word, tone, note, here, proof: {tone, icon, words}}], request, record,
// link, newer, older, erasure, proof: {chip, rows: [{name, value}], folds: [{title, text}], download: null | {name, text}}}.
// Triggers: act = {find}, {open} or 'recheck'.
function section(title, ...children) {
  return make('section', {}, make('h3', {}, title), ...children);
}

function fieldRow(field, act) {
  const copyButton = field.copy
    ? make('button', { type: 'button', class: 'small', 'aria-label': `Copy ${field.name}`, onclick: () => copy(field.value, copyButton) }, 'Copy') : null;
  const find = field.find
    ? make('button', { type: 'button', class: 'small', 'aria-label': `Show all events with this ${field.name}`,
      onclick: () => act({ find: field.find }) }, 'Show all') : null;
  return make('tr', {}, make('th', { scope: 'row' }, field.name),
    make('td', { class: field.quiet ? 'quiet' : null }, make('span', { class: field.copy ? 'id' : null }, field.value), copyButton, find));
}

function side(sign, value, tone) {
  const text = make('code', { class: tone }, `${sign} ${value}`);
  const lines = value.split('\n').length;
  if (lines <= 6 && value.length <= 400) return text;
  return make('details', {}, make('summary', { class: tone }, `${sign} Show ${lines} ${lines === 1 ? 'line' : 'lines'}`), text);
}

function change(rows) {
  if (!rows.length) return section('Change', make('p', { class: 'quiet' }, 'Nothing changed.'));
  const head = make('tr', {}, ...['Field', 'Before', 'After'].map((name) => make('th', { scope: 'col' }, name)));
  return section('Change', make('table', { 'aria-label': 'Change', class: 'change' }, head, ...rows.map((row) => make('tr', {},
    make('th', { scope: 'row' }, row.field), make('td', {}, side('−', row.before, 'bad')), make('td', {}, side('+', row.after, 'ok'))))));
}

function timeline(steps, act) {
  return section('Time line', make('ol', { 'aria-label': 'Time line' }, ...steps.map((step) => make('li', { class: step.tone },
    make('span', { class: 'dot' }), make('span', { class: 'time' }, step.time), make('span', { class: 'gap quiet' }, step.gap),
    make('span', { class: 'what' }, make('b', {}, step.word), step.note ? ` ${step.note}` : ''),
    make('span', { class: `state ${step.proof.tone}`, role: 'img', title: step.proof.words, 'aria-label': step.proof.words }, icon(step.proof.icon)),
    step.here ? make('span', { class: 'quiet' }, 'this event')
      : make('button', { type: 'button', class: 'small', 'aria-label': `Open event ${step.word}`, onclick: () => act({ open: step.id }) }, 'Open')))));
}

function folded(title, text) {
  const button = make('button', { type: 'button', class: 'small', 'aria-label': `Copy ${title.toLowerCase()}`, onclick: () => copy(text, button) }, 'Copy');
  return make('details', { class: 'box' }, make('summary', {}, title), button, make('pre', {}, text));
}

function download({ name, text }) {
  const href = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
  make('a', { href, download: name }).click();
  URL.revokeObjectURL(href);
}

function proofSection({ proof, record }, act) {
  return section('Proof and raw record', make('div', { 'data-testid': 'proof' }, chip(proof.chip)),
    make('table', { 'aria-label': 'Proof' }, ...proof.rows.map((row) => make('tr', {},
      make('th', { scope: 'row' }, row.name), make('td', {}, make('span', { class: 'id' }, row.value))))),
    ...proof.folds.map((fold) => folded(fold.title, fold.text)),
    folded('Raw record', record),
    make('div', { class: 'actions' },
      make('button', { type: 'button', onclick: () => act('recheck') }, icon('loop'), 'Recheck now'),
      proof.download ? make('button', { type: 'button', onclick: () => download(proof.download) }, icon('down'), 'Download proof') : null));
}

export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  const act = (what) => setTriggerValue('act', what);
  const address = `${location.origin}${location.pathname}?${data.link}`;
  const link = make('button', { type: 'button', 'aria-label': 'Copy link to this event', title: address, onclick: () => copy(address, link) }, icon('link'), 'Copy link');
  host.querySelector('.root').replaceChildren(
    make('div', { class: 'chips' }, ...data.chips.map(chip)),
    make('p', { class: 'sentence' }, ...data.sentence.map((part) => (part.strong ? make('b', {}, part.text) : part.text))),
    ...(data.error ? [make('div', { class: `error ${data.error.tone}`, role: 'alert' }, make('b', {}, data.error.code), ...prose(data.error.text ? ` ${data.error.text}` : ''),
      data.error.advice ? make('div', { class: 'advice' }, ...prose(data.error.advice)) : null)] : []),
    ...(data.erasure ? [make('p', { class: 'erasure pending' }, data.erasure)] : []),
    make('table', { 'aria-label': 'Fields', class: 'fields' }, ...data.fields.map((field) => fieldRow(field, act))),
    ...(data.change ? [change(data.change)] : []),
    ...(data.timeline.length ? [timeline(data.timeline, act)] : []),
    ...(data.request ? [folded('Request', data.request)] : []),
    ...(data.details ? [folded('Details', data.details)] : []),
    proofSection(data, act),
    make('div', { class: 'actions' }, link,
      data.newer ? make('button', { type: 'button', onclick: () => act({ open: data.newer }) }, icon('left'), 'Newer event') : null,
      data.older ? make('button', { type: 'button', onclick: () => act({ open: data.older }) }, icon('right'), 'Older event') : null),
  );
}
