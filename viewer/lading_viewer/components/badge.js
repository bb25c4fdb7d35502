// data: {tone, icon, words, title}.
export default function ({ parentElement: host, data: [data] }) {
  host.querySelector('.root').replaceChildren(make('span', {
    class: `chip ${data.tone} ${data.tone === 'pending' ? '' : 'solid'}`, title: data.title, 'data-testid': 'integrity-badge',
    role: data.tone === 'bad' ? 'alert' : 'status',
  }, icon(data.icon), make('span', {}, data.words)));
}
