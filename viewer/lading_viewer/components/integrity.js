// data: {badge: {tone, icon, words}, why, broken: null | {where, event, advice: []}, checked: [], not_checked, facts:
// [{name, value, copy}], witnesses: [{name, size, behind, key}], commands: [{title, text}]}. Triggers: act = 'recheck'.
function section(title, ...children) {
  return make('section', {}, make('h2', {}, title), ...children);
}

function copied(name, value) {
  const button = make('button', { type: 'button', class: 'small', 'aria-label': `Copy ${name.toLowerCase()}`, onclick: () => copy(value, button) }, 'Copy');
  return [make('span', { class: 'id' }, value), button];
}

function table(name, head, rows) {
  return make('table', { 'aria-label': name },
    head.length ? make('tr', {}, ...head.map((each) => make('th', { scope: 'col' }, each))) : null, ...rows);
}

function brokenBox({ where, event, advice }) {
  const zone = new URLSearchParams(location.search).get('tz');
  const href = `/?${new URLSearchParams({ event, ...(zone ? { tz: zone } : {}) })}`;
  return make('div', { class: 'box bad', 'data-testid': 'integrity-broken' }, make('p', { class: 'where' }, make('b', {}, ...prose(where))),
    event ? make('p', {}, make('a', { class: 'button', href }, 'Open the event')) : null,
    make('h2', {}, 'What to do'), make('ol', {}, ...advice.map((each) => make('li', {}, ...prose(each)))));
}

export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  const row = (name, ...cells) => make('tr', {}, make('th', { scope: 'row' }, name), ...cells.map((each) => make('td', {}, ...[each].flat())));
  host.querySelector('.root').replaceChildren(
    make('div', { class: 'verdict' },
      make('span', { class: `chip ${data.badge.tone} solid`, 'data-testid': 'integrity-verdict', role: data.badge.tone === 'bad' ? 'alert' : 'status' },
        icon(data.badge.icon), make('span', {}, data.badge.words)),
      make('button', { type: 'button', onclick: () => setTriggerValue('act', 'recheck') }, icon('loop'), 'Check again'),
      make('a', { class: 'button', href: '/' }, icon('left'), 'Audit log')),
    data.why ? make('p', { class: 'quiet' }, data.why) : '',
    ...(data.broken ? [brokenBox(data.broken)] : []),
    section('What this viewer checks',
      data.checked.length ? make('ul', {}, ...data.checked.map((each) => make('li', {}, make('span', { class: 'ok' }, icon('check')), each)))
        : make('p', {}, 'Nothing could be confirmed just now: see above.'),
      make('p', { class: 'quiet' }, data.not_checked)),
    section('Log and key', table('Log and key', [], data.facts.map((fact) => row(fact.name, fact.copy ? copied(fact.name, fact.value) : fact.value))),
      make('p', { class: 'quiet' }, 'The key was believed when this viewer first saw the log, and is kept. Compare it once with the one that whoever runs the server gives.')),
    section('Witnesses', data.witnesses.length
      ? table('Witnesses', ['Agent', 'Cosigned', 'Behind', 'Key'], data.witnesses.map((each) => row(each.name, each.size, each.behind, copied(`key of ${each.name}`, each.key))))
      : make('p', {}, 'No agent has cosigned this log yet: the record is self-attested.')),
    section('Check it yourself', table('Commands', [], data.commands.map((each) => row(each.title, copied(each.title, each.text))))),
  );
}
