// data: {organization, groups: [{field, name, folded, values: [{value, word, icon, tone, total, failed, state, hot}]}]}. `state` is
// 'in', 'out' or ''. Triggers: pick = {field, value, exclude}.
function addValue(group, value, most, setTriggerValue) {
  const share = value.failed ? make('span', { class: 'failed', style: `width:${(100 * value.failed) / value.total}%` }) : null;
  const failing = value.failed ? `${count(value.failed)} of ${count(value.total)} failed or were refused. ` : '';
  const button = make(
    'button',
    {
      type: 'button',
      class: value.state,
      'aria-pressed': String(value.state !== ''),
      'aria-label': `${group.name}: ${value.state === 'out' ? 'not ' : ''}${value.word}, ${count(value.total)} ${value.total === 1 ? 'event' : 'events'}`,
      'data-testid': `facet-${group.field}-${value.word}`,
      title: `${failing}${value.hot ?? ''}${value.title}\nClick to filter, Alt-click to exclude.`,
      onclick: (press) => setTriggerValue('pick', { field: group.field, value: value.value, exclude: press.altKey }),
    },
    make('span', { class: `word ${value.tone}` }, icon(value.icon), value.word),
    make('span', { class: 'total' }, count(value.total), value.hot ? make('b', { class: 'bad' }, ' ▲') : null),
    make('span', { class: 'bar', style: `width:${(100 * value.total) / most}%` }, share),
  );
  return button;
}

export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  const groups = data.groups.map((group) => {
    const most = Math.max(1, ...group.values.map((value) => value.total));
    const values = group.values.map((value) => addValue(group, value, most, setTriggerValue));
    if (!group.folded) return make('fieldset', {}, make('legend', {}, group.name), ...values);
    const unfolded = host.querySelector(`details[data-field=${group.field}]`)?.open;
    return make('details', { 'data-field': group.field, open: unfolded }, make('summary', {}, group.name), ...values);
  });
  const brand = make('div', { class: 'brand' }, make('img', { src: '/icon.png', alt: '' }), make('b', {}, 'Lading'),
    make('span', { class: 'quiet' }, data.organization));
  host.querySelector('.root').replaceChildren(brand, ...groups);
}
