// data: {tone, icon, words, title}. It leads to the page that tells all of it.
export default function ({ parentElement: host, data: [data] }) {
  const zone = new URLSearchParams(location.search).get('tz');
  host.querySelector('.root').replaceChildren(make('span', {
    'data-testid': 'integrity-badge', role: data.tone === 'bad' ? 'alert' : 'status',
  }, make('a', {
    class: `chip ${data.tone} ${data.tone === 'pending' ? '' : 'solid'}`, title: data.title, href: `/integrity${zone ? `?tz=${zone}` : ''}`,
  }, icon(data.icon), make('span', {}, data.words))));
}
