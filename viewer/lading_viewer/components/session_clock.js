// data: {expires_at_ms, ended}. A banner comes 5 minutes ahead of the end. At the end what is shown stays, grey and
// without use: nothing more could be read, and running the page again would only take away what was.
export default function ({ parentElement: host, data: [data] }) {
  const root = host.querySelector('.root');
  const block = (host.host ?? host).closest('[data-testid=stElementContainer]');
  const rest = () => [...block.parentElement.children].filter((each) => each !== block)
    .concat(document.querySelector('[data-testid=stSidebar]') ?? []);
  let shown = '';
  block.style.position = 'absolute'; // what says nothing takes no room
  const tick = () => {
    const left = data.expires_at_ms - Date.now();
    const ended = left <= 0;
    const text = ended ? data.ended : left <= 5 * 60 * 1000 ? `Your session ends in ${Math.ceil(left / 60000)} min.` : '';
    if (ended) for (const each of rest()) { each.inert = true; each.style.filter = 'grayscale(1) opacity(.7)'; }
    if (text === shown) return;
    shown = text;
    block.style.position = '';
    const href = `/signin?next=${encodeURIComponent(location.pathname + location.search)}`;
    root.replaceChildren(make('div', { class: 'banner', role: ended ? 'alert' : 'status', 'data-testid': ended ? 'error-expired' : 'session-soon' },
      icon('clock'), text, make('a', { href }, 'Sign in')));
  };
  const timer = setInterval(tick, 1000);
  tick();
  return () => clearInterval(timer);
}
