// data: {label, columns, rows: [{id, day, time, other_time, user: {text, icon, title}, action, target, reason, status,
// code, says}], open, live}. Triggers: open = id of a row.
function cell(row, content, attributes) {
  const td = row.insertCell();
  for (const [name, value] of Object.entries(attributes ?? {})) if (value) td.setAttribute(name, value);
  td.append(...[content].flat().filter(Boolean));
}

function addRow(body, event, columns, open) {
  const row = body.insertRow();
  row.className = 'event';
  row.tabIndex = -1;
  row.dataset.testid = 'audit-row';
  row.dataset.id = event.id;
  row.setAttribute('aria-label', event.says);
  cell(row, event.time, { class: 'time', title: event.other_time });
  cell(row, [icon(event.user.icon), event.user.text], { class: event.user.quiet ? 'user quiet' : 'user', title: event.user.title });
  cell(row, chip(event.action));
  cell(row, event.target || '—', { title: event.target, class: event.target ? 'wide' : 'quiet' });
  cell(row, event.reason || 'none given', { title: event.reason, class: event.reason ? 'wide' : 'quiet' });
  cell(row, [chip(event.status), event.code ? make('span', { class: `code ${event.status.tone}` }, event.code) : null]);
  row.onclick = () => { if (!String(getSelection())) open(event.id); };
  return row;
}

function onKey(rows, open) {
  return (press) => {
    if (!isPlain(press)) return;
    const at = rows.indexOf(press.target.closest('tr.event'));
    const to = { j: at + 1, ArrowDown: at + 1, k: at - 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[press.key];
    if (press.key === 'Enter' || press.key === ' ') { press.preventDefault(); open(rows[at].dataset.id); }
    else if (to !== undefined && rows[to]) { press.preventDefault(); focusRow(rows, rows[to]); }
  };
}

function focusRow(rows, row) {
  for (const other of rows) other.tabIndex = -1;
  row.tabIndex = 0;
  row.focus();
}

// From anywhere on the page: / goes to the search, j into the table.
function onPageKey(host) {
  return (press) => {
    if (isTyping(press) || !isPlain(press) || hasDialog()) return;
    if (press.key === '/') {
      const search = document.querySelector('input[aria-label="Search"]');
      if (search) { press.preventDefault(); search.focus(); search.select(); }
    } else if (press.key === 'j' && !press.composedPath().includes(host)) host.querySelector('tr.event')?.focus();
  };
}

function draw(host, data, setTriggerValue) {
  const root = host.querySelector('.root');
  const before = host.lading ?? {};
  const open = (id) => setTriggerValue('open', id);
  const table = make('table', { 'aria-label': data.label, 'data-testid': 'audit-table' });
  const head = table.createTHead().insertRow();
  for (const name of data.columns) head.append(make('th', { scope: 'col' }, name));
  const body = table.createTBody();
  const rows = [];
  let day = null;
  for (const event of data.rows) {
    if (event.day !== day) {
      day = event.day;
      body.append(make('tr', { class: 'day' }, make('td', { colspan: data.columns.length }, day)));
    }
    const row = addRow(body, event, data.columns, open);
    if (event.id === data.open) row.setAttribute('aria-current', 'true');
    if (data.live && before.ids && !before.ids.has(event.id)) row.classList.add('new');
    rows.push(row);
  }
  table.addEventListener('keydown', onKey(rows, open));
  const focused = host.activeElement?.dataset?.id;
  const { scrollTop, scrollLeft } = root;
  root.replaceChildren(table);
  root.scrollTop = scrollTop;
  root.scrollLeft = scrollLeft;
  const back = rows.find((row) => row.dataset.id === (focused ?? (data.open ? null : before.open)));
  if (back) focusRow(rows, back);
  else if (rows[0]) rows[0].tabIndex = 0;
  host.lading = { ids: new Set(data.rows.map((row) => row.id)), open: data.open };
}

export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  // Rows do not move under a selection: the new ones come once it is gone.
  const selection = () => (host.getSelection ? host.getSelection() : getSelection());
  const wait = data.live && host.lading && !selection().isCollapsed && host.querySelector('.root').contains(selection().anchorNode);
  const redraw = () => {
    if (!selection().isCollapsed) return;
    document.removeEventListener('selectionchange', redraw);
    draw(host, data, setTriggerValue);
  };
  if (wait) document.addEventListener('selectionchange', redraw);
  else draw(host, data, setTriggerValue);
  listenOnPage('table', host, onPageKey(host));
  return () => document.removeEventListener('selectionchange', redraw);
}
