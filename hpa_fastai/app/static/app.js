document.addEventListener('keydown', event => {
  const panel = document.getElementById('correct-panel');
  if (!panel || panel.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  if (at.matches('textarea, select, [contenteditable], input:not([type=checkbox])')) return;
  const buttons = {Enter: 'correct-save', ArrowRight: 'correct-skip', ArrowLeft: 'correct-back', u: 'correct-undo'};
  const name = buttons[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (name) {
    if (name === 'correct-save' && at.matches('button, summary')) return;
    document.getElementById(name).click();
    event.preventDefault();
  } else if (/^[1-9]$/.test(event.key)) {
    const box = document.querySelectorAll('#correct-classes input[type=checkbox]')[event.key - 1];
    if (box) box.click();
    event.preventDefault();
  }
});
