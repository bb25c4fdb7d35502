// data: {newer, older, label, exports: {csv, jsonl} | null, why, link}. `exports` are addresses; `why` says what an
// export holds, or why there is none; `link` is the query of this view with absolute times. Triggers: turn = 'newer' |
// 'older'.
export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  const turn = (where, name, key, glyph) => make(
    'button',
    { type: 'button', disabled: !data[where], 'aria-label': name, 'aria-keyshortcuts': `Alt+Arrow${key}`, title: `Alt+${key}`,
      onclick: () => setTriggerValue('turn', where) },
    icon(glyph), name,
  );
  const save = (format, name) => make(
    'button',
    { type: 'button', disabled: !data.exports, 'aria-label': name, title: data.why,
      onclick: () => make('a', { href: data.exports[format], download: '' }).click() },
    icon('down'), name,
  );
  const link = make(
    'button',
    { type: 'button', 'aria-label': 'Copy link', title: 'Link to exactly these events, with absolute times',
      onclick: () => copy(`${location.origin}${location.pathname}?${data.link}`, link) },
    icon('link'), 'Copy link',
  );
  host.querySelector('.root').replaceChildren(
    turn('newer', 'Newer', 'Left', 'left'), turn('older', 'Older', 'Right', 'right'),
    make('span', { class: 'label quiet' }, data.label), link, save('csv', 'CSV'), save('jsonl', 'JSONL'),
  );
  listenOnPage('footer', host, (press) => {
    const where = { ArrowLeft: 'newer', ArrowRight: 'older' }[press.key];
    if (!press.altKey || !where || hasDialog()) return;
    press.preventDefault();
    if (data[where]) setTriggerValue('turn', where);
  });
}
