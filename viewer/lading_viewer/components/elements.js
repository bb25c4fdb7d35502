// Shared by all components: elements made from plain text, icons, chips.
const ICONS = {
  play: 'M3 1l9 6-9 6z',
  stop: 'M2 2h10v10H2z',
  cross: 'M2 3.4L3.4 2 7 5.6 10.6 2 12 3.4 8.4 7 12 10.6 10.6 12 7 8.4 3.4 12 2 10.6 5.6 7z',
  check: 'M1 7.4l1.5-1.5L5.3 8.7 11.5 2 13 3.5 5.3 11.8z',
  barred: 'M7 0a7 7 0 100 14A7 7 0 007 0zm0 2c1 0 2 .3 2.8.9L2.9 9.8A5 5 0 017 2zm0 10c-1 0-2-.3-2.8-.9l6.9-6.9A5 5 0 017 12z',
  dots: 'M1 6h3v3H1zM5.5 6h3v3h-3zM10 6h3v3h-3z',
  loop: 'M7 1v2a4 4 0 11-4 4H1a6 6 0 106-6zM7 0v5L3.5 2.5z',
  plus: 'M6 1h2v5h5v2H8v5H6V8H1V6h5z',
  minus: 'M1 6h12v2H1z',
  pause: 'M2 2h4v10H2zM8 2h4v10H8z',
  question: 'M7 0a7 7 0 110 14A7 7 0 017 0zm0 2a5 5 0 100 10A5 5 0 007 2zM6.2 9.2h1.6v1.6H6.2zM7 3.2c1.5 0 2.6.9 2.6 2.2 0 1-.5 1.5-1.2 2-.5.4-.6.6-.6 1.1H6.2c0-1.2.3-1.7 1.1-2.3.5-.4.7-.5.7-.9s-.4-.7-1-.7-1 .3-1.1.9H4.4C4.5 4 5.5 3.2 7 3.2z',
  clock: 'M7 0a7 7 0 110 14A7 7 0 017 0zm0 2a5 5 0 100 10A5 5 0 007 2zM6.2 3.5h1.6v3.2l2.2 1.3-.8 1.3-3-1.8z',
  gone: 'M1 6h5v2H1zM8 3l5 4-5 4z',
  key: 'M4.5 3a4 4 0 013.7 2.5H14v3h-2v2H9.5v-2H8.2A4 4 0 114.5 3zm0 2.5a1.5 1.5 0 100 3 1.5 1.5 0 000-3z',
  agent: 'M1 2h12v4H1zM1 8h12v4H1zM3 3.3v1.4h1.4V3.3zM3 9.3v1.4h1.4V9.3z',
  down: 'M6 1h2v6h3L7 11 3 7h3zM1 12h12v1.5H1z',
  left: 'M9 2L4 7l5 5 1.2-1.2L6.4 7l3.8-3.8z',
  right: 'M5 2l5 5-5 5-1.2-1.2L7.6 7 3.8 3.2z',
  link: 'M6 4H4a3 3 0 000 6h2V8.5H4a1.5 1.5 0 010-3h2zm2 0v1.5h2a1.5 1.5 0 010 3H8V10h2a3 3 0 000-6zM5 6.3h4v1.4H5z',
  funnel: 'M1 2h12L8.5 7.5V13l-3-1.8V7.5z',
  shield: 'M7 0l6 2v5c0 3.6-2.6 6-6 7-3.4-1-6-3.4-6-7V2zM6.2 10.2L11 5.4 9.8 4.2 6.2 7.8 4.3 5.9 3.1 7.1z',
  prompt: 'M1 3.2L2.3 2l5 5-5 5L1 10.8 4.8 7zM7 10.5h6V12H7z',
  waves: 'M1 2h3v10H1zM5.5 5h3v7h-3zM10 8h3v4h-3z',
  warning: 'M7 .8l6.8 12.4H.2zM6.2 5v4.2h1.6V5zM6.2 10.2v1.6h1.6v-1.6z',
};

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') element.className = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ''));
  return element;
}

function icon(name) {
  if (!ICONS[name]) return null;
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 14 14');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', ICONS[name]);
  path.setAttribute('fill-rule', 'evenodd');
  svg.append(path);
  return svg;
}

function chip(look) {
  return make('span', { class: `chip ${look.tone} ${look.fill}`, title: look.title }, icon(look.icon), look.word);
}

// `lading ps` between backticks is drawn as code.
function prose(text) {
  return text.split('`').map((part, index) => (index % 2 ? make('code', {}, part) : part));
}

const count = (number) => number.toLocaleString('en').replaceAll(',', '\u00a0');

async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  const before = button.lastChild.textContent;
  button.lastChild.textContent = 'Copied';
  setTimeout(() => { button.lastChild.textContent = before; }, 1500);
}

// Keys that work anywhere on the page. One listener for good: components are drawn anew all the time, and a key that is
// pressed meanwhile must not be lost.
function listenOnPage(name, host, handle) {
  if (!window.ladingKeys) {
    window.ladingKeys = new Map();
    document.addEventListener('keydown', (press) => {
      for (const each of window.ladingKeys.values()) if (each.host.isConnected) each.handle(press);
    });
  }
  window.ladingKeys.set(name, { host, handle });
}

const isTyping = (press) => /INPUT|TEXTAREA|SELECT/.test(press.composedPath()[0].tagName);
const isPlain = (press) => !press.ctrlKey && !press.metaKey && !press.altKey;
const hasDialog = () => document.querySelector('[role=dialog]') !== null;
