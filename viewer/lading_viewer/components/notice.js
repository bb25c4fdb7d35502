// data: {testid, tone, icon, title, text, lines: [], actions: [{act, label}], retry_in_s, sign_in}. With `retry_in_s` it
// acts 'retry' by itself after so many seconds. Triggers: act.
export default function ({ parentElement: host, data: [data], setTriggerValue }) {
  const act = (name) => setTriggerValue('act', name);
  const wait = data.retry_in_s ? make('span', { class: 'quiet' }) : null;
  const actions = data.actions.map((action) => make('button', { type: 'button', onclick: () => act(action.act) }, action.label));
  const href = `/signin?next=${encodeURIComponent(location.pathname + location.search)}`;
  const link = data.sign_in ? make('a', { class: 'button', href }, data.sign_in) : null;
  host.querySelector('.root').replaceChildren(make(
    'section', { class: data.tone, role: data.tone === 'bad' ? 'alert' : 'status', 'data-testid': data.testid },
    make('p', {}, icon(data.icon), make('span', {}, make('b', {}, data.title), ...prose(data.text ? ` ${data.text}` : ''))),
    ...data.lines.map((line) => make('p', { class: 'line' }, line)),
    make('div', { class: 'actions' }, ...actions, link, wait),
  ));
  if (!wait) return undefined;
  let left = data.retry_in_s;
  const tick = () => {
    wait.textContent = `Trying again in ${left} s.`;
    if (left-- > 0) return;
    clearInterval(timer);
    act('retry');
  };
  const timer = setInterval(tick, 1000);
  tick();
  return () => clearInterval(timer);
}
