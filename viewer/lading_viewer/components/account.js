// data: {name, organization, roles}.
export default function ({ parentElement: host, data: [data] }) {
  const line = (name, value) => make('tr', {}, make('th', { scope: 'row' }, name), make('td', {}, value));
  host.querySelector('.root').replaceChildren(
    make('table', { 'aria-label': 'Account' },
      line('User', data.name), line('Organization', data.organization), line('Roles', data.roles)),
    make('form', { method: 'post', action: '/signout' }, make('button', { type: 'submit' }, 'Sign out')),
  );
}
