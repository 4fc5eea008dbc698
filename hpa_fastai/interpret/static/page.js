// Tables of a page: a click on a heading sorts, words in the field above filter, a button gives the rows as CSV.
// Texts are written, never HTML.

for (const box of document.querySelectorAll('.table')) {
  const body = box.querySelector('tbody');
  const rows = [...body.rows];
  const heads = [...box.querySelectorAll('th')];

  // What a row is sorted by: the exact number of a cell, or its text; a number that is not known is NaN.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return +cell.dataset.v;
    return cell.classList.contains('n') ? NaN : cell.textContent.trim().toLowerCase();
  };
  const compare = (a, b) => typeof a === 'string' ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
  const unknown = key => key === '' || key === '–' || key !== key;

  heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => {
    const before = head.getAttribute('aria-sort');
    const ascending = before ? before === 'descending' : !head.classList.contains('n');
    heads.forEach(h => h.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    const keyed = rows.map((row, place) => [key(row, column), place, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (unknown(a) || unknown(b)) return unknown(a) - unknown(b) || i - j;
      return (ascending ? 1 : -1) * compare(a, b) || i - j;
    });
    body.append(...keyed.map(k => k[2]));
  }));

  const input = box.querySelector('input');
  const count = box.querySelector('output');
  if (input) input.addEventListener('input', () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    const left = rows.filter(row => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length} rows` : '';
  });

  // The rows that are shown, as CSV: exact numbers, texts in quotes, and an apostrophe before what Excel would run.
  const exact = cell => {
    if (cell.dataset.v !== undefined) return cell.dataset.v;
    const text = cell.textContent.trim();
    if (text === '–') return '';
    const harmless = /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",;\r\n]|^\s|\s$/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
  };
  const button = box.querySelector('.download');
  if (button) button.addEventListener('click', () => {
    const shown = [...body.rows].filter(row => !row.hidden);
    const lines = [heads.map(exact), ...shown.map(row => [...row.cells].map(exact))].map(line => line.join(','));
    const heading = box.closest('section')?.querySelector('h2')?.textContent ?? '';
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob(['\ufeff', lines.join('\r\n'), '\r\n'], {type: 'text/csv'}));
    link.download = `${heading.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-') || 'page'}-table.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

// Maps of plates: one of them, over the whole width, or all.
for (const box of document.querySelectorAll('.maps')) {
  const select = box.querySelector('select');
  const show = () => {
    for (const map of box.querySelectorAll('figure')) map.hidden = select.value !== '' && map.dataset.name !== select.value;
    for (const group of box.querySelectorAll('.group')) group.hidden = !group.querySelector('figure:not([hidden])');
    box.classList.toggle('one', select.value !== '');
  };
  select.addEventListener('change', show);
  show();
}
